"""Training the independent judge: a small one, on reviews written here."""

import json

import numpy as np
import pandas as pd
import pytest

from rlhf_helpers.__main__ import main
from rlhf_helpers.making import train_judge as train_judge_module
from rlhf_helpers.making.train_judge import crop, train_judge, with_crops
from rlhf_helpers.rewards.judge import load_judge


@pytest.fixture
def toy_texts(monkeypatch):
    """Reviews whose label is one word of theirs, in every bucket."""
    rows = [
        {"text": f"film {i} was {word} indeed", "label": label, "bucket": i % 10}
        for i in range(80)
        for word, label in (("splendid", 1), ("dismal", 0))
    ]
    frame = pd.DataFrame(rows)
    monkeypatch.setattr(train_judge_module, "_load_texts", lambda: (frame, frame.copy()))
    return frame


def test_the_real_reviews_and_snippets_have_what_training_asks_for():
    for frame in train_judge_module._load_texts():
        assert list(frame.columns) == ["text", "label", "bucket"]
        assert set(frame["bucket"]) == set(range(10)) and set(frame["label"]) == {0, 1}


def test_training_is_repeatable_and_survives_saving(toy_texts, tmp_path):
    first = train_judge(tmp_path / "a", report=lambda line: None)
    train_judge(tmp_path / "b", report=lambda line: None)
    assert (tmp_path / "a/SHA256SUMS").read_text() == (tmp_path / "b/SHA256SUMS").read_text()
    texts = ["splendid", "dismal", "film 3 was splendid indeed"]
    assert load_judge(tmp_path / "a").score(texts) == first.score(texts)
    assert first.score(texts)[0] > 0.5 > first.score(texts)[1]
    metrics = json.loads((tmp_path / "a/metrics.json").read_text())
    assert metrics["whole_reviews"] ["n"] == 16 and metrics["whole_reviews"]["accuracy"] == 1.0


def test_training_never_reads_other_buckets(toy_texts, tmp_path):
    # A word that only reviews outside buckets 1-3 (and snippets of bucket 0) contain.
    toy_texts.loc[~toy_texts["bucket"].isin([1, 2, 3]), "text"] += " leaked"
    snippets = toy_texts[toy_texts["bucket"].isin([0, 1, 2, 3])]
    train_judge_module._load_texts = lambda: (toy_texts, snippets)  # undone by the fixture
    model = train_judge(tmp_path, report=lambda line: None)
    assert "splendid" in model.features and "leaked" not in model.features


def test_the_command_trains_a_judge_that_can_be_loaded(toy_texts, tmp_path, capsys):
    assert main(["train-judge", "--out", str(tmp_path / "judge"), "--seed", "3"]) == 0
    praise, blame = load_judge(tmp_path / "judge").score(["splendid", "dismal"])
    assert praise > 0.5 > blame
    against, in_favour = capsys.readouterr().out.splitlines()[-2:]
    assert "dismal" in against and "splendid" in in_favour
    assert json.loads((tmp_path / "judge" / "metrics.json").read_text())["seed"] == 3


def test_crops_are_consecutive_words_of_the_text():
    text = " ".join(str(i) for i in range(100))
    assert crop(text, 40) == " ".join(str(i) for i in range(40))
    starts = set()
    rng = np.random.default_rng(0)
    for _ in range(200):
        words = [int(word) for word in crop(text, 40, rng).split()]
        assert words == list(range(words[0], words[0] + 40))
        starts.add(words[0])
    assert min(starts) == 0 and max(starts) == 60  # both ends are reached
    assert crop("short text", 40, rng) == "short text"


def test_with_crops_keeps_each_label_with_its_text():
    texts, labels = with_crops(["up " * 50, "down " * 50], [1, 0], seed=0)
    assert len(texts) == len(labels) == 8
    assert all(("up" in text) == bool(label) for text, label in zip(texts, labels, strict=True))
