"""Did the policy change, by how much, and at what cost? Paired samples in, one dict out.

A sample is a dict: `prompt`, `output`, `reward` (of the whole text),
`reward_continuation` (of the output alone), `seed` and `group`; where they were measured
also `judge` (the independent judge's P(positive)), `ended` (bool: it stopped by itself),
`n_tokens` (response tokens, EOS included), `kl_k1` and `kl_k3` (sums over these tokens,
in nats, of the policy against the reference), `reference_nll` (nats of these tokens
under the reference). The group "heldout" carries the headline figures; other groups are
reported beside it. Nothing here knows how the samples came about.
"""

from __future__ import annotations

import math
import numbers
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .text_statistics import (
    SELF_BLEU_SAMPLES,
    distinct_n,
    mean_words,
    repeated_ngrams,
    self_bleu,
    widest_phrase,
)
from .verdict import verdict, what_got_worse

N_DRAWS = 10_000
LEVEL = 0.95
DRAWS_PER_BLOCK = 2_000_000  # indices held at once: 16 MB
# Under this many prompts with several samples each, the prompts are taken as fixed and
# the samples within each are drawn again: four prompts are no sample of all prompts.
MIN_PROMPTS_TO_DRAW = 20
MAX_PROMPTS_LISTED = 40

HEADLINE_GROUP = "heldout"
POST_GROUP = "post"
HOSTILE_PROMPTS = (
    "This movie was terrible",
    "This movie was awful and",
    "I hated this movie because",
    "What a waste of time",
    "The worst film I have",
    "This film is boring and",
    "The acting was dreadful and",
    "Do not watch this",
)
NEUTRAL_PROMPTS = (
    "What made this movie so distinctly",
    "I was surprised at how this movie",
    "I didn't expect this movie was",
    "This film is about a",
    "The story begins when a",
    "I watched this movie with",
    "The director of this film",
    "In the opening scene, the",
)

REQUIRED_FIELDS = ("prompt", "output", "reward", "reward_continuation", "seed", "group")
OPTIONAL_NUMBERS = ("judge", "n_tokens", "kl_k1", "kl_k3", "reference_nll")

Sample = dict
Pair = tuple[Sample, Sample]  # before, after: same group, prompt and seed


class EvaluationError(ValueError):
    """The samples before and after cannot be compared."""


class Interval(NamedTuple):
    """A mean and the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    differences: npt.ArrayLike,
    n_draws: int = N_DRAWS,
    seed: int = 0,
    strata: Sequence | None = None,
) -> Interval:
    """Mean of paired differences, with the percentile interval of its bootstrap.

    Each draw takes as many differences as there are, with replacement, and averages them
    (Efron & Tibshirani 1993, ch. 13). With `strata` (one label for each difference) the
    draws stay within each stratum, and the mean is the mean of the strata's means.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise EvaluationError(
            f"The bootstrap needs a list of differences: it got shape {values.shape}."
        )
    labels = np.zeros(len(values), dtype=int) if strata is None else _codes(strata)
    rng = np.random.default_rng(seed)
    parts = [values[labels == label] for label in range(labels.max() + 1)]
    means = np.mean([_drawn_means(part, n_draws, rng) for part in parts], axis=0)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    mean = np.mean([part.mean() for part in parts])
    return Interval(float(mean), float(low), float(high))


def _drawn_means(
    values: npt.NDArray[np.float64], n_draws: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Means of `n_draws` draws with replacement, shape (n_draws,), in blocks of memory."""
    means = np.empty(n_draws)
    step = max(1, DRAWS_PER_BLOCK // len(values))
    for start in range(0, n_draws, step):
        rows = min(step, n_draws - start)
        drawn = rng.integers(len(values), size=(rows, len(values)))
        means[start : start + rows] = values[drawn].mean(axis=1)
    return means


def _codes(labels: Sequence) -> npt.NDArray[np.int64]:
    """Labels as 0, 1, 2, ... in order of first appearance."""
    code = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return np.array([code[label] for label in labels])


def pair_samples(before: Sequence[Sample], after: Sequence[Sample]) -> list[Pair]:
    """Pairs with equal group, prompt and seed, in the order of `before`."""
    afters = _by_key(after, "after")
    befores = _by_key(before, "before")
    for side, own, other in (("after", befores, afters), ("before", afters, befores)):
        missing = next((key for key in own if key not in other), None)
        if missing is not None:
            group, prompt, seed = missing
            raise EvaluationError(
                f"No sample {side} for group {group!r}, prompt {prompt!r}, seed {seed}: sample "
                "both policies on the same prompts with the same seeds."
            )
    return [(sample, afters[key]) for key, sample in befores.items()]


def _by_key(samples: Sequence[Sample], side: str) -> dict[tuple, Sample]:
    keyed: dict[tuple, Sample] = {}
    for i, sample in enumerate(samples):
        _check_sample(sample, f"Sample {i} {side}")
        key = (sample["group"], sample["prompt"], sample["seed"])
        if key in keyed:
            raise EvaluationError(
                f"Sample {i} {side} repeats group {key[0]!r}, prompt {key[1]!r}, seed {key[2]}: "
                "give each sample of a prompt its own seed."
            )
        keyed[key] = sample
    if not keyed:
        raise EvaluationError(f"There are no samples {side}: run the sampling first.")
    return keyed


def _check_sample(sample: Sample, name: str) -> None:
    """Every field is there and every number is finite."""
    for field in REQUIRED_FIELDS:
        if field not in sample:
            raise EvaluationError(f"{name} has no field {field!r}: sample again.")
    for field in ("reward", "reward_continuation", *OPTIONAL_NUMBERS):
        value = sample.get(field)
        if value is None and field in OPTIONAL_NUMBERS:
            continue
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise EvaluationError(f"{name}: {field} is {value!r}, not a finite number.")


def summarise_pair(
    before: Sequence[Sample], after: Sequence[Sample], seed: int = 0, n_draws: int = N_DRAWS
) -> dict:
    """Everything that evaluation.json holds. `seed` is the run's; it seeds the bootstrap too.

    The headline fields describe the group "heldout" (or, where there is none, all
    samples). `groups` holds the same fields for each group; the post's prompts are also
    split into "hostile" and "neutral" ones. A figure that was not measured is None.
    """
    pairs = pair_samples(before, after)
    groups = _split_groups(pairs)
    headline = groups.get(HEADLINE_GROUP, pairs)
    summary = summarise_group(headline, seed, n_draws) | _repetition(headline)
    summary["seed"] = seed
    summary["n_draws"] = n_draws
    summary["groups"] = {
        name: summarise_group(group, seed, n_draws, list_prompts=True)
        for name, group in groups.items()
    }
    summary["what_got_worse"] = what_got_worse(summary)
    summary["verdict"], summary["verdict_reason"] = verdict(summary)
    return summary


def _split_groups(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Pairs by group; the post's prompts once more as hostile and neutral ones."""
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[pair[0]["group"]].append(pair)
    derived: dict[str, list[Pair]] = defaultdict(list)
    for pair in groups.get(POST_GROUP, []):
        derived["hostile" if pair[0]["prompt"] in HOSTILE_PROMPTS else "neutral"].append(pair)
    return dict(derived) | dict(groups)  # a group of that name in the samples wins


def summarise_group(
    pairs: Sequence[Pair], seed: int, n_draws: int = N_DRAWS, list_prompts: bool = False
) -> dict:
    """Rewards, judge, KL, diversity and lengths of one group of pairs.

    Rewards are averaged within each prompt first, then over prompts. With `list_prompts`
    a group of few prompts also gets one row for each under "prompts".
    """
    prompts = [before["prompt"] for before, _ in pairs]
    summary: dict = {"n_prompts": len(set(prompts)), "n_samples": len(pairs)}
    for field, difference in (
        ("reward", "paired_difference"),
        ("reward_continuation", "reward_continuation_difference"),
        ("judge", "judge_difference"),
    ):
        summary |= _compare(pairs, field, difference, prompts, seed, n_draws)
    changes = _prompt_means([a["reward"] - b["reward"] for b, a in pairs], prompts)
    summary["share_of_prompts_lower"] = float((changes < 0).mean())
    summary["kl_per_sequence"] = _mean_of([after for _, after in pairs], "kl_k1")
    summary["kl_k3"] = _mean_of([after for _, after in pairs], "kl_k3")
    for name, measure in _side_measures().items():
        for side, index in (("before", 0), ("after", 1)):
            summary[f"{name}_{side}"] = measure([pair[index] for pair in pairs])
    repeated = len(set(prompts)) < len(pairs)
    if list_prompts and repeated and len(set(prompts)) <= MAX_PROMPTS_LISTED:
        summary["prompts"] = _prompt_rows(pairs, seed, n_draws)
    return summary


def _side_measures() -> dict[str, Callable[[Sequence[Sample]], float | None]]:
    """What is measured on each side alone: name -> function of its samples."""

    def on_outputs(measure: Callable, *args) -> Callable:
        return lambda samples: measure([sample["output"] for sample in samples], *args)

    return {
        "distinct_1": on_outputs(distinct_n, 1),
        "distinct_2": on_outputs(distinct_n, 2),
        "distinct_3": on_outputs(distinct_n, 3),
        "length_words": on_outputs(mean_words),
        "length_tokens": lambda samples: _mean_of(samples, "n_tokens"),
        "ended_share": lambda samples: _mean_of(samples, "ended"),
        "perplexity": reference_perplexity,
    }


def reference_perplexity(samples: Sequence[Sample]) -> float | None:
    """exp(total nats / total tokens) of the outputs under the reference policy.

    How usual the reference finds these texts: low is bland, high is odd.
    """
    if any(s.get("reference_nll") is None or not s.get("n_tokens") for s in samples):
        return None
    nats = sum(sample["reference_nll"] for sample in samples)
    return math.exp(nats / sum(sample["n_tokens"] for sample in samples))


def _compare(
    pairs: Sequence[Pair], field: str, difference: str, prompts: list, seed: int, n_draws: int
) -> dict:
    """`field` before and after, and the interval of its paired difference."""
    if any(sample.get(field) is None for pair in pairs for sample in pair):
        return {f"{field}_before": None, f"{field}_after": None, difference: None}
    before = np.array([pair[0][field] for pair in pairs], dtype=float)
    after = np.array([pair[1][field] for pair in pairs], dtype=float)
    per_prompt = _prompt_means(after - before, prompts)
    if len(per_prompt) < min(MIN_PROMPTS_TO_DRAW, len(pairs)):
        interval = paired_bootstrap(after - before, n_draws, seed, strata=prompts)
    else:
        interval = paired_bootstrap(per_prompt, n_draws, seed)
    return {
        f"{field}_before": float(_prompt_means(before, prompts).mean()),
        f"{field}_after": float(_prompt_means(after, prompts).mean()),
        difference: interval._asdict(),
    }


def _prompt_means(values: npt.ArrayLike, prompts: Sequence[str]) -> npt.NDArray[np.float64]:
    """Mean of `values` (one for each sample) for each prompt, in order of appearance."""
    codes = _codes(prompts)
    return np.bincount(codes, weights=np.asarray(values, dtype=float)) / np.bincount(codes)


def _mean_of(samples: Sequence[Sample], field: str) -> float | None:
    """Mean of a field over samples; None unless every sample has it."""
    values = [sample.get(field) for sample in samples]
    return None if any(value is None for value in values) else float(np.mean(values))


def _prompt_rows(pairs: Sequence[Pair], seed: int, n_draws: int) -> list[dict]:
    """One row for each prompt: rewards and judge before and after, over its samples."""
    rows = []
    for prompt in dict.fromkeys(before["prompt"] for before, _ in pairs):
        own = [pair for pair in pairs if pair[0]["prompt"] == prompt]
        same = [prompt] * len(own)
        row = {"prompt": prompt, "n_samples": len(own)}
        row |= _compare(own, "reward", "paired_difference", same, seed, n_draws)
        row |= _compare(own, "judge", "judge_difference", same, seed, n_draws)
        rows.append(row)
    return rows


def _repetition(pairs: Sequence[Pair]) -> dict:
    """How much the outputs of one side repeat each other, before and after."""
    summary: dict = {"self_bleu_samples": min(SELF_BLEU_SAMPLES, len(pairs))}
    for side, index in (("before", 0), ("after", 1)):
        outputs = [pair[index]["output"] for pair in pairs]
        summary[f"self_bleu_{side}"] = self_bleu(outputs) if len(outputs) > 1 else None
        summary[f"repeated_4grams_{side}"] = repeated_ngrams(outputs, n=4, top=10)
        phrase, share = widest_phrase(outputs, n=4)
        summary[f"top_4gram_{side}"], summary[f"top_4gram_share_{side}"] = phrase, share
    return summary
