"""Texts that are learned from for several epochs: their ids, and their states in the frozen trunk.

The trunk lies below every layer that learns, so its states of a text never change: computed once,
they serve every epoch, the policy and the reference policy.

Shapes: n texts, B of them in a batch, N tokens, h hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlhf_helpers.models.policy import Policy
from rlhf_helpers.progress import Progress
from rlhf_helpers.rewards.learned import padded

BATCH = 64
LIMIT_BYTES = 2 * 1024**3  # beyond it, states are computed again in every batch


class KeptTexts:
    """Token ids of n texts and, where they fit into memory, their trunk states."""

    def __init__(self, policy: Policy, rows: Sequence[Sequence[int]], label: str,
                 limit_bytes: int = LIMIT_BYTES):  # fmt: skip
        """`rows`: the ids of each text; `label` is what the progress says."""
        self.policy, self.rows = policy, rows
        width = policy.base.config.get_text_config().hidden_size
        size = sum(map(len, rows)) * width * policy.base.dtype.itemsize
        self.states: list[Tensor] | None = self._computed(label) if size <= limit_bytes else None

    def _computed(self, label: str) -> list[Tensor]:
        """The trunk states of each text, [its length, h]; texts of like length share a batch."""
        order = sorted(range(len(self.rows)), key=lambda i: len(self.rows[i]))
        states: list[Tensor] = [torch.empty(0)] * len(self.rows)
        with Progress(len(order), label, unit="text") as progress:
            for first in range(0, len(order), BATCH):
                chosen = order[first : first + BATCH]
                tokens, mask = self._padded(chosen)
                trunk = self.policy.trunk(tokens, mask)
                for i, own in zip(chosen, trunk, strict=True):
                    states[i] = own[: len(self.rows[i])].clone()
                progress.update(n=len(chosen))
        return states

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and mask [B, N], padded on the right, and the states that enter the top."""
        tokens, mask = self._padded(indices)
        if self.states is None:
            return tokens, mask, self.policy.trunk(tokens, mask)
        return tokens, mask, pad_sequence([self.states[i] for i in indices], batch_first=True)

    def _padded(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        pad_id = self.policy.tokenizer.pad_token_id
        tokens, mask = padded([self.rows[i] for i in indices], pad_id)
        return tokens.to(self.policy.device), mask.to(self.policy.device)
