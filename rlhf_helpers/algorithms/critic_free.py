"""RLOO and GRPO, which take a prompt's other samples as the baseline instead of a value function.

Pure functions over tensors, to be read next to `ppo.py` and the two papers:
Ahmadian et al. 2024, "Back to Basics" (arXiv:2402.14740, the REINFORCE leave-one-out estimator,
after Kool et al. 2019), and Shao et al. 2024, "DeepSeekMath" (arXiv:2402.03300, section 4.1,
equations 3, 4).

Shapes: n prompts, k samples of each; B sequences in a minibatch, T columns of the response.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ppo import Loss, kl_k3, masked_mean


def leave_one_out_advantages(rewards: Tensor) -> Tensor:
    """Each reward less the mean of the other k - 1 samples' of its prompt: [n, k] -> [n, k].

    RLOO: A_i = R_i - 1/(k-1) sum_{j != i} R_j. The baseline does not depend on sample i, so that
    it leaves the gradient's expectation as it is.
    """
    k = rewards.shape[1]
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (k - 1)
    return rewards - others


def group_normalised_advantages(rewards: Tensor) -> Tensor:
    """Each reward in standard deviations of its prompt's k samples: [n, k] -> [n, k].

    GRPO: A_i = (R_i - mean(R)) / std(R), here with the unbiased deviation. Equal rewards teach
    nothing: their advantages are 0.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True) + 1e-4)


def rloo_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Loss:
    """REINFORCE with given advantages, as a loss: -1/B sum_i A_i sum_t pi_t / pi_old_t.

    logprobs, old_logprobs, mask [B, T]; advantages [B], one a sequence. Where the policy is still
    the one that sampled, every ratio is 1 and the gradient is RLOO's, A_i times the gradient of
    the sequence's log-probability; later steps on the same samples reweight each token by its
    ratio. Nothing is clipped, so that few epochs are advisable (the paper's is one).
    """
    mask = mask.to(logprobs.dtype)
    ratio = torch.exp((logprobs - old_logprobs) * mask)
    total = -(advantages.unsqueeze(1) * ratio * mask).sum(1).mean()
    return Loss(total, _stats(total, total, logprobs, old_logprobs, advantages, mask))


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    cliprange: float,
    kl_coef: float,
) -> Loss:
    """GRPO's clipped objective and its KL penalty, as a loss (equations 3 and 4).

    All tensors [B, T] but advantages [B]. Both terms are averaged over each sequence's tokens
    first and then over sequences; the penalty is k3 against the reference, part of the loss and
    not of the reward.
    """
    mask = mask.to(logprobs.dtype)
    lengths = mask.sum(1).clamp(min=1)
    ratio = torch.exp((logprobs - old_logprobs) * mask)
    unclipped = advantages.unsqueeze(1) * ratio
    clipped = advantages.unsqueeze(1) * ratio.clamp(1 - cliprange, 1 + cliprange)
    gain = (torch.min(unclipped, clipped) * mask).sum(1) / lengths
    penalty = (kl_k3(logprobs * mask, ref_logprobs * mask).sum(1) / lengths).mean()
    total = kl_coef * penalty - gain.mean()
    stats = _stats(total, -gain.mean(), logprobs, old_logprobs, advantages, mask)
    clipfrac = masked_mean((clipped < unclipped).to(mask.dtype), mask)
    stats |= {"losses/kl_penalty": penalty.detach(), "policy/clipfrac": clipfrac.detach()}
    return Loss(total, stats)


def _stats(total, pg_loss, logprobs, old_logprobs, advantages, mask) -> dict[str, Tensor]:
    """What to log, under the names that PPO's loss uses for the same things."""
    with torch.no_grad():
        log_ratio = (logprobs - old_logprobs) * mask
        stats = {
            "losses/total_loss": total,
            "losses/policy_loss": pg_loss,
            "advantages/mean": advantages.mean(),
            "advantages/std": advantages.std(correction=0),
            "policy/approx_kl": masked_mean(log_ratio.exp() - 1 - log_ratio, mask),
            "ratio": masked_mean(log_ratio.exp(), mask),
            "padding_percentage": mask.mean(),  # trlX's name for the share that is NOT padding
        }
    return {name: x.detach() for name, x in stats.items()}
