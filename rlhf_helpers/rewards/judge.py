"""An independent judge of sentiment: n-gram counts and logistic regression.

No training run ever sees it. It differs from the reward model in family (a linear model
on word 1- and 2-grams, no transformer) and in labels (buckets 1-3 of the reviews and the
Rotten Tomatoes snippets; the reward model learns from buckets 4-9). Where the reward
rises and this judge does not follow, the reward is being gamed.

`python -m rlhf_helpers.rewards.judge` trains it again, in under a minute on one CPU core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rlhf_helpers.data.assets import AssetError, read_sums

JUDGE_DIR = Path(__file__).resolve().parents[1] / "artifacts" / "ngram-judge"
JUDGE_BUCKETS = range(1, 4)
HELD_OUT_BUCKET = 0

CROP_WORDS = 40  # about the length of the samples it will judge
CROPS_PER_REVIEW = 3  # one from the start of the review, the others from anywhere
MAX_FEATURES = 40_000
# The inverse strength of the regularisation, chosen on bucket 3 among 0.3, 1 and 4.
INVERSE_REGULARISATION = 1.0
VECTORIZER = dict(
    ngram_range=(1, 2),
    sublinear_tf=True,
    token_pattern=r"\w+|[!?]",
    dtype=np.float32,
)

Report = Callable[[str], None]


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
                f"{len(weights)} weights: train it again with python -m rlhf_helpers.rewards.judge."
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
    remedy = f"make it again with python -m rlhf_helpers.rewards.judge --out {directory}"
    for needed in (path, path.with_name("SHA256SUMS")):
        if not needed.is_file():
            raise JudgeError(f"The judge's file {needed} is missing: {remedy}.")
    if _sha256(path) != read_sums(Path(directory)).get(path.name):
        raise JudgeError(f"{path} does not have the hash in SHA256SUMS: {remedy}.")
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


def crop(text: str, words: int, rng: np.random.Generator | None = None) -> str:
    """`words` consecutive words: the first ones, or from a place drawn from `rng`."""
    tokens = text.split()
    start = 0 if rng is None else int(rng.integers(max(1, len(tokens) - words + 1)))
    return " ".join(tokens[start : start + words])


def with_crops(texts: Sequence[str], labels: Sequence[int], seed: int) -> tuple[list, list]:
    """Whole texts and CROPS_PER_REVIEW short pieces of each, with the text's label.

    The pieces teach it what is to be judged later: about forty words, often the first
    forty, in which the sentiment may not have shown yet.
    """
    rng = np.random.default_rng(seed)
    examples, targets = list(texts), list(labels)
    for i in range(CROPS_PER_REVIEW):
        examples += [crop(text, CROP_WORDS, None if i == 0 else rng) for text in texts]
        targets += list(labels)
    return examples, targets


def fit_judge(texts: Sequence[str], labels: Sequence[int]) -> JudgeModel:
    """Tf-idf of the most frequent n-grams, then L2-regularised logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(max_features=MAX_FEATURES, **VECTORIZER)
    counts = vectorizer.fit_transform(texts)
    model = LogisticRegression(C=INVERSE_REGULARISATION, solver="liblinear", random_state=0)
    model.fit(counts, labels)
    features = vectorizer.get_feature_names_out().tolist()
    return JudgeModel(
        features,
        vectorizer.idf_.astype(np.float32),
        model.coef_[0].astype(np.float32),
        float(model.intercept_[0]),
    )


def train_judge(
    out_dir: str | Path = JUDGE_DIR, seed: int = 0, report: Report = print
) -> JudgeModel:
    """Train on buckets 1-3 and the snippets; write judge.npz, metrics.json, SHA256SUMS.

    Snippets are split by the same hash as the reviews: those of bucket 0 are held out.
    `report` is told what is being done.
    """
    report("1/4 reading reviews and snippets")
    reviews, snippets = _load_texts()
    chosen = reviews[reviews["bucket"].isin(list(JUDGE_BUCKETS))]
    short = snippets[snippets["bucket"] != HELD_OUT_BUCKET]
    texts, labels = with_crops(chosen["text"].tolist(), chosen["label"].tolist(), seed)
    report(f"2/4 fitting on {len(texts) + len(short):,} texts (about 20 s)")
    judge = fit_judge(texts + short["text"].tolist(), labels + short["label"].tolist())
    report("3/4 measuring on bucket 0")
    metrics = judge_metrics(judge, reviews, snippets, seed)
    metrics |= {"train_reviews": len(chosen), "train_snippets": len(short), "seed": seed}
    report("4/4 writing")
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    judge.save(out_dir)
    (out_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    sums = [f"{_sha256(out_dir / name)}  {name}\n" for name in ("judge.npz", "metrics.json")]
    (out_dir / "SHA256SUMS").write_text("".join(sums))
    return judge


def judge_metrics(judge: JudgeModel, reviews, snippets, seed: int) -> dict:
    """Accuracy and calibration on the held-out bucket: whole reviews, pieces, snippets.

    A piece carries the label of its whole review, which forty words often do not show:
    its accuracy has a ceiling far under 1 for any judge.
    """
    rng = np.random.default_rng(seed + 1)
    held_out = reviews[reviews["bucket"] == HELD_OUT_BUCKET]
    short = snippets[snippets["bucket"] == HELD_OUT_BUCKET]
    sets = {
        "whole_reviews": (held_out["text"].tolist(), held_out["label"]),
        "first_40_words": ([crop(t, CROP_WORDS) for t in held_out["text"]], held_out["label"]),
        "any_40_words": ([crop(t, CROP_WORDS, rng) for t in held_out["text"]], held_out["label"]),
        "rotten_tomatoes": (short["text"].tolist(), short["label"]),
    }
    return {name: _accuracy(judge.score(texts), labels) for name, (texts, labels) in sets.items()}


def calibration_error(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 10
) -> float:
    """Expected calibration error: |share positive - mean probability|, over equal bins.

    The bins are equally wide in P(positive) and weighted by how many texts they hold.
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    bin_of = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = [
        abs(labels[bin_of == b].mean() - probabilities[bin_of == b].mean()) * (bin_of == b).mean()
        for b in np.unique(bin_of)
    ]
    return float(sum(gaps))


def _accuracy(probabilities: Sequence[float], labels) -> dict:
    right = (np.asarray(probabilities) > 0.5) == np.asarray(labels, dtype=bool)
    return {
        "n": len(right),
        "accuracy": round(float(right.mean()), 4),
        "calibration_error": round(calibration_error(probabilities, labels), 4),
    }


def _load_texts():
    """The reviews and the snippets as data frames of text, label, bucket."""
    from rlhf_helpers.data import assets

    return assets.load_reviews().to_pandas(), assets.load_snippets().to_pandas()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the independent judge again.")
    parser.add_argument("--out", default=JUDGE_DIR, help="directory for judge.npz")
    parser.add_argument("--seed", type=int, default=0, help="seed of the pieces of reviews")
    arguments = parser.parse_args()
    judge = train_judge(arguments.out, arguments.seed)
    against, in_favour = judge.top_features()
    print("against:", ", ".join(against), "\nfor:    ", ", ".join(in_favour))


if __name__ == "__main__":
    main()
