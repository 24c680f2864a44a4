"""Proximal Policy Optimisation for text, as pure functions over tensors.

Nothing here knows about models, tokenizers or files: it can be read alone, next to
Schulman et al. 2017 (PPO, arXiv:1707.06347) and Ziegler et al. 2019 (arXiv:1909.08593).

Shapes: B sequences in a minibatch, T columns of the response (padded on the right), V tokens in
the vocabulary. A column is one decision: the hidden state before a token and the token drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# --- log-probabilities ---------------------------------------------------------------------


def logprobs_of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each label under its logits: [B, T, V], [B, T] -> [B, T], in nats."""
    if not torch.is_grad_enabled():  # the same without writing V log-probabilities to keep one
        chosen = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        return chosen - logits.logsumexp(dim=-1)
    return F.log_softmax(logits, dim=-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def masked_mean(xs: Tensor, mask: Tensor) -> Tensor:
    """Mean of `xs` where `mask` is 1: [B, T], [B, T] -> []."""
    return (xs * mask).sum() / mask.sum()


# --- KL divergence to the reference policy --------------------------------------------------


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Unbiased estimate of KL(policy || reference) per sampled token, in nats; may be negative.

    k1 = log pi - log pi_ref (Schulman 2020, "Approximating KL divergence").
    """
    return logprobs - ref_logprobs


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Unbiased, never negative, in nats: k3 = (r - 1) - log r, r = pi_ref / pi (Schulman 2020)."""
    log_r = ref_logprobs - logprobs
    return torch.expm1(log_r) - log_r  # expm1: exact where the two policies nearly agree


def kl_trlx(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """What trlX v0.6.0 logs as KL: k3 with the ratio turned round, r = pi / pi_ref, in nats."""
    return kl_k3(ref_logprobs, logprobs)


class FixedKLController:
    """A KL coefficient that never changes."""

    def __init__(self, kl_coef: float):
        self.value = kl_coef

    def update(self, current: float, n_steps: int) -> None:
        """Do nothing, whatever the divergence."""


class AdaptiveKLController:
    """Raise the coefficient when KL is above its target, lower it when below.

    Ziegler et al. 2019, section 2.2: e = clip(KL / target - 1, -0.2, 0.2),
    coefficient *= 1 + e * n_steps / horizon.
    """

    def __init__(self, init_kl_coef: float, target: float, horizon: int):
        self.value = init_kl_coef
        self.target = target
        self.horizon = horizon

    def update(self, current: float, n_steps: int) -> None:
        """Move by the error of `current` (nats) after `n_steps` more samples."""
        error = min(max(current / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * n_steps / self.horizon


def kl_controller(init_kl_coef: float, target: float | None, horizon: int):
    """The controller that a configuration asks for: fixed where it names no target."""
    if target is None:
        return FixedKLController(init_kl_coef)
    return AdaptiveKLController(init_kl_coef, target, horizon)


# --- scores --------------------------------------------------------------------------------


@dataclass
class RunningMoments:
    """Mean and variance of all scores so far, batch by batch (Chan et al. 1979)."""

    mean: float = 0.0
    var: float = 1.0  # biased
    std: float = 1.0  # unbiased
    count: float = 1e-24

    def update(self, xs: Tensor) -> tuple[float, float]:
        """Take in scores xs [n]; return this batch's mean and unbiased standard deviation."""
        n = xs.numel()
        batch_var, batch_mean = torch.var_mean(xs.double(), correction=0)
        batch_mean, batch_var = batch_mean.item(), batch_var.item()
        delta = batch_mean - self.mean
        total = self.count + n
        m2 = self.var * self.count + batch_var * n + delta**2 * self.count * n / total
        self.mean += delta * n / total
        self.var = m2 / total
        self.count = total
        self.std = math.sqrt(self.var * total / (total - 1)) if total > 1 else math.sqrt(self.var)
        unbiased = batch_var * n / (n - 1) if n > 1 else float("nan")
        return batch_mean, math.sqrt(unbiased)


# --- advantages ----------------------------------------------------------------------------


def gae(values: Tensor, rewards: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns, both [B, T].

    Schulman et al. 2016 (arXiv:1506.02438), equation 16, with value 0 after the last column:
    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  R_t = A_t + V_t.
    """
    width = rewards.shape[1]
    following = 0.0  # A_{t+1}
    columns = []
    for t in reversed(range(width)):
        next_value = values[:, t + 1] if t + 1 < width else 0.0
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = delta + gamma * lam * following
        columns.append(following)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, advantages + values


def whiten(
    xs: Tensor,
    mask: Tensor | None = None,
    shift_mean: bool = True,
    total: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """Scale to variance 1 and, with `shift_mean`, to mean 0. [B, T] -> [B, T]

    Without a mask every entry counts, padding included, as in trlX. With one, only the entries
    where it is 1 enter the moments, and the others come out as 0; `total` adds a number up over
    the processes of one run, so that they share their moments.
    """
    if mask is None:
        var, mean = torch.var_mean(xs, correction=min(1, xs.numel() - 1))  # one entry: 0, no NaN
        whitened = (xs - mean) * torch.rsqrt(var + 1e-8)
        return whitened if shift_mean else whitened + mean
    n = total(mask.sum())
    mean = total((xs * mask).sum()) / n
    var = total(((xs - mean) ** 2 * mask).sum()) / (n - 1).clamp(min=1)
    whitened = (xs - mean) * torch.rsqrt(var + 1e-8)
    return (whitened if shift_mean else whitened + mean) * mask


# --- the loss ------------------------------------------------------------------------------


class Loss(NamedTuple):
    """The number to differentiate, and the statistics to log under trlX's names (tensors)."""

    total: Tensor
    stats: dict[str, Tensor]


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, cliprange: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Clipped surrogate objective (PPO, equation 7), as a loss. All inputs [B, T].

    Returns the loss, the share of columns where the clipped branch is the larger, and
    the ratio pi / pi_old [B, T].
    """
    ratio = torch.exp((logprobs - old_logprobs) * mask)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    loss = masked_mean(torch.max(unclipped, clipped), mask)
    clipfrac = masked_mean((clipped > unclipped).float(), mask)
    return loss, clipfrac, ratio


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange_value: float
) -> tuple[Tensor, Tensor]:
    """Half the squared error, the larger of unclipped and clipped around the old values. [B, T]

    Returns the loss and the share of columns where the clipped error is the larger.
    """
    clipped = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    error, clipped_error = (values - returns) ** 2, (clipped - returns) ** 2
    loss = 0.5 * masked_mean(torch.max(error, clipped_error), mask)
    return loss, masked_mean((clipped_error > error).float(), mask)


def ppo_loss(
    logprobs: Tensor,
    values: Tensor,
    old_logprobs: Tensor,
    old_values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    cliprange: float,
    cliprange_value: float,
    vf_coef: float,
    masked_kl: bool = False,
) -> Loss:
    """PPO's loss on one minibatch, policy and value together (PPO, equation 9, no entropy term).

    All tensors [B, T]; `mask` is 1 on the columns that count. `masked_kl` takes approx_kl over
    those columns only, where trlX takes it over all of them.
    """
    mask = mask.to(logprobs.dtype)
    pg_loss, pg_clipfrac, ratio = policy_loss(logprobs, old_logprobs, advantages, mask, cliprange)
    vf_loss, vf_clipfrac = value_loss(values, old_values, returns, mask, cliprange_value)
    total = pg_loss + vf_coef * vf_loss
    with torch.no_grad():
        k3 = ratio - 1 - (logprobs - old_logprobs) * mask
        padding = mask == 0
        stats = {
            "losses/total_loss": total,
            "losses/policy_loss": pg_loss,
            "losses/value_loss": vf_loss,
            **_summary("values", values, mask, padding),
            "values/values_error": masked_mean((values - returns) ** 2, mask),
            "values/clipfrac": vf_clipfrac,
            **_summary("old_values", old_values, mask, padding),
            **_summary("returns", returns, mask, padding),
            "policy/approx_kl": masked_mean(k3, mask) if masked_kl else k3.mean(),
            "policy/clipfrac": pg_clipfrac,
            "ratio": masked_mean(ratio, mask),
            "padding_percentage": mask.mean(),  # trlX's name for the share that is NOT padding
        }
    return Loss(total, {name: x.detach() for name, x in stats.items()})


def _summary(name: str, xs: Tensor, mask: Tensor, padding: Tensor) -> dict[str, Tensor]:
    """Mean, min, max and biased standard deviation where the mask is 1, `padding` where not."""
    count = mask.sum()
    mean = (xs * mask).sum() / count
    return {
        f"{name}/mean": mean,
        f"{name}/min": xs.masked_fill(padding, math.inf).min(),
        f"{name}/max": xs.masked_fill(padding, -math.inf).max(),
        f"{name}/std": (((xs - mean) ** 2 * mask).sum() / count).sqrt(),
    }
