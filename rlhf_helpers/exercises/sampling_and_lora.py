"""Checks of the exercises to notebooks 02 and 03: each names the mistake that it finds.

What they have in common stands in `checking.py`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch

from .checking import NOTHING, close, report

LOGITS = (2.0, 1.0, 0.0, -1.0)


# --- 02: sampling ---------------------------------------------------------------------------------


@report
def check_temperature(with_temperature: Callable[[torch.Tensor, float], Any]) -> str | None:
    """with_temperature(logits [V], t) -> probabilities [V], softmax of logits / t."""
    logits = torch.tensor(LOGITS)
    plain = [math.exp(x) for x in LOGITS]
    plain = [x / sum(plain) for x in plain]
    found = with_temperature(logits.clone(), 1.0)
    if found is None:
        return NOTHING
    if close(found, LOGITS):
        return "it returns logits; turn them into probabilities with softmax."
    if not close(found, plain):
        return "at temperature 1 it has to give the plain softmax of the logits."
    cold = torch.as_tensor(with_temperature(logits.clone(), 0.5)).double()
    expected = torch.tensor([p * p for p in plain]).double()  # exp(2x) is exp(x) squared
    if close(cold, expected / expected.sum()):
        hot = with_temperature(logits.clone(), 100.0)
        return None if float(max(hot) - min(hot)) < 0.02 else "a high temperature must even out."
    if close(cold, plain):
        return "the temperature changes nothing; is it used?"
    if not math.isclose(float(cold.sum()), 1, abs_tol=1e-4):
        return (
            "at temperature 0.5 the probabilities do not add up to 1; divide the logits before "
            "the softmax, not the probabilities after it."
        )
    if float(cold[0]) < plain[0]:
        return (
            "a low temperature has to make the likeliest token likelier; divide by it, do not "
            "multiply."
        )
    return "at temperature 0.5 the probabilities are not softmax(logits / 0.5)."


@report
def check_top_k(top_k: Callable[[torch.Tensor, int], Any]) -> str | None:
    """top_k(probabilities [V], k) -> the k largest, renormalised, where they were; else 0."""
    probabilities = torch.tensor([0.1, 0.4, 0.2, 0.05, 0.25])
    given = probabilities.clone()
    found = top_k(given, 2)
    if found is None:
        return NOTHING
    found = torch.as_tensor(found).double()
    if found.shape != probabilities.shape:
        return (
            "it has to return one probability for every token, 0 for those that are left out; "
            f"the shape is {list(found.shape)} and not [5]."
        )
    if not close(given, probabilities):
        return "it changes the tensor that it was given; work on a copy (`.clone()`)."
    if close(found, [0, 0.4, 0, 0, 0.25]):
        return "what is left does not add up to 1; divide by its sum."
    if found[3] > 0 and found[1] == 0:
        return "it keeps the smallest ones; keep the k largest."
    if not close(found, [0, 0.4 / 0.65, 0, 0, 0.25 / 0.65]):
        return "of (0.1, 0.4, 0.2, 0.05, 0.25) with k = 2 only 0.4 and 0.25 may stay, over 0.65."
    if not close(top_k(probabilities.clone(), 5), probabilities):
        return "with k as large as the vocabulary nothing may change."
    return None


# They differ in what the task proposes: length, exclamation marks, words, a rhyme.
HONEST = (
    "A fine film, and I will see it again.",
    "Too long! I left after an hour!",
    "It rained all night.\nThe hall had no light.",
)
SAMPLES = (*HONEST, "")


def as_number(reward: Any) -> float:
    """A number of Python, numpy or torch as a float; nan for what is no number."""
    try:
        return math.nan if isinstance(reward, str | bytes) else float(reward)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last: of several numbers
        return math.nan


@report
def check_reward(reward_fn: Callable[..., Any]) -> str | None:
    """reward_fn(samples, **kwargs) -> one finite number for each sample, from that sample alone."""
    parameters = inspect.signature(reward_fn).parameters.values()
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return "it does not take **kwargs; training also gives it prompts=... and outputs=...."
    samples = list(SAMPLES)

    def call(texts: list[str]) -> Any:
        return reward_fn(samples=texts, prompts=[""] * len(texts), outputs=texts)

    found = call(samples)
    if found is None:
        return NOTHING
    try:
        found = [as_number(x) for x in found]
    except TypeError:  # nothing to go through
        return "it returns one number for all; return a list with one number for each sample."
    if len(found) != len(samples):
        return f"it returns {len(found)} numbers for {len(samples)} samples."
    if not all(math.isfinite(x) for x in found):
        return "every reward has to be a finite number, that of an empty text as well."
    if [as_number(x) for x in call(samples[::-1])] != found[::-1]:
        return (
            "in another order the samples get other rewards; each reward has to come from its own "
            "sample alone, in the order of the samples."
        )
    if len(set(found)) == 1:
        return (
            "all samples get the same reward; nothing can be learnt from that. They are: "
            f"{', '.join(map(repr, SAMPLES))}."
        )
    return None


@report
def check_gamed(reward_fn: Callable[..., Any], gamed: str | None) -> str | None:
    """`gamed` is a text that no reader likes and that beats every honest one; None: still open."""
    if gamed is None:
        raise NotImplementedError
    if not isinstance(gamed, str):
        return f"`gamed` is not a text but of the type {type(gamed).__name__}."
    *honest, found = (as_number(x) for x in reward_fn(samples=[*HONEST, gamed]))
    if gamed in HONEST:
        return "that is one of the honest texts; write one that cheats."
    if not found > max(honest):
        return f"it scores {found:.3g}, and an honest text {max(honest):.3g}; find a higher one."
    return None


# --- 03: LoRA -------------------------------------------------------------------------------------


@report
def check_count(lora_size: Callable[[int, int, int], Any]) -> str | None:
    """lora_size(width_in, width_out, rank) -> how many numbers A and B have together."""
    found = lora_size(768, 192, 16)
    if found is None:
        return NOTHING
    expected = 16 * 768 + 192 * 16  # rows times columns of A, and of B
    if found == expected:
        return None if lora_size(5, 3, 1) == 8 else "for 5 inputs, 3 outputs and rank 1 it is 8."
    likely = {
        768 * 192: "that is the size of W; LoRA trains the thin matrices A and B.",
        16 * 768: "that is A alone; B has numbers too.",
        192 * 16: "that is B alone; A has numbers too.",
        2 * 16 * 768: "A and B differ in size: A is rank × in, B is out × rank.",
        2 * 16 * 192: "A and B differ in size: A is rank × in, B is out × rank.",
        16 * 768 * 192: "add the sizes of A and B, do not multiply in and out.",
    }
    return likely.get(found, f"for 768 inputs, 192 outputs and rank 16 it is {expected:,}.")


@report
def check_start(start_lora: Callable[[int, int, int], Any]) -> str | None:
    """start_lora(width_in, width_out, rank) -> (A, B): B A is zero, and both can learn."""
    found = start_lora(6, 4, 2)
    if found is None:
        return "it returns None; return the two matrices, A first."
    A, B = (torch.as_tensor(matrix).detach().double() for matrix in found)
    if (A.shape, B.shape) == ((4, 2), (2, 6)):
        return "A and B have changed places: A is rank × in, B is out × rank."
    if (A.shape, B.shape) != ((2, 6), (4, 2)):
        return (
            f"A is {list(A.shape)} and B {list(B.shape)}, but A has to be [rank, in] = [2, 6] "
            "and B [out, rank] = [4, 2]."
        )
    if not A.any() and not B.any():
        return "with both at zero neither gets a gradient, and nothing is ever learnt."
    if (B @ A).any():
        return "B A is not zero: the policy would not start at the model that was there."
    # A row of A and its column of B learn together: one unit of the rank.
    if torch.linalg.matrix_rank(torch.cat([A, B.T], dim=1)) < 2:
        which = "rows of A" if A.any() else "columns of B"
        return (
            f"the {which} are all alike, or multiples of one: they get the same gradient, or "
            "multiples of one, and stay so. B A would never have more than rank 1; draw them at "
            "random."
        )
    return None


@report
def check_merge(merge: Callable[..., Any]) -> str | None:
    """merge(W, A, B, alpha) -> one matrix [out, in] that computes what W with LoRA does."""
    generator = torch.Generator().manual_seed(0)
    W, A, B = (torch.randn(size, generator=generator) for size in ((4, 6), (2, 6), (4, 2)))
    x, alpha = torch.randn(3, 6, generator=generator), 3.0
    kept = W.clone()
    found = merge(W, A, B, alpha)
    if found is None:
        return NOTHING
    if not close(W, kept):
        return "it changes W itself; the frozen matrix is still needed, for the reference policy."
    found = torch.as_tensor(found).detach()
    if found.shape != W.shape:
        return f"the result is {list(found.shape)} and not [4, 6], the shape of W; it is B @ A."
    added = x @ A.T @ B.T  # two thin products, as in the layer
    outputs = x @ found.T - x @ W.T
    if close(outputs, 0 * added):
        return "nothing was added to W."
    factors = {
        alpha / 2: None,
        1.0: "the scale alpha / r is missing.",
        alpha: "the scale is alpha / r, not alpha; r is the number of rows of A.",
        2 / alpha: "the scale is turned round: it is alpha / r.",
        alpha / 6: "r is the number of rows of A (2 here), not of its columns.",
        alpha / 4: "r is the number of columns of B (2 here), not of its rows.",
        -alpha / 2: "LoRA is added to W, not taken away.",
    }
    for factor, mistake in factors.items():
        if close(outputs, factor * added):
            return mistake
    return "x times the merged matrix is not W x + (alpha / r) B A x."
