"""Tensors from a safetensors file that somebody may have touched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_helpers.config.reading import open_regular, unreadable

if TYPE_CHECKING:
    from torch import Tensor


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file by name; UnreadableFileError where it is none."""
    from safetensors.torch import load_file

    open_regular(path).close()
    try:
        return load_file(path)
    except Exception as error:  # of the Rust library: of no class of its own
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise unreadable(path, f"it is no whole safetensors file ({problem})") from error
