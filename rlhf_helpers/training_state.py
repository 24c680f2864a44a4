"""Everything that a run needs to go on exactly where it was: out of a trainer, and back into it."""

from __future__ import annotations

from typing import Any

import torch

from .checkpoint import random_states, set_random_states
from .config import ConfigError
from .rollout import Rollout

# Numbers and lists of the loop, by the names of the trainer's attributes.
LOOP = ("step", "iteration", "position", "plan", "mean_kl", "best_reward", "shown")


def state_of(trainer) -> dict[str, Any]:
    """What `save_checkpoint` writes: configuration, loop, weights, optimizer, rollouts, generators.

    The base model is not among it: its weights are frozen.
    """
    return {
        "config": trainer.config.to_dict(),
        "loop": {
            **{name: getattr(trainer, name) for name in LOOP},
            "kl_coef": trainer.kl_ctl.value,
            "was_last": trainer.step >= trainer.total_steps,
            "scaler": trainer.experience.scaler.state_dict(),
        },
        "trained": {name: p.detach() for name, p in trainer.trained.items()},
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.scheduler.state_dict(),
        "minibatch_order": trainer.generator.get_state(),
        "processes": [part for (part,) in trainer.processes.gather([_of_this_process(trainer)])],
    }


def _of_this_process(trainer) -> dict[str, Any]:
    """What differs between the processes of one run."""
    prompts = trainer.experience.prompts
    return {
        "store": [vars(rollout) for rollout in trainer.store],
        "random": random_states(),
        "prompts": [prompts.epoch, prompts.position],
    }


def restore(trainer, state: dict[str, Any]) -> None:
    """Put a trainer of the same configuration into the state that `state_of` described.

    Raises ConfigError where the run had another number of processes.
    """
    parts, number = state["processes"], trainer.processes.number
    if len(parts) != number:
        raise ConfigError(
            f"{trainer.directory} holds a run of {len(parts)} processes, not {number}: start it "
            "with as many, or choose another directory."
        )
    loop, own, experience = state["loop"], parts[trainer.processes.index], trainer.experience
    with torch.no_grad():
        for name, parameter in trainer.trained.items():
            parameter.copy_(state["trained"][name])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scheduler.load_state_dict(state["scheduler"])
    trainer.store = [Rollout(**fields) for fields in own["store"]]
    for name in LOOP:
        setattr(trainer, name, loop[name])
    trainer.kl_ctl.value = loop["kl_coef"]
    trainer.was_last = loop["was_last"]
    experience.prompts.epoch, experience.prompts.position = own["prompts"]
    experience.scaler.load_state_dict(loop["scaler"])
    trainer.generator.set_state(state["minibatch_order"])
    set_random_states(own["random"])
