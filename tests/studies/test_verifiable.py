"""The study of notebook 07, on a model that has learnt nothing, from runs to committed files."""

import json

import pytest

from rlhf_helpers.config.profiles import load_profile
from rlhf_helpers.config.sections import GRPOConfig, PPOConfig, RLOOConfig
from rlhf_helpers.data.arithmetic import Problem
from rlhf_helpers.making.pretrain_arithmetic import (
    ArithmeticConfig,
    character_tokenizer,
    new_arithmetic_model,
)
from rlhf_helpers.studies import verifiable
from rlhf_helpers.studies.verifiable import (
    RUNS,
    Run,
    config_of,
    kept_answers,
    make_runs,
    right_answers,
    steps_of,
    write_reference_run,
)


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """The profile with a random model and sizes of seconds."""
    config, tokenizer = ArithmeticConfig(hidden_size=16, num_heads=2), character_tokenizer()
    new_arithmetic_model(config, tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for name, value in {"TRAINING_PROBLEMS": 40, "ON_THE_WAY": 8, "LARGER": 4,
                        "LARGER_ANSWERS": 2, "SHOWN": 3}.items():  # fmt: skip
        monkeypatch.setattr(verifiable, name, value)
    return load_profile("arithmetic", {
        "assets.policy": str(tmp_path / "model"), "train.total_steps": 2, "train.batch_size": 16,
        "method.num_rollouts": 16, "method.chunk_size": 16, "train.eval_interval": 1,
        "evaluation.n_prompts": 6,
    })  # fmt: skip


def test_the_runs_are_three_methods_three_seeds_and_a_sloppy_one():
    strict = [(run.method, run.seed) for run in RUNS
              if run.verifier == "strict" and run.budgets == 1]  # fmt: skip
    assert len({run.name for run in RUNS}) == len(RUNS)
    assert sorted(strict) == [(m, s) for m in ("grpo", "ppo", "rloo") for s in (1000, 1001, 1002)]
    others = [run.name for run in RUNS if run.verifier == "sloppy" or run.budgets > 1]
    assert others == ["rloo-sloppy-1000", "rloo-long-1000", "rloo-wide-1000"]


def test_all_have_the_same_budget(tmp_path):
    profile = load_profile("arithmetic")
    kinds = {"rloo": RLOOConfig, "grpo": GRPOConfig, "ppo": PPOConfig}
    for run in (run for run in RUNS if not run.wide):
        config = config_of(run, profile, tmp_path)
        assert type(config.method) is kinds[run.method]
        assert config.method.semantics == "corrected" and config.train.seed == run.seed
        longer = 2 if run.name in ("rloo-sloppy-1000", "rloo-long-1000") else 1
        assert config.train.total_steps == longer * profile.config.train.total_steps
        assert config.scheduler.kwargs["T_max"] == config.train.total_steps
        # One optimizer step for each 256 answers.
        assert (config.method.num_rollouts, config.train.batch_size, config.method.ppo_epochs) == (
            256, 256, 1,
        )  # fmt: skip


def test_the_wide_run_has_half_the_rate_and_twice_the_answers_in_each_step(tmp_path):
    (run,) = (run for run in RUNS if run.wide)
    config = config_of(run, load_profile("arithmetic"), tmp_path)
    assert config.method.num_rollouts == config.method.chunk_size == config.train.batch_size == 512
    assert config.optimizer.kwargs["lr"] == 5e-4
    assert config.scheduler.kwargs == {"T_max": 750, "eta_min": 5e-5}
    assert config.train.total_steps == 750 and config.method.samples_per_prompt == 8


def test_from_runs_to_what_is_committed(tmp_path, profile, capsys):
    work, out = tmp_path / "work", tmp_path / "out"
    (work / "rows").mkdir(parents=True)
    make_runs(work, profile, only="1000", answers=4)
    write_reference_run(work, out, profile)
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["n_prompts"] == 6 and evaluation["answers"] == 4
    assert set(evaluation["runs"]) == {
        "rloo-1000", "rloo-sloppy-1000", "rloo-long-1000", "rloo-wide-1000", "grpo-1000",
        "ppo-1000",
    }  # fmt: skip
    assert len(evaluation["not_run"]) == 6
    for run in evaluation["runs"].values():
        assert run["cpu_seconds"] > 0
        assert list(run["pass_at_k"]) == list(run["change"]) == ["1", "2", "4"]
        assert all(low <= mean <= high for mean, low, high in run["pass_at_k"].values())
        gained = run["pass_at_k"]["1"][0] - evaluation["before"]["pass_at_k"]["1"][0]
        assert run["change"]["1"][0] == pytest.approx(gained, abs=1e-4)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if line["run"] == "ppo-1000" and "metrics/strict" in line]
    assert [line["step"] for line in evaluated] == [0, 1, 2]
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert sum(s["run"] == "ppo-1000" for s in samples) == 3 * 3
    # What is finished is kept.
    capsys.readouterr()
    make_runs(work, profile, only="1000", answers=4)
    assert capsys.readouterr().out == ""


def test_right_answers_and_steps_are_counted():
    problems = [Problem("83+85-22", 146), Problem("4+5", 9), Problem("1+1+1", 3)]
    outputs = [["146", "168-22=146", "168-22=145"], ["9", "8", "9=9"], ["3", "4", "2+1=3"]]
    assert right_answers(outputs, problems) == [2, 2, 2]
    found = steps_of(outputs, problems)  # of the two with three terms
    assert found["steps"] == 3 / 6
    assert found["right_with_steps"] == 2 / 3 and found["right_without_steps"] == 2 / 3


def test_kept_answers_carry_what_the_verifiers_say():
    first, second = verifiable.heldout_problems(2)
    right, wrong = str(first.answer), str(second.answer + 1)
    samples = [
        {"run": "before", "step": 0, "prompt": first.prompt, "outputs": [right]},
        {"run": "a", "step": 0, "prompt": first.prompt, "output": f"{right}=7{wrong}"},
        {"run": "b", "step": 0, "prompt": first.prompt, "output": right},
        {"run": "a", "step": 9, "prompt": second.prompt, "output": wrong},
    ]
    fooled, plain = kept_answers(samples, "a")
    assert (fooled["step"], fooled["sloppy"], fooled["strict"]) == (0, 1.0, 0.0)
    assert (plain["step"], plain["sloppy"], plain["strict"], plain["steps"]) == (9, 0.0, 0.0, 0.0)


def test_a_run_of_another_seed_has_another_place(tmp_path):
    assert Run("rloo", 7).name == "rloo-7" and Run("rloo", 7, "sloppy").name == "rloo-sloppy-7"
