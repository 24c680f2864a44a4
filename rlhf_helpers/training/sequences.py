"""Samples as texts, and samples as the token ids, masks and columns that an update works on.

Shapes: n sequences of one chunk, Q padded prompt length, R padded response length, N = Q + R.
Column j of [n, N - 1] is the decision that predicts token j + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase


@dataclass
class Decoded:
    """Texts of one chunk, in trlX's three views."""

    samples: list[str]  # prompt + output
    prompts: list[str]
    outputs: list[str]


@dataclass
class Sequences:
    """Whole sequences of one chunk: what a semantics (semantics.py) makes of the samples."""

    tokens: Tensor  # [n, N]
    attention_mask: Tensor  # [n, N]
    query_width: int  # Q
    ends: list[int]  # exclusive end of each sequence's stored columns; the first is column Q - 1
    loss_mask: Tensor  # [n, N - 1] 1 on the columns that enter the loss


# --- text ----------------------------------------------------------------------------------


def to_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Decode without special tokens and with the space clean-up of transformers 4."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return tokenizer.clean_up_tokenization(text)


def cut_at_stop(text: str, stop_sequences: Sequence[str]) -> tuple[str, bool]:
    """Cut at each stop sequence in turn, at its first place; strip on the right where cut."""
    trimmed = False
    for stop in stop_sequences:
        place = text.find(stop)
        if place >= 0:
            text, trimmed = text[:place].rstrip(), True
    return text, trimmed


def decode(
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Tensor,
    sample_ids: Tensor,
    stop_sequences: Sequence[str] = (),
    append_eos_token: bool = False,
) -> Decoded:
    """Texts of prompts [n, Q] and samples [n, Q + new tokens].

    With `append_eos_token` the text of the end-of-text token closes an output that was cut at a
    stop sequence or whose last token is end-of-text or padding (trlX, during rollouts only).
    """
    width = prompt_ids.shape[1]
    decoded = Decoded([], [], [])
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    known: dict[tuple[int, ...], str] = {}  # a prompt may be answered many times
    for prompt, sample in zip(prompt_ids.tolist(), sample_ids.tolist(), strict=True):
        if tuple(prompt) not in known:
            known[tuple(prompt)] = to_text(tokenizer, prompt)
        prompt_text = known[tuple(prompt)]
        output, trimmed = cut_at_stop(to_text(tokenizer, sample[width:]), stop_sequences)
        if append_eos_token and (trimmed or sample[-1] in ends):
            output += tokenizer.eos_token
        decoded.samples.append(prompt_text + output)
        decoded.prompts.append(prompt_text)
        decoded.outputs.append(output)
    return decoded


# --- token ids of responses --------------------------------------------------------------------


def tokenised_again(tokenizer: PreTrainedTokenizerBase, outputs: Sequence[str]) -> Tensor:
    """The texts' ids with special tokens, padded on the right: [n, R]."""
    rows = [torch.tensor(row, dtype=torch.long) for row in tokenizer(list(outputs))["input_ids"]]
    width = max(1, max(map(len, rows)))
    pad = tokenizer.pad_token_id
    return torch.stack([F.pad(row, (0, width - len(row)), value=pad) for row in rows])


def end_ids(tokenizer: PreTrainedTokenizerBase, gen_kwargs: Mapping[str, Any]) -> list[int]:
    """Token ids that end a sampled text: those of `gen_kwargs`, or else end-of-text alone."""
    ids = gen_kwargs.get("eos_token_id", tokenizer.eos_token_id)
    return [ids] if isinstance(ids, int) else list(ids or ())


def response_lengths(
    tokenizer: PreTrainedTokenizerBase, responses: Tensor, stop_sequences: Sequence[str] = (),
    ends: Sequence[int] | None = None,
) -> list[int]:  # fmt: skip
    """Tokens of each drawn response [n, R] up to and with the first one that ends it.

    `ends`: the token ids that do; None: end-of-text. Where a stop sequence cuts the text, the
    response ends with the last token before the cut.
    """
    ending, lengths = {tokenizer.eos_token_id} if ends is None else set(ends), []
    for row in responses.tolist():
        length = next((i for i, token in enumerate(row, 1) if token in ending), len(row))
        lengths.append(_length_before_stop(tokenizer, row[:length], stop_sequences))
    return lengths


def _length_before_stop(tokenizer, ids: list[int], stop_sequences: Sequence[str]) -> int:
    """Tokens of `ids` whose text lies before the first stop sequence; 1 at least."""
    if not stop_sequences:
        return len(ids)
    kept, trimmed = cut_at_stop(to_text(tokenizer, ids), stop_sequences)
    if not trimmed:
        return len(ids)
    length = len(ids)
    while length > 1 and len(to_text(tokenizer, ids[:length])) > len(kept):
        length -= 1
    return length
