"""What the reward model gets right and wrong: the file reward_check.jsonl of a run directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_helpers.data.reviews import HELD_OUT_BUCKET

from .calibration import reliability

if TYPE_CHECKING:
    from datasets import Dataset

SNIPPET_WORDS = 40  # about the length of what PPO shows the reward model

# (what makes it hard, the text, 1 positive, 0 negative, None: no opinion about a film)
PROBES = (
    ("plain", "I loved every minute of it.", 1),
    ("plain", "A dull, lifeless film.", 0),
    ("negation", "This was not a good film.", 0),
    ("negation", "Not bad at all, in fact rather good.", 1),
    ("contrast", "The acting was wonderful, but the film as a whole is a waste of time.", 0),
    ("contrast", "It starts slowly, yet in the end I loved it.", 1),
    ("sarcasm", "Great, another two hours of my life that I will never get back.", 0),
    ("hearsay", "Everybody told me this was the best film of the year. They were wrong.", 0),
    ("sad story", "A tragic story of war, hunger and death, told with great care.", 1),
    ("no opinion", "The film runs for ninety minutes and was shot in Canada.", None),
    ("off topic", "What a lovely day. I like my new shoes very much.", None),
    ("empty praise", "great great great great great great great great", None),
)


def reward_check(
    reviews: Dataset, n_reviews: int, reward_fn: Callable[..., list[float]], judge: Any
) -> list[dict[str, Any]]:
    """Scores of the probes and of the first `n_reviews` held-out reviews, cut to 40 words.

    A record has kind ("review" or what makes a probe hard), text, label, reward and judge.
    """
    texts, labels, buckets = (reviews[name][:] for name in ("text", "label", "bucket"))
    chosen = [i for i, bucket in enumerate(buckets) if bucket == HELD_OUT_BUCKET]
    # Every k-th one: the data may be sorted by label.
    chosen = chosen[:: max(1, len(chosen) // n_reviews)][:n_reviews]
    rows = [{"kind": kind, "text": text, "label": label} for kind, text, label in PROBES]
    rows += [
        {"kind": "review", "text": " ".join(texts[i].split()[:SNIPPET_WORDS]), "label": labels[i]}
        for i in chosen
    ]
    shown = [row["text"] for row in rows]
    rewards, judged = reward_fn(samples=shown), judge.score(shown)
    return [
        {**row, "reward": float(reward), "judge": float(other)}
        for row, reward, other in zip(rows, rewards, judged, strict=True)
    ]


def is_right(row: Mapping[str, Any], field: str = "reward") -> bool | None:
    """Whether the score is on the label's side of 0.5; None where there is no label."""
    return None if row["label"] is None else (row[field] > 0.5) == (row["label"] == 1)


def accuracy(rows: Sequence[Mapping[str, Any]], field: str = "reward") -> float:
    """Share of labelled rows whose score is on the label's side of 0.5."""
    answers = [is_right(row, field) for row in rows if row["label"] is not None]
    return sum(answers) / len(answers)


def surest_errors(rows: Sequence[Mapping[str, Any]], n: int) -> list[Mapping[str, Any]]:
    """The wrong rows whose reward is farthest from 0.5, the farthest first."""
    wrong = [row for row in rows if is_right(row) is False]
    return sorted(wrong, key=lambda row: -abs(row["reward"] - 0.5))[:n]


def reliability_rows(rows: Sequence[Mapping[str, Any]], n_bins: int = 5) -> list[dict[str, Any]]:
    """For each range of the reward: how many texts, their mean reward, the share positive."""
    bins = reliability([r["reward"] for r in rows], [r["label"] for r in rows], n_bins)["bins"]
    return [
        {
            "range": f"{b['from']:.1f} to {b['to']:.1f}", "texts": b["count"],
            "reward": b["mean_probability"], "positive": b["share_positive"],
        }
        for b in bins
    ]  # fmt: skip
