"""Prompts: checked, tokenised, padded, and drawn chunk by chunk in an order that can be saved."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_helpers.config.checks import ConfigError, wrong

RESERVED = {"samples", "prompts", "outputs"}  # keywords of reward_fn


@dataclass
class Prompt:
    """One tokenised prompt, with whatever metadata its author gave it."""

    input_ids: list[int]
    metadata: dict[str, Any] = field(default_factory=dict)


def tokenize_prompts(
    prompts: Sequence[str | dict],
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_length: int,
    add_special_tokens: bool = False,
) -> list[Prompt]:
    """Cut each prompt to `max_prompt_length` tokens on the tokenizer's truncation side.

    A prompt may be a dict with key "prompt"; its other entries reach the reward function.
    trlX adds no special tokens, although OPT expects a leading `</s>`; `corrected` adds them.
    """
    texts = [p["prompt"] if isinstance(p, dict) else p for p in prompts]
    metadata = [
        {k: v for k, v in p.items() if k != "prompt"} if isinstance(p, dict) else {}
        for p in prompts
    ]
    ids = tokenizer(
        list(texts),
        truncation=True,
        max_length=max_prompt_length,
        padding=False,
        add_special_tokens=add_special_tokens,
    )["input_ids"]
    return [Prompt(list(row), extra) for row, extra in zip(ids, metadata, strict=True)]


def pad_prompts(prompts: Sequence[Prompt], pad_id: int) -> tuple[Tensor, Tensor]:
    """Left-padded input_ids and attention_mask, both [n, Q]."""
    width = max(1, max(len(p.input_ids) for p in prompts))
    ids = [[pad_id] * (width - len(p.input_ids)) + p.input_ids for p in prompts]
    mask = [[0] * (width - len(p.input_ids)) + [1] * len(p.input_ids) for p in prompts]
    return torch.tensor(ids), torch.tensor(mask)


class PromptStream:
    """An endless stream of chunks of prompts, reshuffled every epoch; its place can be saved.

    The last chunk of an epoch may be short, as in trlX.
    """

    def __init__(self, prompts: Sequence[Prompt], chunk_size: int, seed: int):
        self.prompts = prompts
        self.chunk_size = chunk_size
        self.seed = seed
        self.epoch = 0
        self.position = 0

    def __next__(self) -> list[Prompt]:
        if self.position >= len(self.prompts):
            self.epoch, self.position = self.epoch + 1, 0
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.prompts), generator=generator)
        chosen = order[self.position : self.position + self.chunk_size]
        self.position += len(chosen)
        return [self.prompts[i] for i in chosen]


MAX_PROMPTS = 10_000_000  # a generator may have no end


def check_prompts(name: str, prompts: Any) -> list[str | dict]:
    """The prompts as a list; ConfigError where there is none or one is no text.

    Taken is what has an order: a list, a generator, an array, a Series, a column of a data set;
    and a DataFrame or a data set with a column "prompt", whose other columns are metadata.
    """
    prompts = _as_list(name, prompts)
    for index, prompt in enumerate(prompts):
        text = prompt.get("prompt") if isinstance(prompt, dict) else prompt
        if not isinstance(text, str) or not text.strip():
            raise wrong(
                f"{name}[{index}]", prompt,
                'give a text that is not empty, or a dict with such a text under "prompt"',
            )  # fmt: skip
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise wrong(
                f"{name}[{index}]", text, "it holds half a surrogate pair, give a text in UTF-8"
            ) from None
        keys = prompt.keys() if isinstance(prompt, dict) else set()
        for key in keys:
            if not isinstance(key, str):
                raise wrong(f"a key of {name}[{index}]", key, "give metadata names that are texts")
        taken = RESERVED & keys
        if taken:
            raise ConfigError(
                f"{name}[{index}] has the key {min(taken)!r}, by which reward_fn gets something "
                "else: give that metadata another name."
            )
    return prompts


def _as_list(name: str, prompts: Any) -> list[Any]:
    """Whatever holds prompts in an order, as a list."""
    remedy = "give a list with at least one prompt"
    columns = getattr(prompts, "column_names", getattr(prompts, "columns", None))
    if columns is not None:  # a table: iterating over a DataFrame gives the names of its columns
        if "prompt" not in list(columns):
            raise wrong(name, list(columns), 'a table needs a column "prompt"; give one, or a list')
        rows = prompts.to_dict("records") if hasattr(prompts, "iloc") else list(prompts)
        prompts = rows
    if isinstance(prompts, (str, bytes, bytearray, Mapping, set, frozenset)):
        raise wrong(name, prompts, remedy)  # a set has another order in every process
    try:
        found = list(itertools.islice(iter(prompts), MAX_PROMPTS + 1))
    except TypeError:
        raise wrong(name, prompts, remedy) from None
    if not 0 < len(found) <= MAX_PROMPTS:
        raise wrong(name, prompts, f"{remedy} and at most {MAX_PROMPTS:,}")
    return found


def check_stop_sequences(stop_sequences: Any) -> list[str]:
    """The stop sequences as a list, [] for None; ConfigError for what would stop nothing or all."""
    if stop_sequences is None:
        return []
    if isinstance(stop_sequences, (str, bytes, Mapping, set, frozenset)):
        raise wrong("stop_sequences", stop_sequences, "give a list of texts")
    try:
        found = list(itertools.islice(iter(stop_sequences), 1000))
    except TypeError:
        raise wrong("stop_sequences", stop_sequences, "give a list of texts") from None
    for index, stop in enumerate(found):
        if not isinstance(stop, str) or not stop:
            raise wrong(
                f"stop_sequences[{index}]", stop, "give a text that is not empty: an empty one "
                "stands in front of every output",
            )  # fmt: skip
    return found


def check_fits_model(prompts: Sequence[Prompt], base: Any, gen_kwargs: dict, path: str) -> None:
    """ConfigError where prompts and new tokens exceed the model's positions, or a token its ids.

    `gen_kwargs` are the settings `path`; only a model that learned an embedding for each position
    has a last one. trlX's way to tokenise outputs again may put one token in front of them.
    """
    vocabulary = base.get_input_embeddings().num_embeddings
    for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
        if gen_kwargs.get(name, 0) >= vocabulary:
            raise ConfigError(
                f"{path}.{name} is {gen_kwargs[name]}: give a token of the model, below "
                f"{vocabulary}."
            )
    learned = any(n.endswith(("embed_positions", "wpe")) for n, _ in base.named_modules())
    positions = getattr(base.config, "max_position_embeddings", None)
    longest, new = max(len(p.input_ids) for p in prompts), gen_kwargs["max_new_tokens"]
    if learned and positions is not None and longest + new + 1 > positions:
        raise ConfigError(
            f"{path}.max_new_tokens is {new}: the longest prompt has {longest} tokens and the "
            f"model has {positions} positions, so give at most {max(1, positions - longest - 1)}, "
            "or a smaller train.seq_length, to which prompts are cut."
        )


def metadata_of(prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
    """What the prompts carry beside their text: a list for each name, None where one lacks it."""
    names = dict.fromkeys(name for prompt in prompts for name in prompt.metadata)
    return {name: [prompt.metadata.get(name) for prompt in prompts] for name in names}
