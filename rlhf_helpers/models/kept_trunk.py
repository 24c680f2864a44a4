"""States kept from sampling, so that scoring need not compute them a second time.

While the policy samples, every token but the last passes through the frozen trunk once. LoRA lies
above it: the states that enter the top are those of scoring too, wherever the sequence to be
scored has the ids that were fed while sampling, and the same attention mask. Where the sequences
are the very ids that were drawn and nothing is rounded in between (`Policy.samples_as_it_scores`),
the states that leave the top are kept as well, and the policy need not run again to be scored.

Shapes: n sequences, Q padded prompt length, N tokens of the sequences to score, h hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .policy import Policy


@dataclass
class SamplingRecord:
    """What passed through the model during the last call of `Policy.generate`, K columns.

    All None where nothing was kept: transformers' own `generate` keeps nothing.
    """

    keep_hidden: bool = False  # whether `hidden` is wanted

    ids: Tensor | None = None  # [n, K]; -1 in the columns of a row that had ended
    states: Tensor | None = None  # [n, K, h] that enter the top; 0 in those columns
    hidden: Tensor | None = None  # [n, K - Q + 1, h] final states from which each token was drawn


@contextmanager
def sampling_recorded(policy: Policy, keep_hidden: bool = False) -> Iterator[SamplingRecord]:
    """Within it, `policy.generate` fills the record."""
    policy.record = SamplingRecord(keep_hidden)
    try:
        yield policy.record
    finally:
        policy.record = None


@torch.no_grad()
def trunk_states(
    policy: Policy,
    tokens: Tensor,
    attention_mask: Tensor,
    ends: list[int],
    record: SamplingRecord,
    prompt_mask: Tensor,
) -> Tensor | None:
    """States [n, N, h] that enter the top, for sequences of which `record` may know a part.

    tokens, attention_mask [n, N]; `ends`: only columns before it are needed of each sequence, the
    others may hold anything finite; prompt_mask [n, Q] is what sampling began with. A sequence
    whose needed columns were all fed, id for id and with the same mask, takes its states from the
    record; the others are computed. None where the record serves no sequence at all.
    """
    served = _served(tokens, attention_mask, ends, record, prompt_mask)
    if served is None or not served.any():
        return None
    width = min(record.ids.shape[1], tokens.shape[1])
    states = F.pad(record.states[:, :width], (0, 0, 0, tokens.shape[1] - width))
    missing = ~served
    if missing.any():
        computed = policy.trunk(tokens[missing], attention_mask[missing])
        states[missing] = computed.to(states.dtype)
    return states


def final_states(
    tokens: Tensor, attention_mask: Tensor, ends: list[int], record: SamplingRecord,
    prompt_mask: Tensor,
) -> Tensor | None:  # fmt: skip
    """States [n, N - Q, h] that leave the top at the columns of the response, from sampling.

    None where they were not kept, or do not serve every sequence.
    """
    served = _served(tokens, attention_mask, ends, record, prompt_mask)
    if record.hidden is None or served is None or not served.all():
        return None
    return record.hidden[:, : tokens.shape[1] - prompt_mask.shape[1]]


def _served(
    tokens: Tensor, attention_mask: Tensor, ends: list[int], record: SamplingRecord,
    prompt_mask: Tensor,
) -> Tensor | None:  # fmt: skip
    """Which sequences [n] were fed as they are, in the columns before `ends`."""
    fed_ids = record.ids
    if fed_ids is None or len(fed_ids) != len(tokens):
        return None
    width = min(fed_ids.shape[1], tokens.shape[1])
    # generate() attends to every token that it draws.
    fed_mask = F.pad(prompt_mask, (0, fed_ids.shape[1] - prompt_mask.shape[1]), value=1)
    same = (fed_ids[:, :width] == tokens[:, :width]) & (
        fed_mask[:, :width] == attention_mask[:, :width]
    )
    # A masked column on the left has the same id in both and is never attended to.
    needed = torch.tensor(ends, device=tokens.device).unsqueeze(1)
    columns = torch.arange(width, device=tokens.device)
    return (same | (columns >= needed)).all(1) & (needed.squeeze(1) <= width)
