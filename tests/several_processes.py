"""What each process of a run does in tests/training/test_processes.py.

    accelerate launch --multi_gpu --num_processes 2 tests/several_processes.py ROOT TASK

TASK is "learn" (optimizer steps on given rollouts, and a whole run that goes on once), "whole" or
"killed_once" (a run in ROOT/TASK that is undisturbed, or killed at its first start), or the name of
a way in which the second process ends for good: "raises" or "killed".
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from tiny_runs import PROMPTS, letter_reward, run_config

from rlhf_helpers.training.api import train
from rlhf_helpers.training.rollout import RolloutStore
from rlhf_helpers.training.trainer import PPOTrainer


def optimizer_steps(root: Path, semantics: str) -> None:
    """Three steps on this process's half of the minibatch in ROOT; weights to a file."""
    config = run_config(
        root, method__semantics=semantics, model__delta_kwargs__lora_dropout=0.0,
        train__batch_size=8, train__checkpoint_dir=str(root / f"steps_{semantics}"),
    )  # fmt: skip
    trainer = PPOTrainer(config, letter_reward)
    rollouts = torch.load(root / f"rollouts_{semantics}.pt", weights_only=True)
    store = RolloutStore.from_state(rollouts)
    trainer.store = store.chosen(trainer.processes.own(range(len(store))))
    for _ in range(3):
        trainer.optimizer_step(range(len(trainer.store)))
    if trainer.processes.is_main:
        weights = {name: p.detach() for name, p in trainer.trained.items()}
        torch.save(weights, root / f"weights_{semantics}.pt")


def whole_run(root: Path) -> None:
    """Four steps, then the same call for four more; what the reward function saw goes to files."""
    seen = open(root / f"seen_{os.environ['RANK']}.jsonl", "a")

    def reward_fn(samples, prompts, **kwargs):
        scores = letter_reward(samples)
        seen.write(json.dumps({"prompts": prompts, "scores": scores}) + "\n")
        return scores

    for total_steps in (4, 8):
        config = run_config(
            root, train__total_steps=total_steps, train__checkpoint_dir=str(root / "run")
        )
        train(reward_fn=reward_fn, prompts=PROMPTS, eval_prompts=PROMPTS[:3], config=config)


def run_killed_once(root: Path, name: str) -> None:
    """Twelve steps in ROOT/name; as "killed_once" the second process is killed in between.

    Only the first time: the same call then goes on.
    """
    calls = []
    dies = name == "killed_once" and os.environ["RANK"] == "1" and not (root / "died").exists()

    def reward_fn(samples, **kwargs):
        calls.append(1)
        if dies and len(list((root / name / "checkpoints").glob("*"))) and len(calls) > 5:
            (root / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return letter_reward(samples)

    config = run_config(
        root, train__total_steps=12, train__checkpoint_interval=3,
        train__checkpoint_dir=str(root / name),
    )  # fmt: skip
    train(reward_fn=reward_fn, prompts=PROMPTS, eval_prompts=PROMPTS[:2], config=config)


def run_of_which_one_dies(root: Path, how: str) -> None:
    """The second process dies in its third reward call, while the first waits for it."""
    calls = []

    def reward_fn(samples, **kwargs):
        calls.append(1)
        if len(calls) == 3 and os.environ["RANK"] == "1":
            (root / "died").touch()
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("the reward model is on strike")
        return letter_reward(samples)

    train(reward_fn=reward_fn, prompts=PROMPTS, config=run_config(root, train__total_steps=100))


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, task = Path(sys.argv[1]), sys.argv[2]
    if task == "learn":
        for semantics_name in ("corrected", "trlx"):
            optimizer_steps(folder, semantics_name)
        whole_run(folder)
    elif task in ("whole", "killed_once"):
        run_killed_once(folder, task)
    else:
        run_of_which_one_dies(folder, task)
