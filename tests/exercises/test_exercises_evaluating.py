"""Every check of the exercises to notebook 05: right answers pass, each mistake is told apart."""

import functools
import math
import random
import re

import pytest
import torch
from exercise_answers import named_mistakes, right_answers, said, still_open

from rlhf_helpers.exercises import evaluating as checks

# --- right answers, written in other ways than in the notebook ---


def changes_by_search(before, after):
    return [
        next(b["reward"] for b in after if (b["prompt"], b["seed"]) == (a["prompt"], a["seed"]))
        - a["reward"] for a in before
    ]  # fmt: skip


@functools.cache
def means_of_draws(values, draws, size):
    chooser = random.Random(1)
    return sorted(sum(chooser.choices(values, k=size)) / size for _ in range(draws))


def interval_by_sorting(changes, draws, generator, out=0.025, size=None):
    means = means_of_draws(tuple(changes.tolist()), draws, size or len(changes))
    return means[int(out * draws)], means[int((1 - out) * draws) - 1]


def perplexity_by_geometric_mean(nats, tokens):
    product = 1.0
    for text in nats.tolist():
        product *= math.exp(text) ** (1 / int(tokens.sum()))
    return product


def best_by_sorting(rewards):
    best = [sorted(row)[-1] for row in rewards.tolist()]
    n = rewards.shape[1]
    return sum(best) / len(best), math.log(n) - 1 + 1 / n


RIGHT = [
    (checks.check_changes, changes_by_search),
    (checks.check_interval, interval_by_sorting),
    (checks.check_perplexity, perplexity_by_geometric_mean),
    (checks.check_best_of_n, best_by_sorting),
]


test_a_right_answer_is_right = right_answers(RIGHT)


def bootstrap(low, high, seed=0):
    """These two quantiles of the drawn means."""

    def interval(changes, draws, generator):
        generator.manual_seed(seed)
        drawn = torch.randint(len(changes), (draws, len(changes)), generator=generator)
        return changes[drawn].mean(dim=1).quantile(torch.tensor([low, high])).tolist()

    return interval


@pytest.mark.parametrize("seed", range(20))
def test_a_right_interval_is_right_whatever_the_draws(capsys, seed):
    assert said(capsys, checks.check_interval, bootstrap(0.025, 0.975, seed)) == "Right."


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "low, high",
    [(0.035, 0.965), (0.03, 0.97), (0.02, 0.98), (0.01, 0.96), (0.04, 0.99), (0.025, 0.97)],
)
def test_other_quantiles_are_told_so(capsys, low, high, seed):
    sentence = said(capsys, checks.check_interval, bootstrap(low, high, seed))
    assert "2.5 % each are right" in sentence
    counted = [float(share) for share in re.findall(r"([\d.]+) %", sentence)[:2]]
    assert counted == pytest.approx([100 * low, 100 * (1 - high)], abs=0.25)


def test_the_chances_of_the_sums_are_those_of_many_draws():
    assert math.isclose(sum(checks.chances_of_sums().values()), 1)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(20, (200_000, 20), generator=generator)
    drawn = torch.tensor(checks.VALUES)[drawn].mean(dim=1)
    for bound in (0.0, 0.2, 0.5):
        share = float((drawn < bound).double().mean())
        assert checks.share_below(bound) == pytest.approx(share, abs=0.006)


# --- the mistakes that the checks name: words of the sentence -> the wrong answer ---


def by_place(before, after):
    return [b["reward"] - a["reward"] for a, b in zip(before, after, strict=True)]


def by_prompt(before, after):
    return [{b["prompt"]: b["reward"] for b in after}[a["prompt"]] - a["reward"] for a in before]


def by_first_of_prompt(before, after):
    return by_prompt(before, after[::-1])


def without_replacement(changes, draws, generator):
    means = [changes[torch.randperm(len(changes))].mean() for _ in range(100)]
    return min(means), max(means)


def of_single_changes(changes, draws, generator):
    return changes.quantile(0.025), changes.quantile(0.975)


def shifted(changes, draws, generator):
    low, high = interval_by_sorting(changes, draws, generator)
    return low - changes.mean(), high - changes.mean()


def without_drawing(changes, draws, generator):
    error = 1.96 * changes.std() / len(changes) ** 0.5
    return changes.mean() - error, changes.mean() + error


def around_the_mean(changes, draws, generator):
    drawn = torch.randint(len(changes), (draws, len(changes)), generator=generator)
    means = changes[drawn].mean(dim=1)
    return means.mean() - 2 * means.std(), means.mean() + 2 * means.std()


def with_n(n):
    return lambda rewards: (best_by_sorting(rewards)[0], math.log(n) - (n - 1) / n)


def with_kl(kl):
    return lambda rewards: (best_by_sorting(rewards)[0], kl)


MISTAKES = [
    (checks.check_changes, "Still open", still_open),
    (checks.check_changes, "did you forget `return`", lambda before, after: None),
    (checks.check_changes, "2 changes for 3", lambda before, after: [0.1, 0.2]),
    (checks.check_changes, "sign is turned round",
     lambda before, after: [-x for x in changes_by_search(before, after)]),
    (checks.check_changes, "it pairs by place", by_place),
    (checks.check_changes, "not by prompt alone", by_prompt),
    (checks.check_changes, "not by prompt alone", by_first_of_prompt),
    (checks.check_changes, "not in the order",
     lambda before, after: sorted(changes_by_search(before, after))),
    (checks.check_changes, "0.6, −0.2 and 0.5", lambda before, after: [0.0, 0.0, 0.0]),
    (checks.check_interval, "did you forget `return`", lambda c, d, g: None),
    (checks.check_interval, "lower bound and the upper", lambda c, d, g: (0.1, 0.2, 0.3)),
    (checks.check_interval, "lower bound comes first",
     lambda c, d, g: interval_by_sorting(c, d, g)[::-1]),
    (checks.check_interval, "with replacement", without_replacement),
    (checks.check_interval, "bounds of single changes", of_single_changes),
    (checks.check_interval, "round the mean", shifted),
    (checks.check_interval, "90 % interval", lambda c, d, g: interval_by_sorting(c, d, g, 0.05)),
    (checks.check_interval, "quartiles", lambda c, d, g: interval_by_sorting(c, d, g, 0.25)),
    (checks.check_interval, "as many changes",
     lambda c, d, g: interval_by_sorting(c, d, g, size=10)),
    (checks.check_interval, "as far below the mean as the upper", without_drawing),
    (checks.check_interval, "as far below the mean as the upper", around_the_mean),
    (checks.check_perplexity, "did you forget `return`", lambda nats, n: None),
    (checks.check_perplexity, "nats a token; perplexity", lambda nats, n: nats.sum() / n.sum()),
    (checks.check_perplexity, "own perplexities", lambda nats, n: (nats / n).exp().mean()),
    (checks.check_perplexity, "let each token count", lambda nats, n: (nats / n).mean().exp()),
    (checks.check_perplexity, "not bits", lambda nats, n: 2 ** (nats.sum() / n.sum())),
    (checks.check_perplexity, "sign is turned round",
     lambda nats, n: (-nats.sum() / n.sum()).exp()),
    (checks.check_perplexity, "before you take", lambda nats, n: nats.sum().exp()),
    (checks.check_perplexity, "exp(44 / 15)", lambda nats, n: 3.0),
    (checks.check_best_of_n, "did you forget `return`", lambda rewards: None),
    (checks.check_best_of_n, "two numbers", lambda rewards: 0.5),
    (checks.check_best_of_n, "mean of all texts", lambda rewards: (rewards.mean(), 0.636)),
    (checks.check_best_of_n, "of all prompts", lambda rewards: (rewards.max(), 0.636)),
    (checks.check_best_of_n, "along the draws",
     lambda rewards: (rewards.max(dim=0).values.mean(), 0.636)),
    (checks.check_best_of_n, "0.8, 0.6 and 0.9", lambda rewards: (0.0, 0.636)),
    (checks.check_best_of_n, "nothing is chosen", with_n(4)),
    (checks.check_best_of_n, "too much", with_kl(math.log(4))),
    (checks.check_best_of_n, "the natural one", with_kl(math.log2(4) - 0.75)),
    (checks.check_best_of_n, "not the number of prompts", with_n(3)),
    (checks.check_best_of_n, "not of all texts", with_n(12)),
    (checks.check_best_of_n, "never below 0", with_kl(0.75 - math.log(4))),
    (checks.check_best_of_n, "do not add it", with_kl(math.log(4) + 0.75)),
    (checks.check_best_of_n, "0.636 nats", with_kl(0.1)),
]  # fmt: skip


test_each_mistake_is_named = named_mistakes(MISTAKES)
