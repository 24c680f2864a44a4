"""Everything that a run needs to go on exactly where it was: out of a trainer, and back into it."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_helpers.config.checks import ConfigError

from .experience import Collection, samples_per_prompt
from .random_states import random_states, set_random_states
from .rollout import COLUMNS, RolloutStore

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
        # Packed products differ in the last bits: a run that goes on computes as it did before.
        "packed": trainer.policy.packs_weights,
        "processes": [part for (part,) in trainer.processes.gather([_of_this_process(trainer)])],
    }


def _of_this_process(trainer) -> dict[str, Any]:
    """What differs between the processes of one run."""
    prompts = trainer.experience.prompts
    return {
        "store": None if trainer.store is None else trainer.store.state_dict(),
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
    trainer.store = restored_rollouts(trainer, own["store"])
    experience.collection = _unpacked(trainer, own["collection"])
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
    trainer.policy.packs_weights = state.get("packed")
    set_random_states(own["random"])


def kept_weights(trainer) -> dict[str, Any]:
    """Copies of what an optimizer step changes: trained parameters and the optimizer's state."""
    optimizer = trainer.optimizer.state_dict()
    return {
        "trained": {name: p.detach().clone() for name, p in trainer.trained.items()},
        # Not deepcopy: that takes as long as a small model's optimizer step.
        "optimizer": {
            "state": {
                i: {k: x.clone() if isinstance(x, Tensor) else copy.deepcopy(x)
                    for k, x in moments.items()}
                for i, moments in optimizer["state"].items()
            },
            "param_groups": copy.deepcopy(optimizer["param_groups"]),
        },
    }  # fmt: skip


def put_back_weights(trainer, kept: dict[str, Any]) -> None:
    """Undo all optimizer steps since `kept_weights`."""
    with torch.no_grad():
        for name, parameter in trainer.trained.items():
            parameter.copy_(kept["trained"][name])
    trainer.optimizer.load_state_dict(copy.deepcopy(kept["optimizer"]))


def restored_rollouts(trainer, saved) -> RolloutStore | None:
    """Rollouts of a checkpoint on the policy's device; None where there are none."""
    if not saved:
        return None
    if isinstance(saved, list):
        saved = before_the_store(saved, trainer)
    return RolloutStore.from_state(saved).to(trainer.policy.device)


def _packed(collection: Collection | None) -> dict[str, Any] | None:
    if collection is None:
        return None
    return {**vars(collection), "chunks": [chunk.state_dict() for chunk in collection.chunks]}


def _unpacked(trainer, fields: dict[str, Any] | None) -> Collection | None:
    if fields is None:
        return None
    if "rollouts" in fields:  # written before there was a store
        fields = {**fields, "chunks": [fields["rollouts"]], "divergences": fields["kls"]}
        fields = {k: v for k, v in fields.items() if k not in ("rollouts", "kls")}
    chunks = [restored_rollouts(trainer, chunk) for chunk in fields["chunks"]]
    return Collection(**{**fields, "chunks": [chunk for chunk in chunks if chunk is not None]})


def before_the_store(rollouts: list[dict[str, Any]], trainer) -> dict[str, Any]:
    """The state of a store, from rollouts as checkpoints held them until November 2026: one by one.

    A rollout's `query` [Q], `response` [R] and columns [T] had the widths of its chunk.
    """
    stores = []
    for r in rollouts:
        query, response, columns = len(r["query"]), len(r["response"]), len(r["logprobs"])
        stores.append(
            RolloutStore(
                tokens=torch.cat([r["query"], r["response"]])[None],
                attention_mask=r["attention_mask"][None],
                query_widths=[query], response_widths=[response], columns=[columns],
                scores=[r["score"]],
                trunk=None if r["trunk"] is None else r["trunk"][None],
                **{name: F.pad(r[name], (0, response - columns))[None] for name in COLUMNS},
            )
        )  # fmt: skip
    store = RolloutStore.joined(stores, trainer.tokenizer.pad_token_id)
    if samples_per_prompt(trainer.config.method) > 1:
        store.advantages = torch.tensor([[r["advantage"]] for r in rollouts])
        store.returns = store.advantages
    else:
        store.set_advantages(trainer.config.method.gamma, trainer.config.method.lam)
    return store.state_dict()
