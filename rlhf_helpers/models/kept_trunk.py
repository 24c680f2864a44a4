"""Trunk states kept from sampling, so that scoring need not compute them a second time.

While the policy samples, every token but the last passes through the frozen trunk once. LoRA lies
above it: the states that enter the top are those of scoring too, wherever the sequence to be
scored has the ids that were fed while sampling, and the same attention mask.

Shapes: n sequences, Q padded prompt length, N tokens of the sequences to score, h hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .policy import Policy


@dataclass
class SamplingRecord:
    """What passed through the decoder during one call of `generate`, step by step."""

    ids: list[Tensor] = field(default_factory=list)  # [n, Q], then [n, 1] for each new token
    states: list[Tensor] = field(default_factory=list)  # the same columns' [.., h] below the top

    def columns(self) -> tuple[Tensor, Tensor] | None:
        """All ids [n, K] and states [n, K, h]; None where they do not belong together."""
        shapes = [x.shape[:2] for x in self.states]
        if not shapes or shapes != [x.shape for x in self.ids] or len({s[0] for s in shapes}) > 1:
            return None
        return torch.cat(self.ids, 1), torch.cat(self.states, 1)


@contextmanager
def sampling_recorded(policy: Policy) -> Iterator[SamplingRecord]:
    """Within it, everything that the policy's decoder is fed is recorded."""
    record = SamplingRecord()

    def keep_ids(_module, args, kwargs):
        ids = args[0] if args else kwargs.get("input_ids")
        if ids is not None:
            record.ids.append(ids)

    def keep_states(_module, args, kwargs):
        record.states.append(args[0] if args else kwargs["hidden_states"])

    hooks = [
        policy.decoder.register_forward_pre_hook(keep_ids, with_kwargs=True),
        policy.layers[policy.branch].register_forward_pre_hook(
            keep_states, with_kwargs=True, prepend=True
        ),
    ]
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


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
    known = record.columns()
    if known is None or len(known[0]) != len(tokens):
        return None
    fed_ids, fed_states = known
    width = min(fed_ids.shape[1], tokens.shape[1])
    # generate() attends to every token that it draws.
    fed_mask = F.pad(prompt_mask, (0, fed_ids.shape[1] - prompt_mask.shape[1]), value=1)
    same = (fed_ids[:, :width] == tokens[:, :width]) & (
        fed_mask[:, :width] == attention_mask[:, :width]
    )
    # A masked column on the left has the same id in both and is never attended to.
    needed = torch.tensor(ends, device=tokens.device).unsqueeze(1)
    columns = torch.arange(width, device=tokens.device)
    served = (same | (columns >= needed)).all(1) & (needed.squeeze(1) <= width)
    if not served.any():
        return None
    states = F.pad(fed_states[:, :width], (0, 0, 0, tokens.shape[1] - width))
    missing = ~served
    if missing.any():
        computed = policy.trunk(tokens[missing], attention_mask[missing])
        states[missing] = computed.to(states.dtype)
    return states
