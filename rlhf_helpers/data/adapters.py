"""LoRA adapters in peft's files: which model they belong to, and that model with them merged.

A directory with `adapter_config.json` and no `config.json` is an adapter. Wherever a model's name
or path is asked for, an adapter stands for its base model with the adapter merged into it: that is
how a run starts from what supervised fine-tuning left (making/fine_tune.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlhf_helpers.config.checks import ConfigError, shown
from rlhf_helpers.config.reading import NUMBER, TEXT, read_json, unreadable

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
LORA = {"lora_alpha": NUMBER, "r": NUMBER}


def base_of(path: Path) -> str | None:
    """Name or path of the base model of an adapter's directory; None where it is no adapter."""
    if not (path / ADAPTER_CONFIG).is_file() or (path / "config.json").exists():
        return None
    base = read_json(path / ADAPTER_CONFIG, {"base_model_name_or_path": TEXT})
    if not base["base_model_name_or_path"]:
        raise unreadable(path / ADAPTER_CONFIG, "base_model_name_or_path names no model")
    return base["base_model_name_or_path"]


def lora_scale(settings: Mapping[str, Any], rank: int) -> float:
    """What B A is multiplied by: alpha / r, with rsLoRA alpha / sqrt(r) (Kalajdzievski 2023)."""
    divisor = rank**0.5 if settings.get("use_rslora") else rank
    return float(settings["lora_alpha"]) / divisor


@torch.no_grad()
def merge_adapter(
    model: torch.nn.Module, adapter: dict[str, torch.Tensor], settings: dict[str, Any]
) -> None:
    """Add a peft LoRA adapter's matrices to the weights of `model`, in place.

    peft's file format is read without peft, which some notebook images cannot import. `settings`
    is the content of its adapter_config.json; ConfigError where single modules have settings of
    their own there.
    """
    for name in ("rank_pattern", "alpha_pattern"):
        if settings.get(name):
            raise ConfigError(
                f"The adapter's {name} is {shown(settings[name])}, which is not supported: merge "
                "it with peft (merge_and_unload), and give the merged model."
            )
    scale = lora_scale(settings, settings["r"])
    parameters = dict(model.named_parameters())
    for name, value in adapter.items():
        target = name.removeprefix("base_model.model.")
        if target.endswith(".lora_B.weight"):
            lora_a = adapter[name.replace(".lora_B.", ".lora_A.")].float()  # [r, in]
            weight = parameters[target.replace(".lora_B.weight", ".weight")]
            delta = value.float() @ lora_a  # [out, in]
            # GPT-2's Conv1D keeps its weight as [in, out].
            weight.add_(delta.T if settings.get("fan_in_fan_out") else delta, alpha=scale)
        elif not target.endswith(".lora_A.weight"):
            parameters[target].copy_(value)
