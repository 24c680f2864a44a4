"""What an optimizer step minimises, for each method, and the optimizer that takes it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from rlhf_helpers.algorithms.critic_free import grpo_loss, rloo_loss
from rlhf_helpers.algorithms.ppo import ppo_loss, whiten
from rlhf_helpers.config.sections import GRPOConfig, PPOConfig, RLOOConfig

from .processes import Processes
from .rollout import Minibatch
from .semantics import Semantics

Loss = tuple[Tensor, dict[str, Tensor]]


def method_loss(
    model: nn.Module,
    batch: Minibatch,
    method: PPOConfig,
    semantics: Semantics,
    kl_coef: float,
    processes: Processes,
) -> Loss:
    """The loss of `method` (PPO, RLOO or GRPO) on a minibatch, with gradients, and its statistics.

    `model` is the policy, or what accelerate wrapped around it; `kl_coef` is the controller's.
    """
    width = batch.logprobs.shape[1]
    logprobs, values = model(batch.tokens, batch.attention_mask, batch.start, width, batch.trunk)
    if isinstance(method, RLOOConfig):
        loss = rloo_loss(logprobs, batch.logprobs, batch.advantages[:, 0], batch.loss_mask)
        return _of_all(loss, batch.share)
    if isinstance(method, GRPOConfig):
        loss = grpo_loss(
            logprobs, batch.logprobs, batch.ref_logprobs, batch.advantages[:, 0],
            batch.loss_mask,
            cliprange=method.cliprange, kl_coef=kl_coef,
        )  # fmt: skip
        if kl_coef == 0:  # nothing is penalised, and not all rollouts were compared
            del loss.stats["losses/kl_penalty"]
        return _of_all(loss, batch.share)
    return _ppo(logprobs, values, batch, method, semantics, processes)


def _of_all(loss: Loss, share: float) -> Loss:
    """A mean over some rollouts, as the mean over all of which they are a share; the rest add 0."""
    total, stats = loss
    scaled = {name: x * share if name.startswith("losses/") else x for name, x in stats.items()}
    return total * share, scaled | {"rollout/teaching": share}


def _ppo(
    logprobs: Tensor,
    values: Tensor,
    batch: Minibatch,
    method: PPOConfig,
    semantics: Semantics,
    processes: Processes,
) -> Loss:
    mask = semantics.statistics_mask(batch.loss_mask)
    advantages = whiten(batch.advantages, mask, total=processes.sum)
    loss, stats = ppo_loss(
        logprobs, values, batch.logprobs, batch.values, advantages, batch.returns, batch.loss_mask,
        cliprange=method.cliprange, cliprange_value=method.cliprange_value,
        vf_coef=method.vf_coef, masked_kl=mask is not None,
    )  # fmt: skip
    if semantics.shares_mask_between_processes and processes.number > 1:
        # Gradients are averaged over processes: weigh each by its share of the response tokens,
        # so that every token counts the same wherever it was sampled.
        tokens = batch.loss_mask.sum()
        loss = loss * (processes.number * tokens / processes.sum(tokens))
    return loss, stats


def built(class_path: Callable[[str], str], section: Any, first_argument: Any) -> Any:
    """An optimizer or scheduler from its section of the configuration."""
    module, _, name = class_path(section.name).rpartition(".")
    kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in section.kwargs.items()}
    return getattr(importlib.import_module(module), name)(first_argument, **kwargs)
