"""Checkpoints as directories that are either whole or not there.

A checkpoint is written under a temporary name, flushed to the disk and renamed; it lists the
SHA-256 of each of its files, taken before they are written. The newest one whose hashes agree is
the one that is used. The last few stay, and the one whose rollouts scored best.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from rlhf_helpers.config.trl_config import ConfigError

from .files import fsync as _fsync

STATE, ABOUT, HASHES = "state.pt", "about.json", "SHA256SUMS.json"
# What may change between a run and its continuation.
RESUMABLE = {"total_steps", "epochs", "eval_interval", "checkpoint_interval", "checkpoint_dir",
             "checkpoint_seconds", "keep_checkpoints", "tracker", "logging_dir", "project_name",
             "entity_name", "group_name", "tags", "save_best", "reward_timeout_seconds",
             "reward_retries", "watchdog"}


def save_checkpoint(
    root: Path, step: int, state: dict[str, Any], keep: int, score: float | None = None
) -> Path:
    """Write `state` (tensors, numbers, strings, containers of them) as checkpoint `step`.

    The last `keep` checkpoints stay, and the one with the highest `score`; those of later steps
    go, for only a run that went back to an older one finds such (they were damaged). OSError
    (disk full, not writable) leaves all that were there.
    """
    root.mkdir(parents=True, exist_ok=True)
    _tidy(root)
    final = root / checkpoint_name(step)
    temporary = root / f".{final.name}.tmp"
    temporary.mkdir()
    try:
        # Through memory: what is hashed is what was meant, not what a failing disk made of it.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        about = json.dumps({"step": step, "score": score}).encode()
        content = {STATE: buffer.getbuffer(), ABOUT: about}
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
        for name, data in {**content, HASHES: json.dumps(hashes).encode()}.items():
            (temporary / name).write_bytes(data)
            _fsync(temporary / name)
        _fsync(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    old = root / f".{final.name}.old"
    if final.exists():
        os.rename(final, old)
    os.rename(temporary, final)
    _fsync(root)
    for path in [*_superseded(root, final, keep), old]:
        shutil.rmtree(path, ignore_errors=True)
    return final


def checkpoint_name(step: int) -> str:
    """Name of the directory that holds checkpoint `step`."""
    return f"step_{step:08d}"


def _superseded(root: Path, newest: Path, keep: int) -> list[Path]:
    """The checkpoints that need not stay beside the one just written."""
    later = [path for path in _steps(root) if path.name > newest.name]
    steps = [path for path in _steps(root) if path not in later]
    best = _best(steps)
    return later + [path for path in steps[:-keep] if path != best]


def best_checkpoint(root: Path) -> Path | None:
    """The checkpoint whose rollouts scored highest; None where none has a score."""
    return _best(_steps(root))


def _best(checkpoints: list[Path]) -> Path | None:
    scores = {path: _score(path) for path in checkpoints}
    scored = {path: score for path, score in scores.items() if score is not None}
    return max(scored, key=scored.__getitem__, default=None)


def _score(checkpoint: Path) -> float | None:
    try:
        return float(json.loads((checkpoint / ABOUT).read_text())["score"])
    except (OSError, ValueError, TypeError, LookupError):
        return None


def load_newest(root: Path) -> dict[str, Any] | None:
    """The state of the newest intact checkpoint, or None; damaged ones are named and skipped.

    `root` is a directory of checkpoints or one checkpoint.
    """
    alone = (root / HASHES).exists() or (root / STATE).exists()
    if not alone:
        _put_back(root)
    for path in [root] if alone else reversed(_steps(root)):
        damage = _damage(path)
        if damage is None:
            try:
                return torch.load(path / STATE, weights_only=True, map_location="cpu")
            except Exception as error:  # whole, but of another version of torch
                damage = f"{type(error).__name__} when it is read"
        warnings.warn(f"checkpoint {path} is damaged ({damage}) and not used.", stacklevel=2)
    return None


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, None where nothing is."""
    try:
        hashes = json.loads((checkpoint / HASHES).read_text())
        if not isinstance(hashes, dict) or STATE not in hashes:
            return f"{HASHES} names no {STATE}"
        if any(Path(name).name != name for name in hashes):
            return f"{HASHES} names a file outside of it"
        wrong = [name for name, digest in hashes.items() if _sha256(checkpoint / name) != digest]
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError) as error:
        return f"{HASHES} cannot be read: {error}"
    return f"{wrong[0]} is not what was written" if wrong else None


def _steps(root: Path) -> list[Path]:
    return sorted(root.glob("step_*")) if root.is_dir() else []


def _tidy(root: Path) -> None:
    """Remove what a killed process had half written, and put back what it had half replaced."""
    for path in root.glob(".step_*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    _put_back(root)


def _put_back(root: Path) -> None:
    for old in root.glob(".step_*.old"):
        final = root / old.name[1:].removesuffix(".old")
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, final)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
