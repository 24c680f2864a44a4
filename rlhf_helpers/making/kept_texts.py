"""Texts that are learned from for several epochs: their ids, and their states in the frozen trunk.

The trunk lies below every layer that learns, so its states of a text never change: computed once,
they serve every epoch, the policy and the reference policy.

Where no layer learns at all, one state a text is enough, and it may be kept in a file.

Shapes: n texts, B of them in a batch, N tokens, h hidden width.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlhf_helpers.models.policy import Policy
from rlhf_helpers.progress import Progress
from rlhf_helpers.rewards.learned import padded, pooled
from rlhf_helpers.runs.files import made_directory
from rlhf_helpers.runs.tensors import read_tensors
from rlhf_helpers.training.fingerprints import frozen_weights_digest

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



def pooled_states(
    policy: Policy, rows: Sequence[Sequence[int]], pooling: str, path: Path | None
) -> Tensor:
    """The base model's pooled last state of each text, [n, h]; see `pooled`.

    `rows`: the ids of each text. What the file `path` holds of these ids, this base model and this
    pooling is taken from there, and what is computed is added to it.
    """
    made_by = [frozen_weights_digest(policy.base), str(policy.base.dtype), pooling]
    names = [hashlib.sha256(json.dumps([*made_by, *row]).encode()).digest() for row in rows]
    known = _read_states(path) if path is not None and path.exists() else {}
    missing = sorted({n: i for i, n in enumerate(names) if n not in known}.values(),
                     key=lambda i: len(rows[i]))  # fmt: skip
    with Progress(len(missing), "States", unit="text") as progress, torch.no_grad():
        for first in range(0, len(missing), BATCH):
            chosen = missing[first : first + BATCH]
            tokens, mask = padded([rows[i] for i in chosen], policy.tokenizer.pad_token_id)
            tokens, mask = tokens.to(policy.device), mask.to(policy.device)
            _, hidden = policy.trunk_and_hidden(tokens, mask)
            states = pooled(hidden, mask, pooling).cpu()
            known |= {names[i]: state for i, state in zip(chosen, states, strict=True)}
            progress.update(n=len(chosen))
    if path is not None and missing:
        _write_states(path, known)
    return torch.stack([known[name] for name in names]).to(policy.device)


def _read_states(path: Path) -> dict[bytes, Tensor]:
    kept = read_tensors(path)
    return {bytes(name.tolist()): state
            for name, state in zip(kept["names"], kept["states"], strict=True)}  # fmt: skip


def _write_states(path: Path, states: dict[bytes, Tensor]) -> None:
    """Whole or not at all; of two processes that write at once, the later one's stay."""
    names = torch.tensor([list(name) for name in states], dtype=torch.uint8)
    made_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file({"names": names, "states": torch.stack(list(states.values()))}, temporary)
    os.replace(temporary, path)
