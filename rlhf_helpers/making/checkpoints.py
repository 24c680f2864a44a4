"""The one checkpoint that each maker of an asset keeps in its --out, `checkpoint.pt`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlhf_helpers.config.checks import ConfigError, shown
from rlhf_helpers.config.reading import open_regular, unreadable
from rlhf_helpers.runs.files import made_directory, refuse_link

CHECKPOINT = "checkpoint.pt"


def opened(out_dir: str | Path) -> Path:
    """A maker's --out, made where it is missing; ConfigError where a link lies in it.

    CannotWriteError where it cannot be a directory.
    """
    out_dir = made_directory(out_dir)
    for path in out_dir.rglob("*"):
        refuse_link(path)
    return out_dir


def save_checkpoint(out_dir: Path, state: Mapping[str, Any]) -> None:
    """Replace the checkpoint: the old or the new one is there at any time."""
    temporary = out_dir / "checkpoint.tmp"
    torch.save(dict(state), temporary)
    os.replace(temporary, out_dir / CHECKPOINT)


def read_checkpoint(
    out_dir: Path, config: Mapping[str, Any], may_change: tuple[str, ...] = ()
) -> dict[str, Any] | None:
    """What `save_checkpoint` wrote, None where there is none.

    UnreadableFileError where it is no checkpoint, ConfigError where it was made with another
    `config`, which it holds under that name; fields that begin with `may_change` may differ.
    """
    path = out_dir / CHECKPOINT
    if not os.path.lexists(path):
        return None
    remedy = "choose another --out, or remove that file to start over"
    with open_regular(path) as file:
        try:
            state = torch.load(file, weights_only=True, map_location="cpu")
            saved = dict(state["config"])
        except Exception as error:  # torch raises many kinds
            problem = f"it is no checkpoint ({type(error).__name__})"
            raise unreadable(path, problem, remedy) from error
    for name, value in config.items():
        if not name.startswith(may_change) and saved.get(name) != value:
            raise ConfigError(
                f"{path} was made with {name} = {shown(saved.get(name))}, not {shown(value)}: "
                f"{remedy}."
            )
    return state
