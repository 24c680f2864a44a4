"""Run directories of before the rollout store load, and go on to the same end."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_train, weights, without_times

from rlhf_helpers.models.loading import load_trained_policy
from rlhf_helpers.runs.files import read_jsonl

OLD = Path(__file__).parents[1] / "old_run"


@pytest.mark.parametrize("semantics", ["trlx", "corrected"])
def test_an_old_run_goes_on_from_the_middle_of_an_iteration(tmp_path, monkeypatch, semantics):
    monkeypatch.setenv("RLHF_QUIET_PROGRESS", "1")
    shutil.copytree(OLD, tmp_path / "old_run")
    monkeypatch.chdir(tmp_path / "old_run")  # the configuration names its files from there
    run = Path(semantics) / "run"
    shutil.rmtree(run / "policy")
    trainer = tiny_train(
        Path(semantics), method__semantics=semantics, train__total_steps=6,
        train__checkpoint_interval=3, train__keep_checkpoints=10,
    )  # fmt: skip
    assert trainer.step == 6
    before, now = (without_times(read_jsonl(root / "metrics.jsonl"))
                   for root in (OLD / semantics / "run", run))  # fmt: skip
    assert [line["step"] for line in now] == [line["step"] for line in before]
    for old, new in zip(before, now, strict=True):
        for name, value in old.items():
            assert new[name] == pytest.approx(value, rel=1e-3, abs=1e-4), (old["step"], name)
    ours, theirs = weights(run / "policy"), weights(OLD / semantics / "run" / "policy")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-4, rtol=1e-3)


def test_an_old_policy_loads(tmp_path, monkeypatch):
    shutil.copytree(OLD, tmp_path / "old_run")
    monkeypatch.chdir(tmp_path / "old_run")
    policy = load_trained_policy("trlx/run/policy")
    assert policy.has_lora
