"""Log-probabilities of labels through the output head, without keeping logits if it is frozen.

The head's logits [rows, V] are by far the largest tensors of an update: V is the vocabulary. The
head does not learn, so backpropagation needs only the gradient for the hidden states, and that
can be worked out at once while the logits are there, some rows at a time:

    logprob = z[label] - logsumexp(z),  z = W h / T   =>   d logprob / d h = W^T (e_label - p) / T,

p = softmax(z), T the temperature (times what the model itself divides its logits by). The same
multiplications as the usual way (one with W forward, one back), in memory for a slice of logits
instead of three copies of all of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig

from rlhf_helpers.algorithms.ppo import logprobs_of_labels
from rlhf_helpers.config.checks import ConfigError, shown

from .packed import PackedWeight, packed_of

ROWS_ON_CPU = 164  # hidden states whose logits are held at once: four responses of 41 columns
ROWS_ON_GPU = 2048


def is_frozen_linear(head: nn.Module) -> bool:
    """Whether the head is an ordinary linear layer that nobody trains or has wrapped."""
    return (
        isinstance(head, nn.Linear)
        and ("forward" not in vars(head) or "packed" in vars(head))
        and not any(p.requires_grad for p in head.parameters())
        and head.weight.is_floating_point()
    )


def head_divisor(shape: PretrainedConfig) -> float:
    """What a model divides its head's output by to get logits: Granite and Cohere do, others by 1.

    Raises ConfigError where the model caps its logits, whose gradient is not worked out here.
    """
    if getattr(shape, "final_logit_softcapping", None):
        raise ConfigError(
            f"{shown(shape.name_or_path)} caps its logits (final_logit_softcapping is "
            f"{shape.final_logit_softcapping}), which is not supported: take another model, such "
            "as a newer one of its family."
        )
    return (getattr(shape, "logits_scaling", None) or 1.0) / (
        getattr(shape, "logit_scale", None) or 1.0
    )


def head_logprobs(hidden: Tensor, head: nn.Module, labels: Tensor, divisor: float) -> Tensor:
    """Hidden states [B, T, h] and the tokens that follow them [B, T] -> nats [B, T].

    Logits are what the head gives / `divisor`, in float32. With gradients where they are enabled.
    """
    if not torch.is_grad_enabled():
        # Some rows at a time: their logits stay in the processor's cache.
        rows = ROWS_ON_GPU if hidden.is_cuda else ROWS_ON_CPU
        slices = zip(hidden.flatten(0, 1).split(rows), labels.flatten().split(rows), strict=True)
        logprobs = [logprobs_of_labels(_divided(head(h), divisor), ids) for h, ids in slices]
        return torch.cat(logprobs).unflatten(0, labels.shape)
    if is_frozen_linear(head):
        return frozen_head_logprobs(hidden, head, labels, divisor)
    return logprobs_of_labels(_divided(head(hidden), divisor), labels)


def _divided(logits: Tensor, divisor: float) -> Tensor:
    return logits.float() if divisor == 1 else logits.float() / divisor


def frozen_head_logprobs(
    hidden: Tensor, head: nn.Linear, labels: Tensor, temperature: float = 1.0
) -> Tensor:
    """Hidden states [B, T, h] and the tokens that follow them [B, T] -> nats [B, T]."""
    logprobs = _FrozenHead.apply(
        hidden.flatten(0, 1), head.weight, head.bias, labels.flatten(), temperature,
        packed_of(head, hidden),
    )  # fmt: skip
    return logprobs.unflatten(0, labels.shape)


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        temperature: float,
        packed: PackedWeight | None,
    ) -> Tensor:
        rows = ROWS_ON_GPU if hidden.is_cuda else ROWS_ON_CPU
        logprobs, gradients = [], []
        for h, label in zip(hidden.split(rows), labels.unsqueeze(1).split(rows), strict=True):
            logits = packed.product(h) if packed else F.linear(h, weight, bias).float()
            if temperature != 1:
                logits.div_(temperature)
            normaliser = logits.logsumexp(-1, keepdim=True)
            logprobs.append((logits.gather(1, label) - normaliser).squeeze(1))
            change = logits.sub_(normaliser).exp_().neg_()  # e_label - p, in the logits' memory
            change.scatter_add_(1, label, torch.ones_like(normaliser))
            back = packed.product_back(change) if packed else change.to(weight.dtype) @ weight
            gradients.append(back.to(hidden.dtype))
        ctx.save_for_backward(torch.cat(gradients))
        ctx.temperature = temperature
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx, upstream: Tensor):
        (gradient,) = ctx.saved_tensors
        upstream = upstream.unsqueeze(1) / ctx.temperature
        return (upstream * gradient).to(gradient.dtype), None, None, None, None, None
