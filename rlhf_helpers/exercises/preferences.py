"""Checks of the exercises to notebook 06: preferences, reward models, best of n, DPO.

As `checking.py` says, a check is called with the reader's function, says in one sentence
what is right or most likely wrong, and compares with numbers that are worked out in another way
than in the solution: one pair or one text after the other, in plain Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from .checking import NOTHING, close, not_one_number, report

# --- Bradley-Terry --------------------------------------------------------------------------------

FIRST, SECOND = (2.0, 0.5, -1.0, 0.3), (1.0, 0.5, 1.5, -0.2)
TEMPERATURE, RANDOM_SHARE = 0.5, 0.2


def odds(first: float, second: float, temperature: float) -> float:
    """Bradley and Terry's own form: the share of the first one's strength, e^(r / temperature)."""
    a, b = math.exp(first / temperature), math.exp(second / temperature)
    return a / (a + b)


def answers(temperature: float = TEMPERATURE, share: float = RANDOM_SHARE) -> list[float]:
    """P(first preferred) of each pair; a share of the answers is thrown with a coin."""
    return [(1 - share) * odds(a, b, temperature) + share * 0.5
            for a, b in zip(FIRST, SECOND, strict=True)]  # fmt: skip


@report
def check_annotator(prefers_first: Callable[..., Any]) -> str | None:
    """prefers_first(first [n], second [n], temperature, random_share) -> probabilities [n]."""
    found = prefers_first(torch.tensor(FIRST), torch.tensor(SECOND), TEMPERATURE, RANDOM_SHARE)
    if found is None:
        return NOTHING
    found = torch.as_tensor(found)
    if found.shape != (4,):
        return f"every pair has a probability: [4], and not {list(found.shape)}."
    swapped = [1 - p for p in answers()]
    likely = (
        (answers(), None),
        (swapped, "this is the probability of the second text: first less second, not the other "
         "way round."),
        (answers(share=0.0), "nobody answers by a coin; what does `random_share` do?"),
        (answers(temperature=1.0), "the temperature is not used: divide the difference by it."),
        (answers(temperature=1 / TEMPERATURE), "multiplied by the temperature; a high temperature "
         "makes an annotator careless, so the difference is divided by it."),
        ([p - RANDOM_SHARE / 2 for p in answers()], "a coin prefers the first text half of the "
         "time: random_share / 2 is missing."),
        ([p + RANDOM_SHARE / 2 for p in answers()], "a coin prefers the first text only half of "
         "the time: add random_share / 2, not random_share."),
    )  # fmt: skip
    for numbers, sentence in likely:
        if close(found, numbers):
            return sentence
    return "two texts of equal reward are preferred equally often, and others by the sigmoid of " \
           "their difference over the temperature."  # fmt: skip


@report
def check_reward_loss(reward_loss: Callable[..., Any]) -> str | None:
    """reward_loss(chosen [n], rejected [n]) -> the loss of a reward model, one number."""
    found = reward_loss(torch.tensor(FIRST), torch.tensor(SECOND))
    if mistake := not_one_number(found):
        return mistake
    found = torch.as_tensor(found).detach()
    p = [odds(a, b, 1.0) for a, b in zip(FIRST, SECOND, strict=True)]
    right = -sum(math.log(x) for x in p) / 4
    likely = (
        (right, None),
        (-right, "the sign: the probability of the answers is to be large, and a loss is made "
         "small."),
        (4 * right, "a sum where a mean should be."),
        (-sum(p) / 4, "the logarithm is missing: a sure mistake has to cost more than a doubtful "
         "one."),
        (-sum(math.log(1 - x) for x in p) / 4, "it would learn to like the rejected text: chosen "
         "less rejected, not the other way round."),
        (-sum(a - b for a, b in zip(FIRST, SECOND, strict=True)) / 4, "sigmoid and logarithm are "
         "missing: the scores would grow without end."),
    )  # fmt: skip
    for number, sentence in likely:
        if math.isclose(float(found), number, rel_tol=1e-4):
            return sentence
    return f"it gives {float(found):.4f} where {right:.4f} is right."


# --- the last token -------------------------------------------------------------------------------

SEEN = ((1, 1, 1, 0, 0), (1, 1, 1, 1, 1), (1, 0, 0, 0, 0))
ONE_TOO_FAR = "one too far: a text of three tokens has its last one in column 2, " \
              "seen.sum(dim=1) - 1."  # fmt: skip
ROWS_AND_COLUMNS = "x[:, columns] takes these columns of every row: pick rows and columns " \
                   "together, x[torch.arange(len(x)), columns]."  # fmt: skip


@report
def check_last_state(last_state: Callable[..., Any]) -> str | None:
    """last_state(hidden [B, N, h], seen [B, N]) -> the state of each text's last token, [B, h]."""
    hidden = torch.arange(30, dtype=torch.float32).reshape(3, 5, 2) ** 1.5
    try:
        found = last_state(hidden.clone(), torch.tensor(SEEN))
    except IndexError as error:
        if "index 5 " in str(error):  # the text that fills its row ends in column 4
            return ONE_TOO_FAR
        raise
    if found is None:
        return NOTHING
    found = torch.as_tensor(found)
    rows = range(3)
    if close(found, torch.stack([hidden[i, sum(SEEN[i]) - 1] for i in rows])):
        return None
    if found.shape == (3, 3, 2):
        return ROWS_AND_COLUMNS
    if found.shape != (3, 2):
        return f"each text has one state of two numbers: [3, 2], and not {list(found.shape)}."
    if close(found, hidden[:, -1]):
        return "the last column is padding for the texts that are shorter: look where `seen` ends."
    if close(found, torch.stack([hidden[i, sum(SEEN[i]) % 5] for i in rows])):
        return ONE_TOO_FAR
    if close(found, torch.stack([hidden[i, : sum(SEEN[i])].mean(0) for i in rows])):
        return "this is the mean over the tokens; here the last one alone is asked for."
    if close(found, hidden[:, 0]):
        return "this is the first token, which has read nothing of what follows."
    return "take column seen.sum(dim=1) - 1 of each row."


# --- best of n ------------------------------------------------------------------------------------

CANDIDATES = ((0.2, 0.9, 0.4, 0.1), (0.5, 0.3, 0.1, 0.8), (0.6, 0.5, 0.2, 0.3))
TRUTH = ((0.7, 0.2, 0.9, 0.1), (0.4, 0.1, 0.6, 0.5), (0.3, 0.9, 0.5, 0.2))


@report
def check_best_by_proxy(gold_of_best: Callable[..., Any]) -> str | None:
    """gold_of_best(proxy [B, n], gold [B, n]) -> gold of the text that proxy likes best, [B]."""
    proxy, gold = torch.tensor(CANDIDATES), torch.tensor(TRUTH)
    found = gold_of_best(proxy, gold)
    if found is None:
        return NOTHING
    found = torch.as_tensor(found)
    if found.shape == (3, 3):
        return ROWS_AND_COLUMNS
    if found.shape != (3,):
        return f"one number for each prompt: [3], and not {list(found.shape)}."
    chosen = [max(range(4), key=row.__getitem__) for row in CANDIDATES]
    if close(found, [row[i] for row, i in zip(TRUTH, chosen, strict=True)]):
        return None
    if close(found, [max(row) for row in TRUTH]):
        return "it chooses by gold, which no project has: the reward model chooses, gold measures."
    if close(found, [max(row) for row in CANDIDATES]):
        return "this is what the reward model says of its own choice; what is it really worth?"
    if close(found, torch.tensor(chosen)):
        return "these are the places of the chosen texts; what is gold there?"
    if close(found, [min(zip(row, own, strict=True))[1]
                     for row, own in zip(CANDIDATES, TRUTH, strict=True)]):  # fmt: skip
        return "it takes the text that the reward model likes least."
    return "for each row: where is proxy largest? gold at that place."


# --- DPO ------------------------------------------------------------------------------------------

CHOSEN, REJECTED = (-20.0, -31.0, -12.0), (-25.0, -30.0, -18.0)
REF_CHOSEN, REF_REJECTED = (-22.0, -30.0, -15.0), (-21.0, -32.0, -17.0)
BETA = 0.2


def dpo_by_pairs(
    beta: float = BETA, sign: float = 1.0, reference: bool = True, log: bool = True
) -> float:
    """The loss with one thing changed, pair after pair."""
    terms = []
    for w, x, rw, rx in zip(CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED, strict=True):
        moved = (w - rw) - (x - rx) if reference else w - x
        p = 1 / (1 + math.exp(-sign * beta * moved))
        terms.append(math.log(p) if log else p)
    return -sum(terms) / len(terms)


@report
def check_dpo(dpo_loss: Callable[..., Any]) -> str | None:
    """dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta) -> the loss, one number.

    The first four are [n]: log-probabilities of whole responses, of the policy and the reference.
    """
    given = (torch.tensor(x) for x in (CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED))
    found = dpo_loss(*given, BETA)
    if mistake := not_one_number(found):
        return mistake
    found = torch.as_tensor(found).detach()
    likely = (
        (dpo_by_pairs(), None),
        (-dpo_by_pairs(), "the sign: the probability of the answers is to be large, and a loss is "
         "made small."),
        (dpo_by_pairs(reference=False), "the reference is not used: a text that was likely before "
         "any training would count as liked."),
        (dpo_by_pairs(beta=1.0), "beta is not used: it says how much reward a nat stands for."),
        (dpo_by_pairs(beta=1 / BETA), "divided by beta; the implicit reward is beta times the log "
         "ratio."),
        (dpo_by_pairs(sign=-1.0), "it would learn to write the rejected texts: chosen less "
         "rejected, not the other way round."),
        (dpo_by_pairs(log=False), "the logarithm is missing in front of the sigmoid."),
        (3 * dpo_by_pairs(), "a sum where a mean should be."),
    )  # fmt: skip
    for number, sentence in likely:
        if math.isclose(float(found), number, rel_tol=1e-4):
            return sentence
    return f"it gives {float(found):.4f} where {dpo_by_pairs():.4f} is right."
