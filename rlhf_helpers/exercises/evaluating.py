"""Checks of the exercises to notebook 05: pairs, intervals, perplexity, best of n.

As `checking.py` says, a check is called with the reader's function and says in one sentence
that it is right, or what is most likely wrong. What it compares with is worked out in another way
than in the solution: number by number, in plain Python.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from .checking import NOTHING, close, report

# --- pairs ----------------------------------------------------------------------------------------

BEFORE = (("A fine", 1, 0.2), ("A fine", 2, 0.7), ("The end", 3, 0.4))
AFTER = (("The end", 3, 0.9), ("A fine", 2, 0.5), ("A fine", 1, 0.8))
CHANGES = (0.6, -0.2, 0.5)  # 0.8 - 0.2, 0.5 - 0.7, 0.9 - 0.4


def records(rows: tuple) -> list[dict[str, Any]]:
    """Samples as a run keeps them: prompt, seed and reward."""
    return [{"prompt": prompt, "seed": seed, "reward": reward} for prompt, seed, reward in rows]


@report
def check_changes(changes: Callable[..., Any]) -> str | None:
    """changes(before, after) -> reward after less reward before, of equal prompt and seed."""
    found = changes(records(BEFORE), records(AFTER))
    if found is None:
        return NOTHING
    found = list(found)
    if len(found) != 3:
        return f"it returns {len(found)} changes for 3 samples."
    if close(found, CHANGES):
        return None
    if close(found, [-change for change in CHANGES]):
        return "the sign is turned round: a change is the reward after less the reward before."
    in_order = [b[2] - a[2] for a, b in zip(BEFORE, AFTER, strict=True)]
    if close(found, in_order):
        return (
            "it pairs by place; the samples after come in another order: pair by prompt and seed."
        )
    by_prompt = [{p: r for p, _, r in AFTER}[p] - r for p, _, r in BEFORE]
    by_first = [{p: r for p, _, r in reversed(AFTER)}[p] - r for p, _, r in BEFORE]
    if close(found, by_prompt) or close(found, by_first):
        return "a prompt can have several samples: pair by prompt and seed, not by prompt alone."
    if close(sorted(found), sorted(CHANGES)):
        return "the changes are right, but not in the order of the samples before."
    return "for rewards 0.2, 0.7, 0.4 before and 0.8, 0.5, 0.9 after they are 0.6, −0.2 and 0.5."


# --- the bootstrap --------------------------------------------------------------------------------

# Most changes are small and a few are large, so that the drawn means are skewed: the bounds lie
# 1.63 standard errors below the mean and 2.20 above it. In hundredths, for exact sums.
VALUES = (-0.3, -0.24, -0.2, -0.15, -0.12, -0.09, -0.06, -0.04, -0.02, 0.01,
          0.03, 0.05, 0.08, 0.11, 0.16, 0.2, 0.35, 0.7, 1.6, 2.8)  # fmt: skip
# The share of draws outside a bound strays by sqrt(0.025 * 0.975 / DRAWS) = 0.0007.
DRAWS, STRAYING = 50_000, 0.003


@functools.cache
def chances_of_sums() -> dict[int, float]:
    """How likely each sum of one draw is, in hundredths: of all draws there are, not of some."""
    chances = {0: 1.0}
    for _ in VALUES:
        longer: dict[int, float] = defaultdict(float)
        for total, chance in chances.items():
            for value in VALUES:
                longer[total + round(100 * value)] += chance / len(VALUES)
        chances = longer
    return chances


def share_below(bound: float) -> float:
    """The share of all drawn means that lie below a bound; one that lies on it counts half."""
    bound *= 100 * len(VALUES)
    chances = chances_of_sums().items()
    on_it = sum(chance for total, chance in chances if abs(total - bound) < 0.1)
    return sum(chance for total, chance in chances if total <= bound - 0.1) + on_it / 2


@report
def check_interval(interval: Callable[..., Any]) -> str | None:
    """interval(changes [n], draws, generator) -> low, high: 95 % of the drawn means between."""
    generator = torch.Generator().manual_seed(0)
    found = interval(torch.tensor(VALUES), DRAWS, generator)
    if found is None:
        return NOTHING
    found = [float(bound) for bound in found]
    if len(found) != 2:
        return f"it returns {len(found)} numbers; return the lower bound and the upper one."
    low, high = found
    mean = math.fsum(VALUES) / len(VALUES)
    # The mean of n independent draws strays by sigma / sqrt(n).
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in VALUES) / len(VALUES))
    error = spread / math.sqrt(len(VALUES))
    if low > high:
        return "the lower bound comes first."
    if high - low < 0.05 * error:
        return "all draws have the same mean; draw with replacement, as often as there are changes."
    middle = (low + high) / 2
    if 2 * spread < high - low:
        return (
            "these are bounds of single changes; take the mean of each draw first, then the bounds "
            "of the means."
        )
    if abs(middle - mean) > 0.8 * error:
        return "the interval does not lie round the mean of the changes."
    outside = share_below(low), 1 - share_below(high)

    def are(share: float, straying: float) -> bool:
        return all(abs(found - share) < straying for found in outside)

    if are(0.025, STRAYING):
        return None
    if are(0.05, 2 * STRAYING):
        return "that is a 90 % interval; 95 % leave 2.5 % out on each side."
    if are(0.25, 4 * STRAYING):
        return "these are the quartiles, half of the means; 95 % leave 2.5 % out on each side."
    if abs(middle - mean) < 0.02 * error:
        return (
            "the lower bound lies as far below the mean as the upper one above it, as it does with "
            "mean ± 1.96 standard errors. These changes are skewed, and so are the drawn means: "
            "return two quantiles of them."
        )
    return (
        f"{100 * outside[0]:.1f} % of all drawn means lie below the lower bound and "
        f"{100 * outside[1]:.1f} % above the upper one; 2.5 % each are right. Does each draw have "
        "as many changes as were given, and are there `draws` draws?"
    )


# --- perplexity -----------------------------------------------------------------------------------

NATS, TOKENS = (12.0, 2.0, 30.0), (4, 1, 10)


@report
def check_perplexity(perplexity: Callable[..., Any]) -> str | None:
    """perplexity(nats [n], tokens [n]) -> exp of the nats a token, over all texts together."""
    found = perplexity(torch.tensor(NATS), torch.tensor(TOKENS))
    if found is None:
        return NOTHING
    found = float(found)
    each = [math.exp(nats / n) for nats, n in zip(NATS, TOKENS, strict=True)]
    a_token = math.fsum(NATS) / sum(TOKENS)
    known = {
        math.exp(a_token): None,
        a_token: "that is the nats a token; perplexity is their exponential.",
        math.fsum(each) / 3: "that is the mean of the texts' own perplexities; a text of one token "
                             "would count as much as one of a hundred. Add up first.",
        math.exp(math.fsum(n / t for n, t in zip(NATS, TOKENS, strict=True)) / 3):
            "each text counts the same there; let each token count: sum of nats / sum of tokens.",
        2**a_token: "the numbers are nats, not bits: take e to that power, not 2.",
        math.exp(-a_token): "the sign is turned round: these are negative log-probabilities.",
    }  # fmt: skip
    for value, mistake in known.items():
        if math.isclose(found, value, rel_tol=1e-4):
            return mistake
    if math.isinf(found) or found > 1e6:
        return "divide the nats by the number of tokens before you take the exponential."
    return "for 12, 2 and 30 nats over 4, 1 and 10 tokens it is exp(44 / 15) = 18.8."


# --- best of n ------------------------------------------------------------------------------------

REWARDS = ((0.1, 0.8, 0.3, 0.4), (0.6, 0.2, 0.5, 0.1), (0.9, 0.3, 0.2, 0.6))


@report
def check_best_of_n(best_of_n: Callable[..., Any]) -> str | None:
    """best_of_n(rewards [P, n]) -> mean reward of each prompt's best, and log n - (n - 1) / n."""
    found = best_of_n(torch.tensor(REWARDS))
    if found is None:
        return NOTHING
    if not isinstance(found, tuple | list) or len(found) != 2:
        return "return two numbers: the mean reward of the best texts, and the KL."
    reward, kl = (float(number) for number in found)
    mistakes = {
        (0.8 + 0.6 + 0.9) / 3: None,
        sum(map(sum, REWARDS)) / 12: "that is the mean of all texts; keep each prompt's best one.",
        0.9: "that is the best text of all prompts; take the best of each prompt, then the mean.",
        (0.9 + 0.8 + 0.5 + 0.6) / 4: "that is the best prompt for each draw; take the maximum "
                                     "along the draws (dim=1).",
    }  # fmt: skip
    right = next((m for v, m in mistakes.items() if math.isclose(reward, v, abs_tol=1e-5)),
                 "the best rewards are 0.8, 0.6 and 0.9; return their mean.")  # fmt: skip
    if right is not None:
        return right
    if math.isclose(kl, math.log(4) - 3 / 4, abs_tol=1e-5):
        single, none = best_of_n(torch.tensor(REWARDS)[:, :1])
        if math.isclose(float(single), 1.6 / 3, abs_tol=1e-5) and abs(float(none)) < 1e-6:
            return None
        return "with n = 1 nothing is chosen: the reward is the plain mean, and the KL is 0."
    known = {
        math.log(4): "log n alone is too much; take (n − 1) / n away.",
        math.log2(4) - 3 / 4: "in nats the logarithm is the natural one (`math.log`).",
        math.log(3) - 2 / 3: "n is the number of texts a prompt, not the number of prompts.",
        math.log(12) - 11 / 12: "n is the number of texts a prompt, not of all texts.",
        3 / 4 - math.log(4): "the sign is turned round: a KL is never below 0.",
        math.log(4) + 3 / 4: "take (n − 1) / n away, do not add it.",
    }
    for value, mistake in known.items():
        if math.isclose(kl, value, abs_tol=1e-5):
            return mistake
    return "for n = 4 the KL is log 4 − 3/4 = 0.636 nats."
