"""A reward model that was trained on preferences, as a reward function for `train()`.

    reward_fn = load_reward_model("runs/reward_model")

The files are those that making/reward_model.py writes: LoRA in peft's format (but where the head
alone has learned), the scalar head, the tokenizer and reward_model.json. A language model reads
each whole sample once; its state at the last token (or the mean over tokens) times the head is the
score.

Shapes: B texts, N tokens, h hidden width.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_helpers.config.checks import ConfigError, shown
from rlhf_helpers.config.reading import COUNT, NUMBER, TEXT, read_json, unreadable
from rlhf_helpers.data.gguf import path_and_adapters
from rlhf_helpers.environment import local_device
from rlhf_helpers.runs.tensors import merge_adapters, read_tensors

SETTINGS = "reward_model.json"
HEAD = "reward_head.safetensors"
BATCH = 64

# What `train()` gets for a score s, with z = (s - mean) / standard deviation over the texts of the
# training pairs. "percentile" stays between 0 and 1, as P(POSITIVE) does, so that the same KL
# coefficients suit it: sigmoid(1.702 z) is the normal distribution function to 0.01 (Haley 1952),
# thus about the share of untuned texts that score lower.
OUTPUTS: dict[str, Callable[[Any], Any]] = {
    "percentile": lambda z: 1 / (1 + np.exp(-1.702 * np.clip(z, -100, 100))),
    "standardised": lambda z: z,
}
POOLINGS = ("last", "mean")
DTYPES = ("float32", "bfloat16", "float16")
FIELDS = {
    "base_model": TEXT, "dtype": TEXT, "pooling": TEXT, "max_tokens": COUNT, "output": TEXT,
    "mean": NUMBER, "std": NUMBER,
}  # fmt: skip


def token_rows(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Token ids of each text with special tokens, end-of-text behind; the last `max_tokens`."""
    rows = tokenizer(list(texts), truncation=False)["input_ids"] if texts else []
    return [(list(row) + [tokenizer.eos_token_id])[-max_tokens:] for row in rows]


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both [B, N], padded on the right."""
    tokens = [torch.tensor(row) for row in rows]
    mask = pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True)
    return pad_sequence(tokens, batch_first=True, padding_value=pad_id), mask


def pooled(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One state a text: that of its last token, or the mean: [B, N, h], [B, N] -> [B, h]."""
    hidden = hidden.float()
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)
    last = mask.sum(1) - 1
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


class LearnedReward:
    """A reward function: what a reward model thinks of each whole sample."""

    def __init__(self, directory: str | Path, device: str | torch.device | None = None):
        """Load from `directory`; `device` None takes this process's GPU if there is one."""
        self.directory = Path(directory)
        self.about = _settings(self.directory)
        device = local_device() if device is None else torch.device(device)
        path, adapters = path_and_adapters(self.about["base_model"])
        dtype = getattr(torch, self.about["dtype"])
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=False)
        if self.about.get("lora", True):  # else the head alone has learned
            adapters = [*adapters, self.directory]
        merge_adapters(model, adapters)
        self.model = model.to(device).eval().requires_grad_(False)
        self.head = read_tensors(self.directory / HEAD)["weight"].float().to(device)  # [1, h]
        own = (self.directory / "tokenizer_config.json").exists()  # else the base model's
        self.tokenizer = AutoTokenizer.from_pretrained(
            self.directory if own else path, trust_remote_code=False
        )

    def __call__(self, samples: Sequence[str], **kwargs: Any) -> list[float]:
        """The reward of each sample, prompt and output together; see OUTPUTS for its unit."""
        z = self.standardised(samples)
        return [float(r) for r in OUTPUTS[self.about["output"]](z)]

    def standardised(self, texts: Sequence[str]) -> np.ndarray:
        """Scores in standard deviations of the texts that the model learned from, [n]."""
        return (np.array(self.scores(texts)) - self.about["mean"]) / self.about["std"]

    @torch.no_grad()
    def scores(self, texts: Sequence[str]) -> list[float]:
        """The scores themselves, whose differences are Bradley-Terry's log odds."""
        rows = token_rows(self.tokenizer, texts, self.about["max_tokens"])
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # little padding
        found = [0.0] * len(rows)
        for first in range(0, len(order), BATCH):
            chosen = order[first : first + BATCH]
            tokens, mask = padded([rows[i] for i in chosen], self.tokenizer.eos_token_id)
            tokens, mask = tokens.to(self.head.device), mask.to(self.head.device)
            decoder = self.model.get_decoder()
            hidden = decoder(input_ids=tokens, attention_mask=mask, use_cache=False)
            states = pooled(hidden.last_hidden_state, mask, self.about["pooling"])
            for i, score in zip(chosen, (states @ self.head.T).squeeze(1).tolist(), strict=True):
                found[i] = score
        return found

    def save(self, directory: str | Path) -> Path:
        """Copy the files to another directory, from which `load_reward_model` reads."""
        return Path(shutil.copytree(self.directory, directory, dirs_exist_ok=True))


def load_reward_model(
    directory: str | Path, device: str | torch.device | None = None
) -> LearnedReward:
    """The reward model that `train_reward_model` left in `directory`, as a reward function.

    ConfigError where there is none. The base model is found by its name, as a policy's is.
    """
    return LearnedReward(directory, device)


def is_reward_model(directory: str | Path) -> bool:
    """Whether a directory holds a reward model that was trained on preferences."""
    return os.path.isfile(os.path.join(directory, SETTINGS))


def _settings(directory: Path) -> dict[str, Any]:
    """What reward_model.json says; UnreadableFileError where it is not what it should be."""
    if not is_reward_model(directory):
        raise ConfigError(
            f"{directory} holds no reward model (no {SETTINGS}): train one with "
            "train_reward_model(pairs, config)."
        )
    path = directory / SETTINGS
    about = read_json(path, FIELDS)
    known = {"pooling": POOLINGS, "output": OUTPUTS, "dtype": DTYPES}
    missing = [name for name in FIELDS if name not in about]
    if missing:
        raise unreadable(path, f"it lacks {', '.join(missing)}", "train the reward model again")
    for name, values in known.items():
        if about[name] not in values:
            raise unreadable(path, f"{name} is {shown(about[name])}, not one of "
                             f"{', '.join(values)}")  # fmt: skip
    return about
