"""A look at the logits while sampling on a GPU, before torch draws from what is no number."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import LogitsProcessor


class NotFiniteError(RuntimeError):
    """The policy's logits are no finite numbers, so that there is nothing to sample from."""


class FiniteLogits(LogitsProcessor):
    """Notes on the device whether any logits were NaN or infinite; nothing waits for it.

    On a CPU torch.multinomial raises an error on such logits. On a GPU it ends in a device-side
    assert, after which the process can compute nothing and save nothing. So they become 0 here,
    the sampling goes on to its end, and `check` raises.
    """

    def __init__(self) -> None:
        self.rows: Tensor | None = None  # decoding.py writes there which rows it hands over
        self.finite: list[Tensor] = []  # [] of each step: whether all of them were

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores [B, V] -> [B, V]; minus infinity stays, it forbids a token."""
        self.finite.append((scores < math.inf).all())  # NaN is not
        return scores.nan_to_num(nan=0.0, posinf=0.0, neginf=-math.inf)

    def check(self) -> None:
        """NotFiniteError where any logits since the beginning were no numbers. Waits once."""
        if self.finite and not torch.stack(self.finite).all():
            raise NotFiniteError("the policy's logits are not finite numbers")
