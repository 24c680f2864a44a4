"""Sampling, token by token: forward pass, scores, draw, until every text has ended.

A plain loop over the model's own forward pass. It does what transformers' `generate` does for
sampling and greedy search, with the same random numbers and so the same tokens, and four things
that `generate` does not:

* a prompt that stands in several rows side by side, to be answered several times, is read once;
* a row whose text has ended leaves the batch, so that it costs nothing any more;
* the states that enter the policy's top, and those that leave it, are kept, so that scoring need
  not compute them again;
* the key-value cache takes its room once (kv_cache.py).

Everything else (beam search, penalties, static caches, ...) is left to `generate`:
`settings_for` says so by returning None.

Shapes: B prompts, k of them still without an end, Q padded prompt length, N = Q + new tokens,
V vocabulary, h hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.cache_utils import DynamicLayer

from .kv_cache import roomy_cache
from .masks import takes_ready_masks

CHECK_EVERY_ON_GPU = 8  # tokens

# What generate() does to the scores before it draws, in its order: class, value without effect,
# value where none is given.
WARPERS: dict[str, tuple[type[LogitsProcessor], float, float | None]] = {
    "temperature": (TemperatureLogitsWarper, 1.0, 1.0),
    "top_k": (TopKLogitsWarper, 0, 50),
    "top_p": (TopPLogitsWarper, 1.0, 1.0),
    "min_p": (MinPLogitsWarper, 0.0, None),
    "typical_p": (TypicalLogitsWarper, 1.0, 1.0),
}
UNDERSTOOD = {"max_new_tokens", "min_new_tokens", "do_sample", "eos_token_id", "pad_token_id",
              "bos_token_id", "logits_processor", *WARPERS}  # fmt: skip
# Settings that ask for nothing when they have this value.
WITHOUT_EFFECT = {"use_cache": True, "num_beams": 1, "num_beam_groups": 1, "min_length": 0,
                  "num_return_sequences": 1, "repetition_penalty": 1.0,
                  "no_repeat_ngram_size": 0, "output_attentions": False, "output_scores": False,
                  "output_hidden_states": False, "return_dict_in_generate": False}  # fmt: skip
# Entries of a model's generation_config.json that say nothing about sampling here.
NOT_ABOUT_SAMPLING = {"transformers_version", "_from_model_config", "max_length",
                      "decoder_start_token_id"}  # fmt: skip


class Decodable(Protocol):
    """What the loop needs to know of a policy."""

    base: PreTrainedModel
    decoder: nn.Module  # all layers, with embeddings and final norm
    layers: nn.ModuleList
    branch: int  # index of the first layer of the top
    takes_positions: bool  # whether the model's forward pass can be given position_ids
    lora_dropout_active: bool


@dataclass(frozen=True)
class Settings:
    """How to sample."""

    max_new_tokens: int
    min_new_tokens: int
    do_sample: bool  # False: the most probable token
    ends: list[int]  # token ids after which a text has ended
    pad: int  # token id that fills a row after its end
    processors: list[LogitsProcessor]  # what happens to the scores before the draw


class Sampled(NamedTuple):
    """What was drawn, and what passed through the model on the way."""

    tokens: Tensor  # [B, N] prompts and what was drawn, padded after the end
    fed: Tensor | None  # [B, N - 1] ids that passed through the model; -1 where none did
    states: Tensor | None  # [B, N - 1, h] the same columns' states that enter the top; 0 there
    hidden: Tensor | None  # [B, N - Q, h] final states from which each new token was drawn


def warpers(given: Mapping[str, Any]) -> list[LogitsProcessor]:
    """transformers' own classes for temperature, top_k and so on, in generate()'s order."""
    chosen = []
    for name, (warper, neutral, default) in WARPERS.items():
        value = given.get(name, default)
        if value is not None and value != neutral:
            chosen.append(warper(type(neutral)(value)))
    return chosen


def settings_in_effect(model: PreTrainedModel, given: Mapping[str, Any]) -> dict[str, Any]:
    """What generate() goes by: the model's own generation_config, and what is given over it."""
    own = model.generation_config.to_diff_dict()
    own = {k: v for k, v in own.items() if k not in NOT_ABOUT_SAMPLING and v is not None}
    return {**own, **given}


def settings_for(model: PreTrainedModel, given: Mapping[str, Any]) -> Settings | None:
    """generate()'s arguments, with the model's own defaults; None: this loop cannot honour them.

    A logits processor from outside is accepted if it has an attribute `rows`: the loop writes
    there which rows of the batch the scores are of, before each call.
    """
    if not all(isinstance(layer, DynamicLayer) for layer in roomy_cache(model.config, 1).layers):
        return None  # a model that keeps something else than keys and values
    asked = settings_in_effect(model, given)
    if any(k not in UNDERSTOOD and v is not None and WITHOUT_EFFECT.get(k) != v
           for k, v in asked.items()):  # fmt: skip
        return None
    own_processors = list(asked.get("logits_processor") or ())
    known = tuple(warper for warper, _, _ in WARPERS.values())
    if not all(isinstance(p, known) or hasattr(p, "rows") for p in own_processors):
        return None
    if asked.get("max_new_tokens") is None or asked.get("pad_token_id") is None:
        return None
    ends = asked.get("eos_token_id")
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    do_sample = bool(asked.get("do_sample"))
    return Settings(
        max_new_tokens=asked["max_new_tokens"],
        min_new_tokens=asked.get("min_new_tokens") or 0,
        do_sample=do_sample,
        ends=ends,
        pad=asked["pad_token_id"],
        processors=own_processors + (warpers(asked) if do_sample else []),
    )


class _GoingOn:
    """The rows whose texts go on: which prompts they are, and their key-value cache."""

    def __init__(self, policy: Decodable, mask: Tensor, total: int):
        """`mask` [B, Q] of the prompts, `total` = N columns at most."""
        self.policy = policy
        self.rows = torch.arange(len(mask), device=mask.device)  # [k] row i is prompt rows[i]
        self.ended = torch.zeros_like(self.rows, dtype=torch.bool)  # [k]
        self.columns = slice(0)  # those that pass through the model now
        self.cache = roomy_cache(policy.base.config, total)
        # Without padding a mask says nothing, and attention is faster without one.
        self.mask = None if bool(mask.all()) else F.pad(mask, (0, total - mask.shape[1]), value=1)
        positions = F.pad(mask, (0, total - mask.shape[1]), value=1).cumsum(-1) - 1
        self.positions = positions.clamp(min=0) if policy.takes_positions else None
        self.mask_is_ready = takes_ready_masks(policy.base, policy.takes_positions)

    def next_scores(self, tokens: Tensor, start: int, end: int) -> Tensor:
        """Pass columns start .. end of tokens [B, N] through the model: float32 [k, V]."""
        self.columns, more = slice(start, end), {}
        if self.mask is not None:
            mask = self.mask[self.rows, :end]  # [k, end]
            # For one new token the mask of attention is that of padding, [k, heads, 1, end]. Left
            # to make it itself, the model would look at its values, for which a GPU's host waits.
            is_ready = self.mask_is_ready and end - start == 1
            more["attention_mask"] = mask[:, None, None].bool() if is_ready else mask
        if self.positions is not None:
            more["position_ids"] = self.positions[self.rows, start:end]
        output = self.policy.base(
            input_ids=tokens[self.rows, start:end], past_key_values=self.cache, use_cache=True,
            logits_to_keep=1, **more,
        )  # fmt: skip
        return output.logits[:, -1].float()

    def first_scores(self, tokens: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Pass the prompts through the model, each of those that stand side by side once.

        Returns scores [B, V], and of each row the one that was passed in its place [B].
        """
        everyone, prompts = self.rows, tokens[:, :width]
        differs = (prompts[1:] != prompts[:-1]).any(1)
        if self.mask is not None:
            differs |= (self.mask[1:] != self.mask[:-1]).any(1)
        differs = torch.cat([differs.new_ones(1), differs])
        self.rows, place = differs.nonzero().squeeze(1), differs.cumsum(0) - 1
        passed, scores = self.rows, self.next_scores(tokens, 0, width)
        if len(passed) < len(everyone):
            self.cache.batch_select_indices(place)
        self.rows = everyone
        return scores[place], passed[place]

    def drop(self, ended: Sequence[bool]) -> None:
        """Rows that have ended leave; the last of those that go on take their places."""
        kept = torch.tensor(_order_after(ended), device=self.rows.device)
        self.rows, self.ended = self.rows[kept], self.ended[kept]
        self.cache.batch_select_indices(kept)


def _order_after(ended: Sequence[bool]) -> list[int]:
    """Rows without an end; as many as can keep their place."""
    going_on = [i for i, e in enumerate(ended) if not e]
    moving = [i for i in going_on if i >= len(going_on)]
    return [moving.pop(0) if ended[i] else i for i in range(len(going_on))]


class _KeptStates:
    """Buffers for the states that enter the policy's top and, if wanted, those that leave it.

    They are written while the model runs.
    """

    def __init__(self, policy: Decodable, batch: _GoingOn, tokens: Tensor, width: int,
                 keep_hidden: bool):  # fmt: skip
        self.batch, self.tokens, self.width = batch, tokens, width
        self.fed = torch.full_like(tokens, -1)  # [B, N]
        self.states: Tensor | None = None  # [B, N, h]
        self.hidden: Tensor | None = None  # [B, N - Q, h]
        top = policy.layers[policy.branch]
        # First of all hooks: before layers that learn widen what they are given (precision.py).
        self.hooks = [top.register_forward_pre_hook(self._write, with_kwargs=True, prepend=True)]
        if keep_hidden:
            self.hooks.append(policy.decoder.register_forward_hook(self._write_last))

    def _write(self, _module, args, kwargs) -> None:
        states = args[0] if args else kwargs["hidden_states"]  # [k, columns, h]
        if self.states is None:
            self.states = states.new_zeros(*self.tokens.shape, states.shape[-1])
        rows, columns = self.batch.rows, self.batch.columns
        self.states[rows, columns] = states
        self.fed[rows, columns] = self.tokens[rows, columns]

    def _write_last(self, _module, _args, output) -> None:
        last = output[0][:, -1]  # [k, h] of output.last_hidden_state
        if self.hidden is None:
            self.hidden = last.new_zeros(
                len(self.tokens), self.tokens.shape[1] - self.width, last.shape[-1]
            )
        self.hidden[self.batch.rows, self.batch.columns.stop - self.width] = last

    def copy_prompts(self, passed: Tensor) -> None:
        """Give each row what row passed[i] left behind: passed [B]."""
        self.fed[:, : self.width] = self.fed[passed, : self.width]
        self.states[:, : self.width] = self.states[passed, : self.width]
        if self.hidden is not None:
            self.hidden[:, 0] = self.hidden[passed, 0]

    def __enter__(self) -> _KeptStates:
        return self

    def __exit__(self, *_) -> None:
        for hook in self.hooks:
            hook.remove()


def check_every(device: torch.device) -> int:
    """After how many tokens the host asks who has ended; a GPU would have it wait each time."""
    return 1 if device.type == "cpu" else CHECK_EVERY_ON_GPU


@torch.no_grad()
def decode(
    policy: Decodable, prompts: Tensor, mask: Tensor, settings: Settings, keep_trunk: bool = False,
    keep_hidden: bool = False,
) -> Sampled:  # fmt: skip
    """Continue prompts [B, Q], padded on the left as `mask` [B, Q] says.

    `keep_trunk`: keep what was fed and the states that enter the top; with `keep_hidden` also the
    states that leave it.
    """
    width = prompts.shape[1]
    tokens = F.pad(prompts, (0, settings.max_new_tokens), value=settings.pad)  # [B, N]
    batch = _GoingOn(policy, mask, tokens.shape[1])
    processors = _processors(settings, width, tokens.device)
    ends = torch.tensor(settings.ends, device=tokens.device, dtype=tokens.dtype)
    draw = _Draw(len(tokens)) if settings.do_sample else _most_probable
    every = check_every(tokens.device)
    # LoRA's dropout draws for every row: with fewer rows the same seed would give other texts.
    rows_are_alike = not policy.lora_dropout_active
    length = torch.tensor(width, device=tokens.device)  # of the longest text
    kept = _KeptStates(policy, batch, tokens, width, keep_hidden) if keep_trunk else None
    with kept or nullcontext():
        start = 0
        for end in range(width, tokens.shape[1]):
            if start == 0 and rows_are_alike:
                scores, passed = batch.first_scores(tokens, end)
                if kept is not None:
                    kept.copy_prompts(passed)
            else:
                scores = batch.next_scores(tokens, start, end)
            scores = _processed(scores, processors, tokens[batch.rows, :end], batch.rows)
            drawn = draw(scores, batch.rows).masked_fill(batch.ended, settings.pad)
            tokens[batch.rows, end] = drawn
            length = length + ~batch.ended.all()
            batch.ended = batch.ended | torch.isin(drawn, ends)
            start = end
            if (end + 1 - width) % every == 0:  # the host waits for the device here
                ended = batch.ended.tolist()
                if all(ended):
                    break
                if rows_are_alike and any(ended):
                    batch.drop(ended)
    n = int(length)
    if kept is None:
        return Sampled(tokens[:, :n], None, None, None)
    hidden = None if kept.hidden is None else kept.hidden[:, : n - width]
    return Sampled(tokens[:, :n], kept.fed[:, : n - 1], kept.states[:, : n - 1], hidden)


class _Draw:
    """Draws from softmax for the rows that go on, with the random numbers of a whole batch.

    generate() draws for every row, ended or not; so does this, and the same seed gives the same
    texts and leaves the same random numbers for what comes after.
    """

    def __init__(self, batch: int):
        self.batch = batch
        self.probabilities: Tensor | None = None  # [B, V]; of rows that left, their last ones

    def __call__(self, scores: Tensor, rows: Tensor) -> Tensor:
        """scores [k, V] of prompts rows [k] -> token ids [k]"""
        probabilities = scores.softmax(-1)
        if len(rows) == self.batch:
            self.probabilities = probabilities
        else:
            self.probabilities[rows] = probabilities
        return self.probabilities.multinomial(1).squeeze(1)[rows]


def _most_probable(scores: Tensor, _rows: Tensor) -> Tensor:
    return scores.argmax(-1)


def _processors(settings: Settings, width: int, device: torch.device) -> list[LogitsProcessor]:
    if not (settings.ends and settings.min_new_tokens):
        return settings.processors
    shortest = MinNewTokensLengthLogitsProcessor(
        width, settings.min_new_tokens, settings.ends, device=device
    )
    return [shortest, *settings.processors]


def _processed(scores: Tensor, processors, tokens: Tensor, rows: Tensor) -> Tensor:
    """scores [k, V] of tokens [k, columns so far], after all processors: [k, V]"""
    for processor in processors:
        if hasattr(processor, "rows"):
            processor.rows = rows
        scores = processor(tokens, scores)
    return scores
