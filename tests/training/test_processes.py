"""Runs of two processes on one machine, started by `accelerate launch` as on two GPUs."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import PROMPTS, assert_same_run, letter_reward, model_dir, run_config

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.runs.files import read_jsonl
from rlhf_helpers.training.api import train
from rlhf_helpers.training.processes import Processes
from rlhf_helpers.training.trainer import PPOTrainer

SCRIPT = Path(__file__).parents[1] / "several_processes.py"


def launch(root, task, timeout=280):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
               "--num_processes", "2", "--main_process_port", "0", SCRIPT, root, task]  # fmt: skip
    repo = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(repo), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=timeout
    )


def trainer_of_one(root, semantics):
    """One process with the settings of `optimizer_steps`, and eight rollouts, some of them short.

    LoRA's B is not zero, so that policy and reference differ and every gradient does.
    """
    config = run_config(
        root, method__semantics=semantics, model__delta_kwargs__lora_dropout=0.0,
        train__batch_size=8, method__chunk_size=8,
        train__checkpoint_dir=str(root / f"one_{semantics}"),
    )  # fmt: skip
    trainer = PPOTrainer(config, letter_reward)
    trainer.add_prompts(PROMPTS, PROMPTS[:2])
    trainer.store, _ = trainer.experience.make(8, 0.05)
    for length, mask in zip((1, 3, 8, 2, 5, 8, 4, 6), trainer.store.loss_mask, strict=True):
        mask[length:] = 0  # uneven shares of the response tokens
    return trainer


def mean_gradient_step(trainer, halves):
    """What averaging the gradients of two processes comes to, done one after the other."""
    total = 0
    for half in halves:
        loss, _ = trainer.loss(trainer.minibatch(half))
        total = total + loss / len(halves)
    total.backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    trainer.scheduler.step()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Where two processes learnt, beside the single ones that are to agree with them."""
    root = tmp_path_factory.mktemp("two")
    trainers = {}
    for semantics in ("corrected", "trlx"):
        trainer = trainers[semantics] = trainer_of_one(root, semantics)
        torch.save(trainer.store.state_dict(), root / f"rollouts_{semantics}.pt")
    finished = launch(root, "learn")
    assert finished.returncode == 0, finished.stderr[-3000:]
    return root, trainers, finished


def assert_same_weights(trainer, path):
    theirs = torch.load(path, weights_only=True)
    assert theirs.keys() == trainer.trained.keys()
    for name, parameter in trainer.trained.items():
        torch.testing.assert_close(theirs[name], parameter.detach(), rtol=1e-4, atol=1e-6)


def test_two_processes_take_the_same_corrected_steps_as_one(two):
    """Whitening and losses run over all response tokens, wherever they were sampled."""
    root, trainers, _ = two
    trainer = trainers["corrected"]
    before = {name: p.detach().clone() for name, p in trainer.trained.items()}
    for _ in range(3):
        trainer.optimizer_step(range(8))
    assert any((p - before[name]).abs().max() > 1e-3 for name, p in trainer.trained.items())
    assert_same_weights(trainer, root / "weights_corrected.pt")


def test_two_processes_whiten_for_themselves_under_trlx(two):
    """trlX whitens and divides within each process; accelerate averages the gradients."""
    root, trainers, _ = two
    for _ in range(3):
        mean_gradient_step(trainers["trlx"], [range(0, 8, 2), range(1, 8, 2)])
    assert_same_weights(trainers["trlx"], root / "weights_trlx.pt")


def test_each_process_scores_its_own_samples_and_one_writes(two):
    root, _, finished = two
    seen = [
        {p for call in read_jsonl(root / f"seen_{rank}.jsonl") for p in call["prompts"]}
        for rank in (0, 1)
    ]
    assert seen[0] == set(PROMPTS[0::2]) and seen[1] == set(PROMPTS[1::2])
    lines = read_jsonl(root / "run" / "metrics.jsonl")
    steps = [line["step"] for line in lines if "losses/total_loss" in line]
    assert steps == list(range(1, 9))  # each once, also those after the first call
    samples = read_jsonl(root / "run" / "eval_samples.jsonl")
    assert [s["prompt"].strip() for s in samples if s["step"] == 0] == PROMPTS[:3]
    assert finished.stdout.count("going on from there") == 1


def test_logged_scores_are_those_of_all_processes(two):
    """trlX logs the last chunk's mean: here of the second call in each of both processes."""
    root, _, _ = two
    calls = [read_jsonl(root / f"seen_{rank}.jsonl") for rank in (0, 1)]
    second = [score for process in calls for score in process[1]["scores"]]
    assert len(second) == 4 and calls[0][1]["scores"] != calls[1][1]["scores"]
    lines = [x for x in read_jsonl(root / "run" / "metrics.jsonl") if "exp_scores/mean" in x]
    assert lines[0]["exp_scores/mean"] == pytest.approx(sum(second) / 4, rel=1e-6)
    assert len(lines) == 2


def test_a_run_goes_on_with_as_many_processes_only(two):
    root, _, _ = two
    config = run_config(root, train__total_steps=12, train__checkpoint_dir=str(root / "run"))
    with pytest.raises(ConfigError, match="2 processes, not 1"):
        train(reward_fn=letter_reward, prompts=PROMPTS, config=config)


def test_fsdp_is_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="FSDP is not supported"):
        PPOTrainer(run_config(tmp_path), letter_reward)


def test_what_cannot_be_shared_evenly_names_the_setting():
    processes = Processes()
    processes.number = 3
    with pytest.raises(ConfigError, match="train.batch_size is 32.*multiple of 3"):
        processes.share(32, "train.batch_size")


@pytest.mark.slow
@pytest.mark.parametrize("how, shown", [("raises", "the reward model is on strike"),
                                        ("killed", "SIGKILL")])  # fmt: skip
def test_a_process_that_dies_ends_the_others_within_a_minute(tmp_path, how, shown):
    model_dir(tmp_path)  # both processes read it
    finished = launch(tmp_path, how)
    seconds = time.time() - (tmp_path / "died").stat().st_mtime
    print(f"the other process and the launcher ended {seconds:.0f} s after the death")
    assert finished.returncode != 0
    assert shown in finished.stderr
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")  # what was learnt before is there
    assert seconds < 60


@pytest.mark.slow
def test_two_killed_processes_go_on_as_if_nothing_had_happened(tmp_path):
    """The same command once more, from a checkpoint in the middle of an iteration."""
    model_dir(tmp_path)  # both processes read it
    assert launch(tmp_path, "whole").returncode == 0
    assert launch(tmp_path, "killed_once").returncode != 0
    assert (tmp_path / "died").exists()
    again = launch(tmp_path, "killed_once")
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("going on from there") == 1
    assert_same_run(tmp_path / "whole", tmp_path / "killed_once")
