"""What was scored before something failed is not scored again, and the run ends as without it."""

import os
import random
import signal

import numpy as np
import pytest
import torch
from tiny_runs import PROMPTS, assert_same_run, letter_reward, run_config

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.rewards.reward import RewardError
from rlhf_helpers.training.api import train

FOUR_CHUNKS = dict(method__num_rollouts=16, train__total_steps=12, train__eval_interval=6)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("RLHF_QUIET_PROGRESS", "1")


class Scorer:
    """A reward function that draws from all generators, counts, and fails at one call."""

    def __init__(self, fails_at=None, failure=lambda: 1 / 0):
        self.fails_at, self.failure = fails_at, failure
        self.calls = []

    def __call__(self, samples, **kwargs):
        noise = random.random() + np.random.rand() + torch.rand(()).item()
        self.calls.append(list(samples))
        if len(self.calls) == self.fails_at:
            self.failure()
        return [reward + noise for reward in letter_reward(samples)]


def run(root, scorer, **settings):
    return train(
        reward_fn=scorer, prompts=PROMPTS, eval_prompts=PROMPTS[:2],
        config=run_config(root, **{**FOUR_CHUNKS, **settings}),
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of the undisturbed run, and all that its reward function was given."""
    scorer = Scorer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_QUIET_PROGRESS", "1")
        return run(tmp_path_factory.mktemp("whole"), scorer).directory, scorer.calls


# Calls: four chunks, evaluation, (step 6: evaluation), (step 8:) four chunks, the evaluation at 12.
@pytest.mark.parametrize(
    "call, kept",
    [(3, 2), (6, 5), (11, 10),
     *(pytest.param(n, n - 1, marks=pytest.mark.slow) for n in (1, 5, 9))],
)  # fmt: skip
def test_a_reward_function_that_fails_is_asked_only_for_what_it_has_not_scored(
    tmp_path, whole, call, kept
):
    directory, expected = whole
    failing = Scorer(fails_at=call)
    with pytest.raises(RewardError, match="ZeroDivisionError"):
        run(tmp_path, failing)
    assert failing.calls == expected[:call]
    mended = Scorer()
    run(tmp_path, mended)
    assert mended.calls == expected[kept:]
    assert_same_run(directory, tmp_path / "run")


def test_a_bad_value_keeps_the_chunks_before_it_too(tmp_path, whole):
    class BadValue(Scorer):
        def __call__(self, samples, **kwargs):
            values = super().__call__(samples)
            return [*values[:-1], float("nan")] if len(self.calls) == 2 else values

    with pytest.raises(RewardError, match="sample 3"):
        run(tmp_path, BadValue())
    mended = Scorer()
    run(tmp_path, mended)
    assert mended.calls == whole[1][1:]
    assert_same_run(whole[0], tmp_path / "run")


def test_a_function_that_hangs_is_given_up_and_keeps_the_chunks_before_it(tmp_path, whole):
    import threading

    release = threading.Event()
    hanging = Scorer(fails_at=8, failure=lambda: release.wait(60))
    with pytest.raises(RewardError, match="did not return within 0.5 s"):
        run(tmp_path, hanging, train__reward_timeout_seconds=0.5)
    release.set()
    mended = Scorer()
    run(tmp_path, mended)  # the time limit may change between the two calls
    assert mended.calls == whole[1][7:]
    assert_same_run(whole[0], tmp_path / "run")


def test_a_transient_failure_is_retried_within_the_run(tmp_path):
    class Busy(Scorer):
        def __call__(self, samples, **kwargs):
            self.calls.append(1)
            if len(self.calls) in (2, 3):
                raise ConnectionError("busy")
            return letter_reward(samples)

    import rlhf_helpers.rewards.reward

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rlhf_helpers.rewards.reward.time, "sleep", lambda seconds: None)
        trainer = run(tmp_path, Busy(), train__reward_retries=2, train__total_steps=4)
    assert trainer.step == 4


def test_an_interrupt_between_two_chunks_loses_neither(tmp_path, whole):
    interrupted = Scorer(fails_at=8, failure=lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="step 8 of 12.*the same call goes on"):
        run(tmp_path, interrupted)
    assert interrupted.calls == whole[1][:8]
    after = Scorer()
    run(tmp_path, after)
    assert after.calls == whole[1][8:]
    assert_same_run(whole[0], tmp_path / "run")


def test_checkpoints_that_are_due_are_written_between_chunks(tmp_path, whole, monkeypatch):
    """Every checkpoint of a run that writes one after each chunk and step can be gone on from."""
    from rlhf_helpers.training.saving import Saving

    class Stop(BaseException):
        pass

    checkpoint, count = Saving.checkpoint, [0]

    def counted(self, root):
        path = checkpoint(self, root)
        count[0] += 1
        if count[0] % 5 == 0:
            raise Stop  # as a kill right after the checkpoint
        return path

    monkeypatch.setattr(Saving, "checkpoint", counted)
    stops = 0
    while True:
        try:
            run(tmp_path, Scorer(), train__checkpoint_seconds=0)
            break
        except Stop:
            stops += 1
    assert stops >= 3
    assert_same_run(whole[0], tmp_path / "run")


def test_another_configuration_is_refused_after_a_failure_too(tmp_path):
    with pytest.raises(RewardError):
        run(tmp_path, Scorer(fails_at=2))
    with pytest.raises(ConfigError, match="method.gamma"):
        run(tmp_path, Scorer(), method__gamma=0.5)
