"""A tuned policy as a plain model, which transformers loads without this package."""

from __future__ import annotations

from pathlib import Path

import torch

from rlhf_helpers.config.checks import ConfigError, shown
from rlhf_helpers.config.sections import ModelConfig, TokenizerConfig
from rlhf_helpers.data.adapters import base_of
from rlhf_helpers.data.assets import find_asset
from rlhf_helpers.models.loading import load_base, load_tokenizer
from rlhf_helpers.models.lora_state import write_plain_model
from rlhf_helpers.runs.files import written_together


def merge(adapter: str, out: Path) -> Path:
    """Write the base model of `adapter` with the adapter merged into it, and the tokenizer.

    `adapter` is a directory that a run or supervised fine-tuning left, such as runs/cpu/policy.
    The weights are float32; a value head is not part of them.

    Raises ConfigError where `adapter` is no LoRA adapter, AssetError where it, or the model that
    it belongs to, is missing or damaged.
    """
    path = find_asset(adapter).path
    if (path / "unfrozen_layers.safetensors").exists():
        raise ConfigError(
            f"{shown(adapter)} holds the layers that a run without LoRA has trained, and nothing "
            "to merge: write its plain model in Python with "
            "load_trained_policy(directory).save_merged(out)."
        )
    if base_of(path) is None:
        raise ConfigError(
            f"{shown(adapter)} is no LoRA adapter: give the folder that has adapter_config.json, "
            "such as runs/cpu/policy. A model without LoRA is a plain model already."
        )
    model = load_base(ModelConfig(model_path=adapter, dtype="float32"), torch.device("cpu"))
    tokenizer = load_tokenizer(TokenizerConfig(tokenizer_path=adapter))
    with written_together(out) as temporary:
        write_plain_model(model, temporary)
        tokenizer.save_pretrained(temporary)
    return out
