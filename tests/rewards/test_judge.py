"""The independent judge: how it scores, the stored one, its checks."""

import json
import shutil

import numpy as np
import pytest

from rlhf_helpers.rewards.calibration import reliability
from rlhf_helpers.rewards.judge import JUDGE_DIR, JudgeError, JudgeModel, load_judge


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


def test_changed_file_is_refused(tmp_path):
    shutil.copytree(JUDGE_DIR, tmp_path, dirs_exist_ok=True)
    stored = tmp_path / "judge.npz"
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    with pytest.raises(JudgeError, match="hash in SHA256SUMS"):
        load_judge(tmp_path)
    stored.unlink()
    with pytest.raises(JudgeError, match="is missing"):
        load_judge(tmp_path)


def test_calibration_error_by_hand():
    # Bin 0.9-1.0: mean probability 0.95, half positive, half of the texts: 0.45 * 0.5.
    # Bin 0.2-0.3: mean probability 0.25, a quarter positive: no gap.
    probabilities = [0.95] * 4 + [0.25] * 4
    labels = [1, 1, 0, 0, 1, 0, 0, 0]
    assert reliability(probabilities, labels)["ece"] == pytest.approx(0.225)
