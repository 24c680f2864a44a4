"""Tensors from a safetensors file that somebody may have touched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_helpers.config.reading import open_regular, read_json, unreadable
from rlhf_helpers.data.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, LORA, merge_adapter

if TYPE_CHECKING:
    from torch import Tensor, nn


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file by name; UnreadableFileError where it is none."""
    from safetensors.torch import load_file

    open_regular(path).close()
    try:
        return load_file(path)
    except Exception as error:  # of the Rust library: of no class of its own
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise unreadable(path, f"it is no whole safetensors file ({problem})") from error


def merge_adapters(model: nn.Module, directories: Sequence[Path]) -> None:
    """Add the LoRA adapters in these directories to the weights of `model`, in place, in order."""
    for directory in directories:
        settings = read_json(directory / ADAPTER_CONFIG, LORA)
        merge_adapter(model, read_tensors(directory / ADAPTER_WEIGHTS), settings)
