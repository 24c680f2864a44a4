"""Checks of the exercises to notebook 04: advantages, clipping, KL, masks, rewards, RLOO.

As `checking.py` says, a check is called with the reader's function, says in one sentence
what is right or most likely wrong, and compares with numbers that are worked out in another way
than in the solution: by sums over single tokens, in plain Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from .checking import NOTHING, close, not_one_number, report

GAMMA, LAM = 0.9, 0.8
VALUES = ((0.5, 0.4, 0.7, 0.2), (0.1, 0.3, 0.6, 0.9))
REWARDS = ((0.0, -0.1, 0.2, 1.0), (0.3, 0.0, -0.2, 0.5))


# --- generalised advantage estimation -------------------------------------------------------------


def advantages_by_sums(
    gamma_next: float = GAMMA, decay: float = GAMMA * LAM, behind: Callable | None = None
) -> list[list[float]]:
    """A_t = sum_k decay^k delta_{t+k}, each sum written out; `behind`: the value past the end."""
    rows = []
    for values, rewards in zip(VALUES, REWARDS, strict=True):
        past = 0.0 if behind is None else behind(values)
        following = [*values[1:], past]
        deltas = [r + gamma_next * n - v
                  for r, n, v in zip(rewards, following, values, strict=True)]  # fmt: skip
        rows.append([
            sum(decay**k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))
        ])  # fmt: skip
    return rows


@report
def check_gae(gae: Callable[..., Any]) -> str | None:
    """gae(values [B, T], rewards [B, T], gamma, lam) -> (advantages, returns), both [B, T]."""
    values, rewards = torch.tensor(VALUES), torch.tensor(REWARDS)
    found = gae(values, rewards, GAMMA, LAM)
    if found is None:
        return NOTHING
    if not isinstance(found, tuple | list) or len(found) != 2:
        return "return two tensors: the advantages, and the returns."
    if not (close(values, VALUES) and close(rewards, REWARDS)):
        return "it changes the values or rewards that it was given; write into a new tensor."
    advantages, returns = found
    if advantages.shape != values.shape:
        return f"the advantages are {list(advantages.shape)}, but every token has one: [2, 4]."
    if not close(advantages, advantages_by_sums()):
        return _mistake_in_advantages(advantages)
    if close(returns, advantages):
        return "a return is what the value should have been: advantage + value."
    if not close(returns, torch.tensor(advantages_by_sums()) + values):
        return "the advantages are right, the returns are not: a return is advantage + value."
    return None


def _mistake_in_advantages(found: torch.Tensor) -> str:
    if close(found.flip(1), advantages_by_sums()):
        return "the tokens are in the wrong order; the loop runs backwards, the result does not."
    likely = (
        (dict(behind=lambda v: v[-1]), "the advantage of the last token must not look past the "
         "end: behind it the value is 0, not the last value again."),
        (dict(behind=lambda v: v[0]), "the advantage of the last token must not look past the "
         "end: index t + 1 (or `roll`) has come round to the first token; the value there is 0."),
        (dict(decay=0.0), "each token has its own surprise only; add gamma * lam times the "
         "advantage of the token behind it."),
        (dict(decay=LAM), "gamma is missing before the next token's advantage: gamma * lam."),
        (dict(decay=GAMMA), "lam is not used: the next token's advantage enters with gamma * lam."),
        (dict(gamma_next=1.0), "gamma is missing before the next value."),
        (dict(gamma_next=0.0), "the value of the next token is missing from the surprise."),
    )  # fmt: skip
    for kwargs, sentence in likely:
        if close(found, advantages_by_sums(**kwargs)):
            return sentence
    if not close(found[:, -1], [r[-1] - v[-1] for r, v in zip(REWARDS, VALUES, strict=True)]):
        return "begin with the last token: its advantage is its reward less its value."
    return "the last token is right; the one before it is r + gamma V' - V + gamma lam A'."


# --- the clipped loss -----------------------------------------------------------------------------

RATIOS = ((0.5, 1.1, 1.5, 0.7, 3.0), (1.4, 0.9, 0.6, 1.3, 0.1))
ADVANTAGES = ((1.0, 2.0, 1.5, -1.0, 9.0), (-2.0, 0.5, -1.0, 1.0, -9.0))
MASK = ((1, 1, 1, 1, 0), (1, 1, 1, 1, 0))
CLIPRANGE = 0.2


def loss_by_sums(
    token: Callable[[float, float, float], float], counts: bool = True, mean: bool = True
) -> float:
    """Minus the mean of `token(advantage, ratio, clipped ratio)`, one token after the other."""
    terms = []
    for ratios, advantages, mask in zip(RATIOS, ADVANTAGES, MASK, strict=True):
        for r, a, m in zip(ratios, advantages, mask, strict=True):
            if m or not counts:
                terms.append(token(a, r, min(max(r, 1 - CLIPRANGE), 1 + CLIPRANGE)))
    return -sum(terms) / (len(terms) if mean else 1)


def _right(a: float, r: float, c: float) -> float:
    return min(a * r, a * c)


@report
def check_clipped_loss(clipped_loss: Callable[..., Any]) -> str | None:
    """clipped_loss(logprobs, old_logprobs, advantages, mask, cliprange) -> the loss, one number."""
    old = torch.full((2, 5), math.log(0.1))
    given = (old + torch.tensor(RATIOS).log(), old, torch.tensor(ADVANTAGES), torch.tensor(MASK))
    found = clipped_loss(*given, CLIPRANGE)
    if mistake := not_one_number(found):
        return mistake
    found = torch.as_tensor(found).detach()
    found = found.reshape(())
    over_padding = loss_by_sums(_right) * 8 / 10  # 8 of 10 tokens count
    likely = (
        (loss_by_sums(_right), None),
        (-loss_by_sums(_right), "the sign: this is what PPO makes large, and a loss is made small. "
         "Training would make the good tokens less likely."),
        (loss_by_sums(lambda a, r, c: max(a * r, a * c)), "max and min are the wrong way round: "
         "the objective takes the smaller, the loss (with its minus) the larger of the two."),
        (loss_by_sums(lambda a, r, c: c * a), "the clipped term alone: a token that has moved the "
         "wrong way would have no gradient and stay there. Take the min with ratio * advantage."),
        (loss_by_sums(lambda a, r, c: r * a), "nothing is clipped."),
        (loss_by_sums(_right, counts=False), "the mask is not used: tokens behind the end count."),
        (over_padding, "the sum is right; divide it by the number of tokens that count "
         "(mask.sum()), not by all of them."),
        (loss_by_sums(_right, mean=False), "a sum where a mean should be: long texts would take "
         "larger steps."),
        (loss_by_sums(lambda a, r, c: _right(a, 1 / r, min(max(1 / r, 0.8), 1.2))),
         "the ratio is turned round: it is new over old, exp(logprobs - old_logprobs)."),
        (loss_by_sums(lambda a, r, c: _right(a, math.log(r), min(max(math.log(r), 0.8), 1.2))),
         "exp is missing: a difference of log-probabilities is the logarithm of the ratio."),
    )  # fmt: skip
    for number, sentence in likely:
        if math.isclose(float(found), number, rel_tol=1e-4):
            return sentence
    return f"it gives {float(found):.4f} where {loss_by_sums(_right):.4f} is right."


# --- KL -------------------------------------------------------------------------------------------

POLICY, REFERENCE = ((0.5, 0.1, 0.3), (0.2, 0.9, 0.4)), ((0.25, 0.2, 0.6), (0.4, 0.6, 0.1))


def _each(of: Callable[[float, float], float]) -> list[list[float]]:
    """`of(p, q)` for every token."""
    return [[of(p, q) for p, q in zip(*rows, strict=True)]
            for rows in zip(POLICY, REFERENCE, strict=True)]  # fmt: skip


@report
def check_kl(k1_and_k3: Callable[..., Any]) -> str | None:
    """k1_and_k3(logprobs, ref_logprobs) -> two estimates of KL for each token, both [B, T]."""
    found = k1_and_k3(torch.tensor(POLICY).log(), torch.tensor(REFERENCE).log())
    if found is None:
        return NOTHING
    if not isinstance(found, tuple | list) or len(found) != 2:
        return "return two tensors, k1 first."
    k1, k3 = (torch.as_tensor(x).detach() for x in found)
    if k1.shape != (2, 3) or k3.shape != (2, 3):
        return "every token has its own k1 and k3: both are [2, 3]; take no mean."
    if not close(k1, _each(lambda p, q: math.log(p / q))):
        if close(k1, _each(lambda p, q: math.log(q / p))):
            return "k1 has the wrong sign: it is log policy - log reference."
        return "k1 of a token with probabilities 0.5 (policy) and 0.25 (reference) is ln 2."
    if close(k3, _each(lambda p, q: q / p - 1 - math.log(q / p))):
        return None
    if close(k3, _each(lambda p, q: p / q - 1 - math.log(p / q))):
        return (
            "k3 has its ratio turned round. The texts were drawn by the policy: r is reference "
            "over policy. (trlX logged this one.)"
        )
    if bool((k3 < -1e-6).any()):
        return "k3 is never negative: it is (r - 1) - log r, and log r is at most r - 1."
    return "k3 is not (r - 1) - log r with r = reference / policy."


# --- masks and rewards ----------------------------------------------------------------------------

END = 2
RESPONSES = ((5, 7, 2, 2, 2), (4, 4, 6, 8, 9), (2, 2, 2, 2, 2), (3, 9, 8, 7, 2))
RESPONSE_MASK = ((1, 1, 1, 0, 0), (1, 1, 1, 1, 1), (1, 0, 0, 0, 0), (1, 1, 1, 1, 1))


@report
def check_mask(response_mask: Callable[..., Any]) -> str | None:
    """response_mask(response [B, T], end) -> 1 on the tokens that were drawn, else 0: [B, T]."""
    response = torch.tensor(RESPONSES)
    found = response_mask(response, END)
    if found is None:
        return NOTHING
    found = torch.as_tensor(found).float()
    if found.shape != response.shape:
        return f"every token has an entry, 0 or 1: [4, 5], and not {list(found.shape)}."
    if close(found, RESPONSE_MASK):
        return None
    if close(found, torch.ones(4, 5)):
        return "everything counts; what stands behind the end of text was not drawn."
    if close(found, 1 - torch.tensor(RESPONSE_MASK).float()):
        return "0 and 1 have changed places."
    if close(found, (response != END).float()):
        return (
            "the end of text itself is left out. It was drawn, like every token, and it has the "
            "score: without it the policy cannot learn when to stop."
        )
    if not found[1].all():
        return "the second response has no end of text: all of its tokens count."
    if not found[2, 0]:
        return "the third response ends at once: its end of text was drawn and counts."
    if found[0, 3]:
        return "behind the first end of text nothing counts; here more than one does."
    return "count up to and with the first end of text of each row, and no further."


REWARD_MASK = ((1, 1, 0), (1, 1, 1))
SCORES, BETA = (0.9, 0.2), 0.5


def rewards_by_token(beta: float, sign: float = -1.0) -> list[list[float]]:
    """Each token's reward; the score on the last token that counts."""
    kl = _each(lambda p, q: math.log(p / q))
    rows = [[sign * beta * x * m for x, m in zip(*row, strict=True)]
            for row in zip(kl, REWARD_MASK, strict=True)]  # fmt: skip
    rows[0][1] += SCORES[0]
    rows[1][2] += SCORES[1]
    return rows


@report
def check_rewards(token_rewards: Callable[..., Any]) -> str | None:
    """token_rewards(scores [B], logprobs, ref_logprobs, mask, beta) -> rewards [B, T]."""
    given = (torch.tensor(SCORES), torch.tensor(POLICY).log(), torch.tensor(REFERENCE).log(),
             torch.tensor(REWARD_MASK))  # fmt: skip
    free = token_rewards(*given, 0.0)
    if free is None:
        return NOTHING
    free, scores_only = torch.as_tensor(free), torch.tensor([[0, 0.9, 0], [0, 0, 0.2]])
    if free.shape != (2, 3):
        return f"every token has a reward: [2, 3], and not {list(free.shape)}."
    if close(free, torch.tensor([[0, 0, 0.9], [0, 0, 0.2]])):
        return (
            "the score is in the last column. The first text has only two tokens that count: its "
            "score belongs to the second, or no token of it is ever paid."
        )
    if close(free, torch.tensor([[0.9, 0.9, 0], [0.2, 0.2, 0.2]])):
        return "the score is paid at every token; long texts would be paid more often."
    if not close(free, scores_only):
        return "with beta = 0 the score, on the last token that counts, is all there is."
    found = torch.as_tensor(token_rewards(*given, BETA))
    if close(found, rewards_by_token(BETA)):
        return None
    if close(found, scores_only):
        return "beta changes nothing; where is the KL penalty?"
    if close(found, rewards_by_token(BETA, sign=1.0)):
        return "the penalty has the wrong sign: moving away from the reference would be paid."
    if close(found * torch.tensor(REWARD_MASK), rewards_by_token(BETA)):
        return "tokens that do not count pay a penalty too; multiply it by the mask."
    if close(found.sum(dim=1), torch.tensor(rewards_by_token(BETA)).sum(dim=1)):
        return "the sum of each text is right; but every token pays its own penalty."
    return "a token's reward is -beta * (logprobs - ref_logprobs), and the score on the last one."


# --- RLOO -----------------------------------------------------------------------------------------

GROUPS = ((0.9, 0.1, 0.5, 0.1), (0.7, 0.8, 0.8, 0.9))


@report
def check_rloo(leave_one_out: Callable[..., Any]) -> str | None:
    """leave_one_out(rewards [n, k]) -> each reward less the mean of the others of its prompt."""
    rewards = torch.tensor(GROUPS)
    found = leave_one_out(rewards)
    if found is None:
        return NOTHING
    found = torch.as_tensor(found)
    if found.shape != rewards.shape:
        return f"every text has an advantage: [2, 4], and not {list(found.shape)}."
    others = [[sum(row[:i] + row[i + 1 :]) / 3 for i in range(4)] for row in GROUPS]
    if close(found, rewards - torch.tensor(others)):
        return None
    own_mean = rewards - torch.tensor([[sum(row) / 4] for row in GROUPS])
    if close(found, own_mean):
        return "the mean holds the text itself; leave it out, and divide by k - 1."
    if close(found, rewards - torch.tensor(others) * 3 / 4):
        return "the others are k - 1 texts; divide their sum by k - 1."
    if close(found, torch.tensor(others)):
        return "that is the baseline; the advantage is the reward less the baseline."
    if close(found, torch.tensor(others) - rewards):
        return "the sign: a text that is better than the others has a positive advantage."
    if close(found, rewards - rewards.mean()) or close(found, rewards - rewards.mean(dim=0)):
        return (
            "the baseline mixes the prompts. A row holds the texts of one prompt, and only those "
            "say what is to be expected there."
        )
    for correction in (0, 1):
        scaled = own_mean / rewards.std(dim=1, keepdim=True, correction=correction)
        if torch.allclose(found, scaled, rtol=0.02, atol=1e-3):  # some add a little below it
            return (
                "divided by the standard deviation it is GRPO; RLOO takes the difference as it is."
            )
    return "0.9 beside 0.1, 0.5 and 0.1 has the advantage 0.9 - 0.7 / 3."
