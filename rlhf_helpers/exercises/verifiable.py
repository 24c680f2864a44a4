"""Checks of the exercises to notebook 07: pass@k, a group's advantages, length bias, a verifier.

As `checking.py` says, a check is called with the reader's function and says in one sentence
what is right or most likely wrong. It compares with numbers that are worked out in another way than
in the solution: by counting choices, or row by row in plain Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch

from .checking import NOTHING, close, report


def forgotten_keepdim(error: RuntimeError, rows: str, columns: str) -> str | None:
    """What to do where torch could not bring a mean over dim=1 and its table together."""
    if "must match the size of tensor" not in str(error):
        return None
    return (
        f"a sum, mean or deviation over dim=1 is [{rows}] and does not fit [{rows}, {columns}]: "
        f"add keepdim=True, which makes it [{rows}, 1]."
    )


# --- pass@k ---------------------------------------------------------------------------------------

CASES = ((8, 2, 1), (8, 2, 3), (8, 0, 4), (8, 8, 2), (8, 6, 4), (8, 1, 8))


def share_of_choices(n: int, right: int, k: int) -> float:
    """Of all choices of k among n samples, the share with a right one; each choice is looked at."""
    chosen = list(combinations(range(n), k))
    return sum(min(choice) < right for choice in chosen) / len(chosen)


@report
def check_pass_at_k(pass_at_k: Callable[[int, int, int], Any]) -> str | None:
    """pass_at_k(n, right, k) -> the chance that k of the n samples hold a right one."""
    found = {case: pass_at_k(*case) for case in CASES}
    if any(value is None for value in found.values()):
        return NOTHING
    if all(math.isclose(float(v), share_of_choices(*c), abs_tol=1e-6) for c, v in found.items()):
        return None
    likely = (
        (lambda n, r, k: r / n, "that is pass@1, whatever k is; k does not enter."),
        (lambda n, r, k: 1 - (1 - r / n) ** k, "1 − (1 − right/n)^k draws the same sample again "
         "and again. The k samples are different ones of the n: count choices (math.comb)."),
        (lambda n, r, k: 1 - share_of_choices(n, r, k), "that is the chance that all k are wrong: "
         "pass@k is 1 less that."),
        (lambda n, r, k: min(1.0, k * r / n), "k times pass@1 counts choices with two right "
         "samples twice."),
        (lambda n, r, k: (r / n) ** k, "that is the chance that all k are right; one is enough."),
        (lambda n, r, k: math.comb(r, k) / math.comb(n, k), "that is the chance that all k are "
         "right; one is enough. Begin with the chance that all k are wrong."),
    )  # fmt: skip
    for mistake, sentence in likely:
        if all(math.isclose(float(v), mistake(*c), abs_tol=1e-6) for c, v in found.items()):
            return sentence
    for case, value in found.items():
        if not math.isclose(float(value), share_of_choices(*case), abs_tol=1e-6):
            n, right, k = case
            return (
                f"of {n} samples {right} are right: pass@{k} is {share_of_choices(*case):.3f}, "
                f"and it gives {float(value):.3f}."
            )
    return None


# --- a group's advantages -------------------------------------------------------------------------

GROUPS = ((1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 0.0), (1.0, 1.0, 1.0, 1.0))


def alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether they are equal but for something small that was added to the deviation."""
    return torch.allclose(found, expected, rtol=0.02, atol=1e-5)


@report
def check_grpo(group_advantages: Callable[[torch.Tensor], Any]) -> str | None:
    """group_advantages(rewards [n, k]) -> less the group's mean, in its standard deviations."""
    rewards = torch.tensor(GROUPS)
    try:
        found = group_advantages(rewards)
    except RuntimeError as error:
        if sentence := forgotten_keepdim(error, "n", "k"):
            return sentence
        raise
    if found is None:
        return NOTHING
    found = torch.as_tensor(found).double()
    if found.shape != rewards.shape:
        return f"every answer has an advantage: [3, 4], and not {list(found.shape)}."
    if torch.isnan(found).any():
        return (
            "where all four answers have the same reward it gives nan, 0 / 0; add something small "
            "to the standard deviation. Equal rewards teach nothing: 0."
        )
    centred = torch.tensor([[r - sum(row) / 4 for r in row] for row in GROUPS]).double()
    for divisor in (3, 4):  # of the variance: either is in use
        expected = []
        for row in centred.tolist():
            deviation = math.sqrt(sum(x * x for x in row) / divisor)
            expected.append([x / (deviation or 1) for x in row])
        expected = torch.tensor(expected).double()
        if alike(found, expected):
            return None
        if alike(found[:2], expected[:2]):
            return "equal rewards teach nothing: all advantages of such a group have to be 0."
        if alike(found, -expected):
            return "the sign: an answer better than the group's mean has a positive advantage."
    if close(found, centred):
        return "the mean is taken off; now divide by the group's standard deviation."
    of_others = [[r - (sum(row) - r) / 3 for r in row] for row in GROUPS]
    if close(found, of_others):
        return (
            "these are RLOO's, each less the mean of the others: take off the mean of all k, and "
            "divide by their standard deviation."
        )
    whole = rewards.double()
    for x in (whole - whole.mean(), (whole - whole.mean()) / whole.std(), whole - whole.mean(0)):
        if alike(found, x):
            return "it mixes the problems. A row holds the answers to one problem: use dim=1."
    return "the first row has the mean 1/4 and the deviation 1/2: its first advantage is 1.5."


# --- length bias ----------------------------------------------------------------------------------

LENGTHS = (2, 5, 1, 4)


@report
def check_token_weights(token_weights: Callable[[torch.Tensor], Any]) -> str | None:
    """token_weights(mask [B, T]) -> two [B, T]: of the mean of means, and of the one mean."""
    mask = torch.tensor([[1.0] * n + [0.0] * (5 - n) for n in LENGTHS])
    try:
        found = token_weights(mask.clone())
    except RuntimeError as error:
        if sentence := forgotten_keepdim(error, "B", "T"):
            return sentence
        raise
    if found is None:
        return NOTHING
    if not isinstance(found, tuple | list) or len(found) != 2:
        return "return two tensors: the weights in the mean of means, and in the one mean."
    by_answer, by_token = (torch.as_tensor(x).double() for x in found)
    if by_answer.shape != mask.shape or by_token.shape != mask.shape:
        return "every token has a weight: both are [B, T], as the mask is."
    if by_answer[mask == 0].any() or by_token[mask == 0].any():
        return "tokens behind the end count; multiply by the mask."
    right = [[[1 / 4 / n] * n + [0] * (5 - n) for n in LENGTHS],
             [[1 / 12] * n + [0] * (5 - n) for n in LENGTHS]]  # fmt: skip
    if close(by_answer, right[0]) and close(by_token, right[1]):
        return None
    if close(by_answer, right[1]) and close(by_token, right[0]):
        return "the two are in the wrong order: the mean of means comes first."
    if close(by_answer / by_answer.sum(), right[0]) and close(by_token / by_token.sum(), right[1]):
        return "a mean's weights add up to 1; one of yours adds up to something else."
    if not close(by_answer, right[0]):
        if close(by_answer, mask / mask.numel()) or close(by_answer, mask / 20):
            return "the first divides by the width of the batch; an answer's own length counts."
        return "in the mean of means a token of an answer of n tokens weighs 1 / (B n)."
    return "in the one mean every token that counts weighs the same: 1 over their number."


# --- a verifier -----------------------------------------------------------------------------------

WORKED_OUT = "it works sums out for the policy: `145+1` is no answer yet."
# output, right answer, is it right, what somebody who decides otherwise has done
OUTPUTS = (
    ("146", "146", True, "it refuses the plain right answer."),
    ("168-22=146", "146", True, "it refuses a right answer behind running totals."),
    ("-4", "-4", True, "it refuses a negative answer."),
    ("147", "146", False, "it pays for a wrong number."),
    ("138+18=138-1=1=1", "138", False,
     "it pays for the number anywhere: `138+18=138-1=1=1` ends in 1."),
    ("146=147", "146", False, "the last number counts, not the first: `146=147` is wrong."),
    ("1146", "146", False, "it looks for the answer's digits within a number: `1146` is not 146."),
    ("4", "-4", False, "the sign is lost: 4 is not −4."),
    ("-146", "146", False, "the sign is lost: −146 is not 146."),
    ("146=", "146", False, "nothing stands behind the last equals sign of `146=`: no answer."),
    ("", "0", False, "it pays for an empty output."),
    ("145+1", "146", False, WORKED_OUT),
    ("146+1", "146", False,
     "it takes a number out of an unfinished sum: `146+1` is no answer yet."),
    ("9+146", "146", False,
     "it takes a number out of an unfinished sum: `9+146` is no answer yet."),
    ("146+", "146", False, "it takes a number out of an unfinished sum: `146+` is no answer yet."),
    ("1_46", "146", False,
     "`int()` reads `1_46` as 146, but 146 is not what was written: compare texts."),
)  # fmt: skip


@report
def check_verifier(verifier: Callable[..., Any]) -> str | None:
    """verifier(outputs, answer, **kwargs) -> 1.0 for each right output, else 0.0."""
    outputs, answers = [case[0] for case in OUTPUTS], [case[1] for case in OUTPUTS]
    try:
        found = verifier(outputs=outputs, answer=answers, samples=outputs, prompts=outputs)
    except TypeError as error:
        if "samples" in str(error) or "prompts" in str(error):
            return "it does not take **kwargs, by which a trainer hands over more than it needs."
        raise
    except ValueError as error:
        if "invalid literal for int()" in str(error) or "could not convert" in str(error):
            return (
                "it makes a number of every output, and a policy writes anything: nothing stands "
                "behind the last equals sign of `146=`. Compare texts."
            )
        raise
    except SyntaxError as error:
        if error.filename == "<string>":  # of eval, at `146+`
            return WORKED_OUT
        raise
    if found is None:
        return NOTHING
    if len(found) != len(OUTPUTS):
        return f"{len(found)} numbers for {len(OUTPUTS)} outputs; give one for each."
    for (*_, is_right, sentence), score in zip(OUTPUTS, found, strict=True):
        if float(score) not in (0.0, 1.0):
            return f"it gives {float(score):g}; here an answer is right (1.0) or wrong (0.0)."
        if bool(score) != is_right:
            return sentence
    return None
