"""A simulated annotator: who really wants something, and says so with noise.

With a classifier as the truth ("gold"), one can measure what no real project can: how far what a
reward model has learned agrees with what was wanted (Gao, Schulman and Hilton 2023,
arXiv:2210.10760).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlhf_helpers.config.checks import ConfigError

from .preferences import Candidates, Pair

Numbers = npt.NDArray[np.float64]
SMALLEST = 1e-6  # of a probability and of its complement, so that logits stay finite


@dataclass(frozen=True)
class Gold:
    """What is wanted of a text, as one number: sentiment, or sentiment and fluency.

    With `fluency_weight` 0 it is the logit of P(POSITIVE). Else it is the sum of that logit and
    `fluency_weight` times the mean log-probability of the text's tokens under the untuned model,
    both in standard deviations of the untuned model's texts, whose moments are kept here.
    """

    fluency_weight: float = 0.0
    sentiment_mean: float = 0.0
    sentiment_std: float = 1.0
    fluency_mean: float = 0.0
    fluency_std: float = 1.0

    @classmethod
    def measured_on(
        cls, positive: npt.ArrayLike, fluency: npt.ArrayLike | None, fluency_weight: float
    ) -> Gold:
        """The gold whose units are those of these texts, of the untuned model.

        positive [n]: P(POSITIVE); fluency [n]: nats a token, or None where it has no weight.
        """
        if fluency_weight == 0 or fluency is None:
            return cls()
        sentiment, fluent = logit(positive), np.asarray(fluency, dtype=np.float64)
        if len(sentiment) < 2 or not (sentiment.std() > 0 and fluent.std() > 0):
            raise ConfigError(
                "The texts that gold is measured on are all alike: give at least two that differ "
                "in sentiment and in fluency."
            )
        return cls(
            fluency_weight, float(sentiment.mean()), float(sentiment.std()),
            float(fluent.mean()), float(fluent.std()),
        )  # fmt: skip

    @property
    def name(self) -> str:
        """What files call it."""
        return "sentiment and fluency" if self.fluency_weight else "sentiment"

    def of(self, positive: npt.ArrayLike, fluency: npt.ArrayLike | None = None) -> Numbers:
        """Gold of n texts, [n]: from P(POSITIVE) [n] and nats a token [n]."""
        sentiment = logit(positive)
        if not self.fluency_weight:
            return sentiment
        fluent = (np.asarray(fluency, dtype=np.float64) - self.fluency_mean) / self.fluency_std
        return (
            sentiment - self.sentiment_mean
        ) / self.sentiment_std + self.fluency_weight * fluent


def logit(probability: npt.ArrayLike) -> Numbers:
    """log(p / (1 - p)), with p kept a millionth away from 0 and 1: [n] -> [n]."""
    p = np.clip(np.asarray(probability, dtype=np.float64), SMALLEST, 1 - SMALLEST)
    return np.log(p) - np.log1p(-p)


def annotate(
    candidates: Sequence[Candidates],
    difference: npt.ArrayLike,
    temperature: float,
    random_share: float,
    seed: int,
) -> list[Pair]:
    """What the simulated annotator answers: Bradley-Terry on gold, a share of answers at random.

    difference [n]: gold of each first text less that of the second; see
    algorithms/preferences.py for the probability. The same seed gives the same answers.
    ConfigError where two texts of a pair are equal, since nobody can prefer one.
    """
    import torch

    from rlhf_helpers.algorithms.preferences import preference_probability

    for i, pair in enumerate(candidates):
        if pair.first == pair.second:
            raise ConfigError(f"pair {i} has twice the text {pair.first!r}: leave it out.")
    gaps = torch.tensor(np.asarray(difference), dtype=torch.float64)
    p = preference_probability(gaps, temperature, random_share).numpy()
    prefers_first = np.random.default_rng(seed).random(len(p)) < p
    return [
        Pair(c.prompt, c.first, c.second) if first else Pair(c.prompt, c.second, c.first)
        for c, first in zip(candidates, prefers_first, strict=True)
    ]
