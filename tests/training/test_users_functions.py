"""What a user's functions, prompts and keys do to a run: a sentence, a checkpoint, the same run."""

import asyncio
import decimal
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import (
    PROMPTS,
    assert_same_run,
    letter_reward,
    model_dir,
    run_config,
    tiny_train,
    weights,
)

from rlhf_helpers.config.checks import ConfigError, ConfigWarning
from rlhf_helpers.config.trl_config import validate_config
from rlhf_helpers.data.prompts import check_prompts, check_stop_sequences
from rlhf_helpers.models.loading import load_trained_policy
from rlhf_helpers.rewards.calling import UserFunctionError, call_metric_fn
from rlhf_helpers.rewards.reward import RewardError, call_reward_fn, check_rewards
from rlhf_helpers.runs.checkpoint import load_newest
from rlhf_helpers.runs.files import read_jsonl
from rlhf_helpers.training.api import train
from rlhf_helpers.training.fingerprints import frozen_weights_digest
from rlhf_helpers.training.interrupts import interrupts_noted

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("RLHF_QUIET_PROGRESS", "1")


# --- functions -----------------------------------------------------------------------------------


def failing(metrics):
    return lambda **_: metrics


def raises(**_):
    raise KeyError("judge")


async def asynchronous(samples, **_):
    await asyncio.sleep(0)
    return [0.0] * len(samples)


@pytest.mark.parametrize(
    "metric_fn, said",
    [
        (raises, "metric_fn raised KeyError: .*judge.*: mend it"),
        (failing(None), "metric_fn returned None .NoneType.: return a dict"),
        (failing([1.0]), "metric_fn returned .1.0. .list.: return a dict"),
        (failing({"a": ["good", "bad"]}), "returned 'good' .str. for 'a'"),
        (failing({"a": [None]}), "returned None .NoneType. for 'a'"),
        (failing({"a": []}), "returned .. .list. for 'a'"),
        (failing({"a": "good"}), "returned 'good' .str. for 'a'"),
        (failing({"a": torch.empty(2, device="meta")}), "metric_fn"),
        (asynchronous, "metric_fn returned <coroutine"),
    ],
)
def test_a_metric_function_that_fails_keeps_the_run(tmp_path, metric_fn, said):
    with pytest.raises(RewardError, match=said) as raised:
        tiny_train(tmp_path, metric_fn=metric_fn)
    assert isinstance(raised.value, UserFunctionError) and "\n" not in str(raised.value)
    assert load_newest(tmp_path / "run" / "checkpoints")["loop"]["todo"] == ["evaluate"]
    load_trained_policy(tmp_path / "run" / "policy", "cpu")


def test_numbers_of_any_kind_are_metrics_and_lists_are_copies():
    def metric_fn(samples, outputs):
        samples.clear()
        return {"a": [1, True, np.float32(3)], "b": torch.ones(3), "c": decimal.Decimal(2),
                "d": (x for x in [1.0]), "e": np.array([[1.0], [2.0]])}  # fmt: skip

    samples = ["x", "y"]
    metrics = call_metric_fn(metric_fn, samples=samples, outputs=["x", "y"])
    assert metrics == {"a": [1, 1, 3], "b": [1, 1, 1], "c": [2], "d": [1], "e": [1, 2]}
    assert samples == ["x", "y"]


def test_the_same_run_after_a_metric_function_was_mended(tmp_path):
    def counted(samples, **_):
        return {"length": [len(text) for text in samples]}

    tiny_train(tmp_path / "whole", metric_fn=counted)
    with pytest.raises(UserFunctionError):
        tiny_train(tmp_path / "cut", metric_fn=raises)
    tiny_train(tmp_path / "cut", metric_fn=counted)
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "cut" / "run")


@pytest.mark.parametrize("at", [0, 1, 3, 4])
def test_a_callback_that_raises_stops_after_the_step_and_loses_no_line(tmp_path, at):
    def callback(line):
        if line["step"] == at:
            line.clear()  # its own copy
            raise ValueError("of the user\nin two lines")

    tiny_train(tmp_path / "whole")
    with pytest.raises(UserFunctionError, match="callback raised ValueError: of the user"):
        tiny_train(tmp_path / "cut", callback=callback)
    saved = load_newest(tmp_path / "cut" / "run" / "checkpoints")["loop"]
    lines = read_jsonl(tmp_path / "cut" / "run" / "metrics.jsonl")
    assert saved["step"] >= at and saved["lines"]["metrics"] == len(lines)
    tiny_train(tmp_path / "cut")
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "cut" / "run")


@pytest.mark.parametrize("semantics", ["trlx", "corrected"])
def test_what_a_reward_function_does_to_its_lists_changes_no_training(tmp_path, semantics):
    def meddles(samples, prompts, outputs, **_):
        rewards = letter_reward(samples)
        for texts in (samples, prompts, outputs):
            texts[:] = ["e e e e"] * (len(texts) + 1)
        return rewards

    settings = {"method__semantics": semantics}
    tiny_train(tmp_path / "a", **settings)
    tiny_train(tmp_path / "b", reward_fn=meddles, **settings)
    assert_same_run(tmp_path / "a" / "run", tmp_path / "b" / "run")


def test_a_second_attempt_gets_lists_that_the_first_one_has_not_touched(tmp_path):
    seen = []

    def fails_once(samples, **_):
        seen.append(list(samples))
        samples.clear()
        if len(seen) == 1:
            raise OSError("once")
        return [0.0] * len(seen[-1])

    tiny_train(tmp_path, reward_fn=fails_once, train__reward_retries=1, train__total_steps=1)
    assert seen[0] == seen[1]


def test_an_async_reward_function_is_named():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing was left that nobody waited for
        with pytest.raises(RewardError, match="it is an async function: give a plain one"):
            call_reward_fn(asynchronous, samples=["a"])


@pytest.mark.parametrize(
    "value",
    [decimal.Decimal("sNaN"), decimal.Decimal("NaN"), decimal.Decimal("1e999"),
     torch.empty(1, device="meta"), torch.empty((), device="meta"),
     torch.ones(1).to_sparse().to_sparse(), 1j, np.datetime64("2020"), pd.NA],
)  # fmt: skip
def test_what_is_no_number_is_a_sentence(value):
    for returned in ([value], value):
        with pytest.raises(RewardError) as raised:
            check_rewards(returned, ["a"] * (1 + (returned is value)))
        assert "\n" not in str(raised.value)
    assert check_rewards([decimal.Decimal("0.5")], ["a"]) == [0.5]


# --- prompts -------------------------------------------------------------------------------------

THREE = ["a film", "the film", "no film"]


@pytest.mark.parametrize(
    "prompts",
    [tuple(THREE), (text for text in THREE), iter(THREE), pd.Series(THREE, index=[5, 6, 7]),
     np.array(THREE), np.array(THREE, dtype=object), dict.fromkeys(THREE).keys(),
     datasets.Dataset.from_dict({"p": THREE})["p"], pd.Index(THREE)],
)  # fmt: skip
def test_whatever_has_prompts_in_an_order_is_taken(prompts):
    assert check_prompts("prompts", prompts) == THREE


def test_the_rows_of_a_table_are_prompts_with_metadata():
    columns = {"prompt": THREE, "label": [0, 1, 0]}
    wanted = [{"prompt": p, "label": i} for p, i in zip(THREE, [0, 1, 0], strict=True)]
    for table in (pd.DataFrame(columns), datasets.Dataset.from_dict(columns)):
        assert check_prompts("prompts", table) == wanted


def endless():
    while True:
        yield "a"


@pytest.mark.parametrize(
    "prompts",
    [None, "a film", b"a film", {"a film"}, {"a film": 1}, 3, [], (), iter([]), [b"a"], [None],
     [float("nan")], pd.Series([], dtype=object), pd.Series(["a", None]), [["a"]], [{"text": "a"}],
     pd.DataFrame({"text": THREE}), datasets.Dataset.from_dict({"text": THREE}), ["a\ud800"],
     [{"prompt": "a", 3: 4}], [{"prompt": "a", "outputs": 4}], print, object()],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_holds_no_prompts_is_a_sentence(prompts):
    with pytest.raises(ConfigError, match="prompts") as raised:
        check_prompts("prompts", prompts)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


def test_a_generator_without_end_is_a_sentence(monkeypatch):
    monkeypatch.setattr("rlhf_helpers.data.prompts.MAX_PROMPTS", 1000)
    with pytest.raises(ConfigError, match="at most 1,000"):
        check_prompts("prompts", endless())


@pytest.mark.parametrize("given, wanted", [(None, []), ([], []), (["a"], ["a"]), (("a",), ["a"])])
def test_stop_sequences_are_a_list_of_texts(given, wanted):
    assert check_stop_sequences(given) == wanted


@pytest.mark.parametrize("given", ["stop", b"a", 3, [""], ["a", ""], [None], [3], [b"a"], {"a"}])
def test_stop_sequences_that_stop_nothing_or_everything_are_a_sentence(tmp_path, given):
    with pytest.raises(ConfigError, match="stop_sequences"):
        train(reward_fn=letter_reward, prompts=PROMPTS, config=run_config(tmp_path),
              stop_sequences=given)  # fmt: skip


def test_a_setting_without_effect_is_said(tmp_path):
    config = run_config(tmp_path, train__rollout_logging_dir="logs")
    with pytest.warns(ConfigWarning, match="train.rollout_logging_dir has no effect here"):
        validate_config(config)


# --- going on with something else ----------------------------------------------------------------


def test_a_run_goes_on_with_its_own_weights_and_prompts_only(tmp_path):
    tiny_train(tmp_path, train__total_steps=2)
    before = weights(tmp_path / "run" / "policy")
    with pytest.raises(ConfigError, match="began with other prompts: give those"):
        tiny_train(tmp_path, prompts=[*PROMPTS, "one more"], train__total_steps=3)
    with pytest.warns(ConfigWarning, match="evaluated on other prompts"):
        tiny_train(tmp_path, eval_prompts=PROMPTS[:3], train__total_steps=3)
    path = model_dir(tmp_path) / "model.safetensors"
    content = path.read_bytes()
    save_file({n: t * 1.001 for n, t in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="began with other base weights: give those"):
        tiny_train(tmp_path, eval_prompts=PROMPTS[:3], train__total_steps=4)
    path.write_bytes(content)
    assert tiny_train(tmp_path, eval_prompts=PROMPTS[:3], train__total_steps=4).step == 4
    assert before.keys() == weights(tmp_path / "run" / "policy").keys()


def test_training_does_not_change_what_says_which_base_model_it_is(tmp_path):
    trainer = tiny_train(tmp_path, train__total_steps=1)
    first = trainer.saving.fingerprints()
    assert frozen_weights_digest(trainer.policy.base) == first["weights"]


def test_without_its_checkpoints_a_run_is_not_replaced(tmp_path):
    """They were removed to save space; another seed comes along."""
    run = tmp_path / "run"
    tiny_train(tmp_path, train__total_steps=1)
    shutil.rmtree(run / "checkpoints")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    for seed in (1000, 7):
        with pytest.raises(ConfigError, match="metrics.jsonl and .*policy and no checkpoint"):
            tiny_train(tmp_path, train__total_steps=1, train__seed=seed)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    (run / "mine").mkdir()
    for name in ("metrics.jsonl", "eval_samples.jsonl", "policy"):  # an explicit wish
        (run / name).rename(run / "mine" / name)
    assert tiny_train(tmp_path, train__total_steps=1).step == 1


@pytest.mark.parametrize("name", ["metrics.jsonl", "policy/notes", "checkpoints/step_00000001/a",
                                  "checkpoints/step_by_step"])  # fmt: skip
def test_files_of_somebody_are_neither_replaced_nor_removed(tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("of somebody")
    with pytest.raises(ConfigError, match="holds|none of them can be read"), (
        warnings.catch_warnings()
    ):
        warnings.simplefilter("ignore")
        tiny_train(tmp_path)
    assert path.read_text() == "of somebody"


def test_checkpoints_of_somebody_stay_beside_those_of_the_run(tmp_path):
    tiny_train(tmp_path, train__total_steps=1, train__keep_checkpoints=1)
    strange = tmp_path / "run" / "checkpoints" / "step_00000000"
    strange.mkdir()
    (strange / "of somebody").write_text("x")
    (tmp_path / "run" / "checkpoints" / "step_by_step").write_text("x")
    tiny_train(tmp_path, train__total_steps=2, train__keep_checkpoints=1)
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert {"step_00000000", "step_00000002", "step_by_step"} <= set(names)
    assert (strange / "of somebody").exists()


def test_a_run_that_died_before_its_first_checkpoint_begins_again(tmp_path):
    class KilledError(BaseException):
        pass

    def dies(line):
        if line["step"] == 1:
            raise KilledError

    tiny_train(tmp_path / "whole")
    with pytest.raises(KilledError):
        tiny_train(tmp_path / "cut", callback=dies)
    run = tmp_path / "cut" / "run"
    assert (run / ".begun.json").exists() and not (run / "checkpoints").exists()
    with pytest.raises(ConfigError, match="method.gamma = 1, not 0.5"):
        tiny_train(tmp_path / "cut", method__gamma=0.5)
    tiny_train(tmp_path / "cut")
    assert_same_run(tmp_path / "whole" / "run", run)
    assert not (run / ".begun.json").exists()


# --- keys and signals ----------------------------------------------------------------------------


def test_the_first_two_interrupts_are_answered_and_the_third_acts(capsys):
    with pytest.raises(KeyboardInterrupt, match="third"), interrupts_noted() as noted:
        for said in ("Interrupted: the step that runs is finished", "Once more stops at once"):
            os.kill(os.getpid(), signal.SIGINT)
            assert said in capsys.readouterr().err
        assert noted == [signal.SIGINT] * 2
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_interrupt_loses_nothing(tmp_path):
    def presses_twice(line):
        if line["step"] == 2 and "ratio" in line:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    tiny_train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt, match="stopped after step"):
        tiny_train(tmp_path / "cut", callback=presses_twice)
    assert load_newest(tmp_path / "cut" / "run" / "checkpoints")["loop"]["step"] >= 2
    tiny_train(tmp_path / "cut")
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "cut" / "run")


SCRIPT = """
import os, signal, sys
sys.path.insert(0, "tests")
from tiny_runs import tiny_train
def closes(line):
    if line["step"] == 2 and "ratio" in line:
        os.kill(os.getpid(), int(sys.argv[2]))
tiny_train(sys.argv[1], callback=closes)
print("the end")
"""


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)]
)
def test_a_plain_train_that_is_ended_saves_first(tmp_path, number):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(int(number))]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, text=True, capture_output=True)
    assert "stopped after step" in done.stderr and "the end" not in done.stdout
    assert "Interrupted: the step that runs is finished and saved" in done.stderr
    assert load_newest(tmp_path / "run" / "checkpoints")["loop"]["step"] >= 2


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts_noted() as noted:
            os.kill(os.getpid(), signal.SIGHUP)
            assert noted == []
    finally:
        signal.signal(signal.SIGHUP, before)
