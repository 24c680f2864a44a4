"""Learning from preferences: Bradley-Terry, the reward model's loss and DPO, as pure functions.

Nothing here knows about models, tokenizers or files. To be read next to Bradley and Terry 1952
("Rank analysis of incomplete block designs"), Stiennon et al. 2020 (arXiv:2009.01325, section
3.4), Ouyang et al. 2022 (InstructGPT, arXiv:2203.02155, equation 1) and Rafailov et al. 2023
(DPO, arXiv:2305.18290, equations 1, 2 and 7).

Shapes: n pairs; each of a pair's two texts has one number. A difference is always that of the
first text less that of the second, or of the chosen text less that of the rejected one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# --- who prefers what ----------------------------------------------------------------------


def preference_probability(
    difference: Tensor, temperature: float = 1.0, random_share: float = 0.0
) -> Tensor:
    """Probability that the first text is preferred: [n] -> [n].

    Bradley and Terry 1952, with rewards in place of log strengths (Rafailov et al. 2023,
    equation 1): P(first over second) = sigmoid((r_first - r_second) / temperature). A share of
    the answers is given without looking, by a fair coin. `temperature` has the rewards' unit: at
    0 the higher reward always wins, and equal rewards are a coin's throw.
    """
    if temperature > 0:
        looked = torch.sigmoid(difference / temperature)
    else:
        looked = (torch.sign(difference) + 1) / 2
    return (1 - random_share) * looked + random_share / 2


def accuracy_ceiling(
    difference: Tensor, temperature: float = 1.0, random_share: float = 0.0
) -> Tensor:
    """The accuracy on these pairs of one who knows the true rewards: [n] -> [].

    Annotators contradict the truth: the best guess of an answer is right with the probability of
    the likelier answer, max(p, 1 - p), and the ceiling is its mean over pairs (the complement of
    the Bayes error).
    """
    p = preference_probability(difference, temperature, random_share)
    return torch.maximum(p, 1 - p).mean()


# --- the reward model ----------------------------------------------------------------------


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Loss of a reward model, in nats a pair: [n], [n] -> [].

    -mean log sigmoid(r_chosen - r_rejected): the negative log-likelihood of the answers under
    Bradley-Terry (Ouyang et al. 2022, equation 1; Rafailov et al. 2023, equation 2). A model that
    knows nothing has log 2 = 0.693.
    """
    return -F.logsigmoid(chosen - rejected).mean()


def preference_accuracy(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Share of pairs in which the chosen text has the higher reward: [n], [n] -> [].

    Equal rewards are half right, as a coin's throw would be.
    """
    difference = chosen - rejected
    return ((torch.sign(difference) + 1) / 2).mean()


# --- direct preference optimisation --------------------------------------------------------


class DPOLoss(NamedTuple):
    """DPO's loss, with gradients, and what to watch beside it, without."""

    loss: Tensor  # []
    accuracy: Tensor  # [] share of pairs whose chosen text has the higher implicit reward
    margin: Tensor  # [] mean difference of the implicit rewards, nats times beta


def dpo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> DPOLoss:
    """Direct preference optimisation: four [n] -> a loss in nats a pair.

    Each argument is log pi(response | prompt), summed over the response's tokens: of the policy,
    then of the reference policy. The policy's implicit reward is beta log(pi / pi_ref), up to a
    constant of the prompt, and the loss is Bradley-Terry's with it (Rafailov et al. 2023,
    equation 7): -mean log sigmoid(beta (log pi_w/ref_w - log pi_l/ref_l)).
    """
    reward_chosen = beta * (chosen - ref_chosen)
    reward_rejected = beta * (rejected - ref_rejected)
    loss = bradley_terry_loss(reward_chosen, reward_rejected)
    with torch.no_grad():
        accuracy = preference_accuracy(reward_chosen, reward_rejected)
        margin = (reward_chosen - reward_rejected).mean()
    return DPOLoss(loss, accuracy, margin)
