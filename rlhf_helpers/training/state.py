"""Everything that a run needs to go on exactly where it was: out of a trainer, and back into it."""

from __future__ import annotations

import copy
from typing import Any

import torch

from rlhf_helpers.config.trl_config import ConfigError

from .experience import Collection
from .random_states import random_states, set_random_states
from .rollout import Rollout

# Numbers and lists of the loop, by the names of the trainer's attributes.
LOOP = ("step", "iteration", "position", "plan", "mean_kl", "best_reward", "shown", "todo")


def state_of(trainer) -> dict[str, Any]:
    """What `save_checkpoint` writes: configuration, loop, weights, optimizer, rollouts, generators.

    The base model is not among it: its weights are frozen.
    """
    scaler = trainer.accelerator.scaler
    return {
        "config": trainer.config.to_dict(),
        "loop": {
            **{name: getattr(trainer, name) for name in LOOP},
            "kl_coef": trainer.kl_ctl.value,
            "was_last": trainer.step >= trainer.total_steps,
            "scaler": trainer.experience.scaler.state_dict(),
            "watchdog": trainer.watchdog.state_dict(),
            "lines": dict(trainer.log.lines),
        },
        "trained": {name: p.detach() for name, p in trainer.trained.items()},
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.scheduler.state_dict(),
        "loss_scale": None if scaler is None else scaler.state_dict(),
        # At the start of an iteration they are the weights above.
        "good_weights": trainer.good_weights if trainer.position else None,
        "minibatch_order": trainer.generator.get_state(),
        "processes": [part for (part,) in trainer.processes.gather([_of_this_process(trainer)])],
    }


def _of_this_process(trainer) -> dict[str, Any]:
    """What differs between the processes of one run."""
    prompts = trainer.experience.prompts
    return {
        "store": [vars(rollout) for rollout in trainer.store],
        "collection": _packed(trainer.experience.collection),
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
    if state["loss_scale"] is not None and trainer.accelerator.scaler is not None:
        trainer.accelerator.scaler.load_state_dict(state["loss_scale"])
    trainer.store = [Rollout(**fields) for fields in own["store"]]
    experience.collection = _unpacked(own["collection"])
    for name in LOOP:
        setattr(trainer, name, loop[name])
    trainer.kl_ctl.value = loop["kl_coef"]
    trainer.was_last = loop["was_last"]
    experience.prompts.epoch, experience.prompts.position = own["prompts"]
    experience.scaler.load_state_dict(loop["scaler"])
    trainer.watchdog.load_state_dict(loop["watchdog"])
    trainer.saved_lines = loop["lines"]
    trainer.good_weights = state["good_weights"]
    if trainer.good_weights is None and trainer.watchdog.active:
        trainer.good_weights = kept_weights(trainer)
    trainer.generator.set_state(state["minibatch_order"])
    set_random_states(own["random"])


def kept_weights(trainer) -> dict[str, Any]:
    """Copies of what an optimizer step changes: trained parameters and the optimizer's state."""
    return {
        "trained": {name: p.detach().clone() for name, p in trainer.trained.items()},
        "optimizer": copy.deepcopy(trainer.optimizer.state_dict()),
    }


def put_back_weights(trainer, kept: dict[str, Any]) -> None:
    """Undo all optimizer steps since `kept_weights`."""
    with torch.no_grad():
        for name, parameter in trainer.trained.items():
            parameter.copy_(kept["trained"][name])
    trainer.optimizer.load_state_dict(copy.deepcopy(kept["optimizer"]))


def _packed(collection: Collection | None) -> dict[str, Any] | None:
    if collection is None:
        return None
    return {**vars(collection), "rollouts": [vars(r) for r in collection.rollouts]}


def _unpacked(fields: dict[str, Any] | None) -> Collection | None:
    if fields is None:
        return None
    return Collection(**{**fields, "rollouts": [Rollout(**r) for r in fields["rollouts"]]})
