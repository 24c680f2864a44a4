"""Rollouts: what the policy wrote, how it scored, and what PPO keeps of it, as one set of tensors.

Shapes: n rollouts, Q widest prompt, R widest response, N = Q + R. Prompts are padded on the left,
responses on the right. Stored column t is the decision that predicts token t of the response: the
first is made at the last prompt token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_helpers.algorithms.ppo import gae
from rlhf_helpers.models.policy import Policy

from .semantics import Semantics
from .sequences import Sequences

Scores = list[float] | list[list[float]]
TOKENS = ("tokens", "attention_mask")  # [n, N]
COLUMNS = ("logprobs", "ref_logprobs", "values", "rewards", "loss_mask")  # [n, R]
LEARNT_FROM = ("advantages", "returns")  # [n, R], made from the columns


@dataclass
class Minibatch:
    """Rollouts for one optimizer step. B rollouts, T stored columns, N = Q + R tokens."""

    tokens: Tensor  # [B, N]
    attention_mask: Tensor  # [B, N]
    start: int  # index of the first stored column, Q - 1
    logprobs: Tensor  # [B, T]
    ref_logprobs: Tensor  # [B, T]
    values: Tensor  # [B, T]
    rewards: Tensor  # [B, T]
    loss_mask: Tensor  # [B, T]
    advantages: Tensor  # [B, T], before whitening; RLOO and GRPO: [B, 1], of whole responses
    returns: Tensor  # [B, T]; RLOO and GRPO: the advantages again
    trunk: Tensor | None  # [B, N, h]
    share: float = 1.0  # B as a share of the rollouts that this step is taken on: see `teaching`


@dataclass
class RolloutStore:
    """n rollouts on one device: the only owner of their tensors."""

    tokens: Tensor  # [n, N]
    attention_mask: Tensor  # [n, N] 1 where a token can be attended to
    logprobs: Tensor  # [n, R] of the policy that sampled, nats
    ref_logprobs: Tensor  # [n, R] of the reference policy, nats; `logprobs` where it was not asked
    values: Tensor  # [n, R] value head at sampling time
    rewards: Tensor  # [n, R] KL penalty per token, plus the score
    loss_mask: Tensor  # [n, R] 1 on the columns that enter the loss
    query_widths: list[int]  # prompt length of each, with the padding of its chunk
    response_widths: list[int]  # the same of the response
    columns: list[int]  # how many stored columns each has; behind them everything is 0
    scores: list[float]  # what the reward function returned (dense rewards: their sum)
    advantages: Tensor | None = None  # [n, R] (GAE), or [n, 1] of whole responses (RLOO, GRPO)
    returns: Tensor | None = None  # of the same shape
    trunk: Tensor | None = None  # [n, N, h] states that enter the policy's top

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def device(self) -> torch.device:
        """Where all of it lies."""
        return self.tokens.device

    @property
    def query_width(self) -> int:
        """Q: the widest prompt."""
        return self.tokens.shape[1] - self.logprobs.shape[1]

    def to(self, device: torch.device | str) -> RolloutStore:
        """The same rollouts on another device."""
        return self._map(lambda x: x.to(device))

    def first(self, n: int) -> RolloutStore:
        """The first n of them."""
        return self if n == len(self) else self.chosen(range(n))

    def chosen(self, indices: Sequence[int]) -> RolloutStore:
        """Those with these indices, in this order."""
        rows = torch.tensor(list(indices), device=self.device)
        return self._map(lambda x: x[rows], lambda x: [x[i] for i in indices])

    def teaching(self) -> list[bool]:
        """Of each whether its advantage is not 0: without one it has no part in a gradient."""
        return self.advantages.any(dim=1).tolist()

    def minibatch(self, indices: Sequence[int], semantics: Semantics) -> Minibatch:
        """Those with these indices, cut to the widest among them."""
        one = self.chosen(indices)
        left = self.query_width - max(one.query_widths)
        right = self.query_width + max(one.response_widths)
        start, width = max(one.query_widths) - 1, max(one.columns)
        mask = one.attention_mask[:, left:right]
        return Minibatch(
            tokens=one.tokens[:, left:right],
            attention_mask=mask,
            start=start,
            loss_mask=semantics.minibatch_mask(
                one.loss_mask[:, :width], mask[:, start : start + width]
            ),
            trunk=None if one.trunk is None else one.trunk[:, left:right],
            **{name: getattr(one, name)[:, :width]
               for name in ("logprobs", "ref_logprobs", "values", "rewards", *LEARNT_FROM)},
        )  # fmt: skip

    def set_advantages(self, gamma: float, lam: float) -> None:
        """Advantages and returns by GAE: they depend on the rollouts alone."""
        self.advantages, self.returns = gae(self.values, self.rewards, gamma, lam)

    def state_dict(self) -> dict[str, Any]:
        """Everything, its tensors on the host."""
        return vars(self._map(lambda x: x.cpu()))

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> RolloutStore:
        """The rollouts of a `state_dict`."""
        return cls(**{field.name: state[field.name] for field in fields(cls)})

    @classmethod
    def joined(cls, parts: Sequence[RolloutStore], pad_id: int) -> RolloutStore:
        """All rollouts of the parts in one store, as wide as the widest of them."""
        query = max(part.query_width for part in parts)
        response = max(part.logprobs.shape[1] for part in parts)
        parts = [part._widened(query, response, pad_id) for part in parts]
        joined = {}
        for field in fields(cls):
            values = [getattr(part, field.name) for part in parts]
            if isinstance(values[0], list):
                joined[field.name] = [x for value in values for x in value]
            else:
                missing = any(value is None for value in values)
                joined[field.name] = None if missing else torch.cat(values)
        return cls(**joined)

    def _widened(self, query: int, response: int, pad_id: int) -> RolloutStore:
        left, right = query - self.query_width, response - self.logprobs.shape[1]
        wider = {
            "tokens": F.pad(self.tokens, (left, right), value=pad_id),
            "attention_mask": F.pad(self.attention_mask, (left, right)),
            # Nothing attends to a padding column and no loss reads it: any finite state does.
            "trunk": None if self.trunk is None else F.pad(self.trunk, (0, 0, left, right)),
            **{name: F.pad(getattr(self, name), (0, right)) for name in COLUMNS},
        }
        for name in LEARNT_FROM:
            x = getattr(self, name)
            per_token = x is not None and x.shape == self.rewards.shape
            wider[name] = F.pad(x, (0, right)) if per_token else x
        return RolloutStore(**{**vars(self), **wider})

    def _map(self, tensor=lambda x: x, listed=lambda x: x) -> RolloutStore:
        return RolloutStore(**{
            name: tensor(x) if isinstance(x, Tensor) else listed(x) if isinstance(x, list) else x
            for name, x in vars(self).items()
        })  # fmt: skip


# --- from sequences to rollouts --------------------------------------------------------------


@dataclass
class ChunkStatistics:
    """Divergence of the policy from the reference over one chunk."""

    divergence: float  # by the semantics, for the KL controller
    kl_per_sequence: float  # mean over samples of the sum over response columns of k1, nats


@torch.no_grad()
def build_rollouts(
    policy: Policy,
    sequences: Sequences,
    scores: Scores,
    kl_coef: float,
    semantics: Semantics,
    keep_trunk: bool = True,
    trunk: Tensor | None = None,
    is_last_chunk: bool = True,
    hidden: Tensor | None = None,
    measured: Sequence[int] | None = None,
) -> tuple[RolloutStore, ChunkStatistics]:
    """Log-probabilities, values and per-token rewards of scored sequences.

    `scores` are already scaled and clipped: one number a sequence, put on its last stored column,
    or a list of numbers, put on its first columns one by one (dense rewards, trlX 0.7).
    trunk [n, N, h], hidden [n, R, h]: states kept from sampling. `measured`: the rows that are
    compared with the reference policy (default: all). Advantages are not set yet.
    """
    width, start = sequences.query_width, sequences.query_width - 1
    # The prompt's columns stay out of the output head where nothing asks for them.
    first = 0 if semantics.needs_prompt_columns(is_last_chunk) else start
    scored = policy.score(
        sequences.tokens, sequences.attention_mask, first, trunk, hidden, measured
    )
    counted = semantics.counted(sequences)[:, first:]
    logprobs, ref_logprobs = scored.logprobs * counted, scored.ref_logprobs * counted
    k1 = (logprobs - ref_logprobs)[:, start - first :]
    rows = slice(None) if measured is None else list(measured)
    statistics = ChunkStatistics(
        semantics.divergence(logprobs[rows], ref_logprobs[rows]), k1[rows].sum(1).mean().item()
    )
    lengths = [end - start for end in sequences.ends]
    device, n_columns = k1.device, k1.shape[1]
    stored = torch.arange(n_columns, device=device) < torch.tensor(lengths, device=device)[:, None]
    placed = scores_on_columns(scores, lengths, n_columns).to(device)
    columns = {
        "logprobs": scored.logprobs[:, start - first :],
        "ref_logprobs": scored.ref_logprobs[:, start - first :],
        "values": scored.values[:, start - first :],
        "rewards": -kl_coef * k1 + placed,
        "loss_mask": sequences.loss_mask[:, start:],
    }
    n = len(sequences.ends)
    rollouts = RolloutStore(
        tokens=sequences.tokens,
        attention_mask=sequences.attention_mask,
        query_widths=[width] * n,
        response_widths=[sequences.tokens.shape[1] - width] * n,
        columns=lengths,
        scores=[total(score) for score in scores],
        trunk=scored.trunk if keep_trunk else None,
        **{name: x.masked_fill(~stored, 0) for name, x in columns.items()},
    )
    return rollouts, statistics


def scores_on_columns(scores: Scores, lengths: Sequence[int], width: int) -> Tensor:
    """Each sequence's score on the column that it belongs to: [n, width], 0 elsewhere."""
    placed = torch.zeros(len(scores), width)
    for row, score, length in zip(placed, scores, lengths, strict=True):
        if not isinstance(score, (list, tuple)):
            row[length - 1] = score
            continue
        own = score[:length]
        row[: len(own)] = torch.tensor(own)
        row[length - 1] += math.fsum(score[length:])  # of tokens that are not stored
    return placed


def total(score: float | Sequence[float]) -> float:
    """A score as one number: dense rewards are added up."""
    return math.fsum(score) if isinstance(score, (list, tuple)) else float(score)
