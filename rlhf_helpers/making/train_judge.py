"""Train the independent judge (rewards/judge.py): n-gram counts and logistic regression.

    python -m rlhf_helpers train-judge --out runs/judge

It learns from the labels of buckets 1-3 of the reviews and of the Rotten Tomatoes snippets, which
no reward model sees; bucket 0 only measures. Under a minute on one CPU core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rlhf_helpers.config.checks import integer
from rlhf_helpers.data.assets import write_sums
from rlhf_helpers.data.reviews import (
    HELD_OUT_BUCKET,
    JUDGE_BUCKETS,
    bucket_of,
    load_reviews,
    load_snippets,
)
from rlhf_helpers.rewards.calibration import reliability
from rlhf_helpers.rewards.judge import JUDGE_DIR, VECTORIZER, JudgeModel
from rlhf_helpers.runs.files import atomic_write_json, writing_to

from .checkpoints import opened

CROP_WORDS = 40  # about the length of the samples it will judge
CROPS_PER_REVIEW = 3  # one from the start of the review, the others from anywhere
MAX_FEATURES = 40_000
# The inverse strength of the regularisation, chosen on bucket 3 among 0.3, 1 and 4.
INVERSE_REGULARISATION = 1.0

Report = Callable[[str], None]


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
    integer(0, 2**32 - 1)("--seed", seed)
    out_dir = opened(out_dir)
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
    with writing_to(out_dir, "start it again"):
        judge.save(out_dir)
        atomic_write_json(out_dir / "metrics.json", metrics)
        write_sums(out_dir)
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


def _accuracy(probabilities: Sequence[float], labels) -> dict:
    measured = reliability(probabilities, labels)
    return {
        "n": measured["n"],
        "accuracy": round(measured["accuracy"], 4),
        "calibration_error": round(measured["ece"], 4),
    }


def _load_texts():
    """The reviews and the snippets as data frames of text, label, bucket."""
    snippets = load_snippets().to_pandas()
    snippets = snippets.assign(bucket=snippets["text"].map(bucket_of))
    return load_reviews().to_pandas(), snippets
