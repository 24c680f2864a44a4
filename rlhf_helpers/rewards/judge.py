"""An independent judge of sentiment: n-gram counts and logistic regression.

No training run ever sees it. It differs from the reward model in family (a linear model
on word 1- and 2-grams, no transformer) and in labels (buckets 1-3 of the reviews and the
Rotten Tomatoes snippets; the reward model learns from buckets 4-9). Where the reward
rises and this judge does not follow, the reward is being gamed.

`python -m rlhf_helpers train-judge` trains it again (making/train_judge.py).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rlhf_helpers.data.assets import ARTIFACTS, SUMS, AssetError, file_sha256, read_sums

JUDGE_DIR = ARTIFACTS / "ngram-judge"
VECTORIZER = dict(
    ngram_range=(1, 2),
    sublinear_tf=True,
    token_pattern=r"\w+|[!?]",
    dtype=np.float32,
)


class JudgeError(AssetError):
    """The stored judge is missing or is not the one its checksums describe."""


class JudgeModel:
    """P(positive) of a text, from weights of word 1- and 2-grams."""

    def __init__(
        self,
        features: Sequence[str],
        idf: npt.NDArray[np.floating],
        weights: npt.NDArray[np.floating],
        bias: float,
    ) -> None:
        """`features`, `idf` and `weights` are aligned, one entry for each n-gram."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        if not len(features) == len(idf) == len(weights):
            raise JudgeError(
                f"The judge has {len(features)} features, {len(idf)} idf values and "
                f"{len(weights)} weights: train it again with python -m rlhf_helpers train-judge."
            )
        self.features, self.idf, self.weights, self.bias = list(features), idf, weights, bias
        self._vectorizer = TfidfVectorizer(vocabulary=self.features, **VECTORIZER)
        self._vectorizer.idf_ = np.asarray(idf, dtype=np.float32)

    def score(self, texts: Sequence[str]) -> list[float]:
        """P(positive) of each text, 0 to 1; a text without a known n-gram gets the bias's."""
        if not len(texts):
            return []
        logits = self._vectorizer.transform(texts) @ self.weights + self.bias
        return (1 / (1 + np.exp(-logits.astype(np.float64)))).tolist()

    def top_features(self, n: int = 10) -> tuple[list[str], list[str]]:
        """The `n` n-grams that speak most strongly against and for a positive review."""
        order = np.argsort(self.weights)
        return [self.features[i] for i in order[:n]], [self.features[i] for i in order[::-1][:n]]

    def save(self, out_dir: Path) -> None:
        """Write judge.npz: plain arrays, no pickled objects."""
        temporary = out_dir / "judge.npz.part"
        with temporary.open("wb") as file:
            np.savez_compressed(
                file,
                features=np.frombuffer("\n".join(self.features).encode(), dtype=np.uint8),
                idf=np.asarray(self.idf, dtype=np.float32),
                weights=np.asarray(self.weights, dtype=np.float32),
                bias=np.float32(self.bias),
            )
        os.replace(temporary, out_dir / "judge.npz")


def load_judge(directory: str | Path = JUDGE_DIR) -> JudgeModel:
    """The judge stored in `directory`, its file checked against SHA256SUMS first."""
    path = Path(directory) / "judge.npz"
    remedy = f"make it again with python -m rlhf_helpers train-judge --out {directory}"
    for needed in (path, path.with_name(SUMS)):
        if not needed.is_file():
            raise JudgeError(f"The judge's file {needed} is missing: {remedy}.")
    if file_sha256(path) != read_sums(path.parent).get(path.name):
        raise JudgeError(f"{path} does not have the hash in {SUMS}: {remedy}.")
    with np.load(path, allow_pickle=False) as stored:
        features = stored["features"].tobytes().decode().split("\n")
        return JudgeModel(features, stored["idf"], stored["weights"], float(stored["bias"]))


class ClassifierJudge:
    """A sentiment classifier of another family as the judge, where a profile names one."""

    def __init__(self, name: str) -> None:
        from .reward import sentiment_reward

        self._reward_fn = sentiment_reward(name)

    def score(self, texts: Sequence[str]) -> list[float]:
        """P(positive) of each text, 0 to 1."""
        return self._reward_fn(samples=list(texts))


def judge_by_name(name: str) -> JudgeModel | ClassifierJudge:
    """The judge that a profile's `assets.judge` names; anything with `score(texts)`."""
    return load_judge() if name == JUDGE_DIR.name else ClassifierJudge(name)
