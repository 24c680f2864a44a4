"""The independent judge: the stored one, its checks, and a small one trained here."""

import json

import numpy as np
import pandas as pd
import pytest

from rlhf_helpers.rewards import judge as judge_module
from rlhf_helpers.rewards.judge import (
    JUDGE_DIR,
    JudgeError,
    JudgeModel,
    calibration_error,
    crop,
    load_judge,
    train_judge,
    with_crops,
)


def test_score_by_hand():
    # One known word with idf 2: tf-idf normalises to 1, so that the logit is weight + bias.
    model = JudgeModel(["bad", "good"], np.array([2.0, 2.0]), np.array([-3.0, 1.0]), bias=0.5)
    good, bad, unknown = model.score(["good good", "bad", "neither"])
    assert good == pytest.approx(1 / (1 + np.exp(-1.5)), abs=1e-6)
    assert bad == pytest.approx(1 / (1 + np.exp(2.5)), abs=1e-6)
    assert unknown == pytest.approx(1 / (1 + np.exp(-0.5)), abs=1e-6)
    assert model.score([]) == []


def test_stored_judge_knows_praise_from_blame():
    model = load_judge()
    praise, blame = model.score(["A wonderful, moving film.", "This movie was terrible, a waste."])
    assert praise > 0.8 and blame < 0.2


def test_stored_judge_states_its_accuracy():
    metrics = json.loads((JUDGE_DIR / "metrics.json").read_text())
    assert metrics["whole_reviews"]["accuracy"] >= 0.86
    assert metrics["first_40_words"]["accuracy"] >= 0.74
    assert sum(file.stat().st_size for file in JUDGE_DIR.iterdir()) < 3_000_000


@pytest.fixture
def toy_texts(monkeypatch):
    """Reviews whose label is one word of theirs, in every bucket."""
    rows = [
        {"text": f"film {i} was {word} indeed", "label": label, "bucket": i % 10}
        for i in range(80)
        for word, label in (("splendid", 1), ("dismal", 0))
    ]
    frame = pd.DataFrame(rows)
    monkeypatch.setattr(judge_module, "_load_texts", lambda: (frame, frame.copy()))
    return frame


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
    judge_module._load_texts = lambda: (toy_texts, snippets)  # undone by the fixture
    model = train_judge(tmp_path, report=lambda line: None)
    assert "splendid" in model.features and "leaked" not in model.features


def test_changed_file_is_refused(toy_texts, tmp_path):
    train_judge(tmp_path, report=lambda line: None)
    stored = tmp_path / "judge.npz"
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    with pytest.raises(JudgeError, match="hash in SHA256SUMS"):
        load_judge(tmp_path)
    stored.unlink()
    with pytest.raises(JudgeError, match="is missing"):
        load_judge(tmp_path)


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


def test_calibration_error_by_hand():
    # Bin 0.9-1.0: mean probability 0.95, half positive, half of the texts: 0.45 * 0.5.
    # Bin 0.2-0.3: mean probability 0.25, a quarter positive: no gap.
    probabilities = [0.95] * 4 + [0.25] * 4
    labels = [1, 1, 0, 0, 1, 0, 0, 0]
    assert calibration_error(probabilities, labels) == pytest.approx(0.225)
