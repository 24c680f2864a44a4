"""Checkpoints as directories that are either whole or not there, and random number states.

A checkpoint is written under a temporary name, flushed to the disk and renamed; it lists the
SHA-256 of each of its files. The newest one whose hashes agree is the one that is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .config import ConfigError

HASHES = "SHA256SUMS.json"
# What may change between a run and its continuation.
RESUMABLE = {
    "total_steps",
    "epochs",
    "eval_interval",
    "checkpoint_interval",
    "checkpoint_dir",
    "checkpoint_seconds",
    "keep_checkpoints",
    "tracker",
    "logging_dir",
    "project_name",
    "entity_name",
    "group_name",
    "tags",
    "save_best",
    "reward_timeout_seconds",
    "reward_retries",
}


def save_checkpoint(root: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `state` (tensors, numbers, strings, containers of them) as checkpoint `step`.

    The last `keep` checkpoints stay. OSError (disk full, not writable) leaves the older ones.
    """
    root.mkdir(parents=True, exist_ok=True)
    final = root / checkpoint_name(step)
    temporary = root / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        torch.save(state, temporary / "state.pt")
        hashes = {"state.pt": _sha256(temporary / "state.pt")}
        (temporary / HASHES).write_text(json.dumps(hashes))
        for path in [*temporary.iterdir(), temporary]:
            _fsync(path)
        if final.exists():
            shutil.rmtree(final)
        os.rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _fsync(root)
    for old in _steps(root)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoint_name(step: int) -> str:
    """A name whose alphabetical order is that of the steps."""
    return f"step_{step:08d}"


def load_newest(root: Path) -> dict[str, Any] | None:
    """The state of the newest intact checkpoint, or None; damaged ones are named and skipped.

    `root` is a directory of checkpoints or one checkpoint.
    """
    for path in [root] if (root / HASHES).exists() else reversed(_steps(root)):
        try:
            hashes = json.loads((path / HASHES).read_text())
            damaged = [name for name, digest in hashes.items() if _sha256(path / name) != digest]
        except (OSError, ValueError) as error:
            damaged = [str(error)]
        if not damaged:
            return torch.load(path / "state.pt", weights_only=True, map_location="cpu")
        warnings.warn(f"checkpoint {path} is damaged ({damaged[0]}) and not used.", stacklevel=2)
    return None


def _steps(root: Path) -> list[Path]:
    return sorted(root.glob("step_*")) if root.is_dir() else []


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_same_config(saved: dict, current: dict, directory: Path) -> None:
    """ConfigError naming the first setting in which a checkpoint's run differs from this one."""
    for section, fields in current.items():
        for name, value in fields.items():
            if section == "train" and name in RESUMABLE:
                continue
            old = saved.get(section, {}).get(name)
            if json.dumps(old, default=list) != json.dumps(value, default=list):
                raise ConfigError(
                    f"{directory} holds a run with {section}.{name} = {old!r}, not {value!r}: "
                    "choose another directory, or delete that one."
                )


def random_states() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's random number generators."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "python": [version, list(internal), gauss_next],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Put all generators back to where `random_states` found them."""
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
