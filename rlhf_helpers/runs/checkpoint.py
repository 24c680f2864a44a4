"""Checkpoints as directories that are either whole or not there.

A checkpoint is written under a temporary name, flushed to the disk and renamed; it lists the
SHA-256 of each of its files, taken before they are written. The newest one whose hashes agree is
the one that is used. The last few stay, and the one whose rollouts scored best.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from rlhf_helpers.config.checks import ConfigError, shown
from rlhf_helpers.config.reading import UnreadableFileError, open_regular, read_json
from rlhf_helpers.progress import printable

from .files import fsync as _fsync
from .files import made_directory, refuse_link

STATE, ABOUT, HASHES = "state.pt", "about.json", "SHA256SUMS.json"
_STEP = re.compile(r"step_\d{8,20}")
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
    refuse_link(root)
    made_directory(root)
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
        _remove(temporary)
        raise
    old = root / f".{final.name}.old"
    if os.path.lexists(final):
        os.rename(final, old)
    os.rename(temporary, final)
    _fsync(root)
    for path in [*_superseded(root, final, keep), old]:
        _remove(path)
    return final


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint: its own files, and the directory if nothing else lies there."""
    if checkpoint.is_symlink() or not checkpoint.is_dir():
        return  # no checkpoint that was written here
    with contextlib.suppress(OSError):
        for name in (STATE, ABOUT, HASHES):
            (checkpoint / name).unlink(missing_ok=True)
        checkpoint.rmdir()


def checkpoint_name(step: int) -> str:
    """Name of the directory that holds checkpoint `step`."""
    return f"step_{step:08d}"


def _superseded(root: Path, newest: Path, keep: int) -> list[Path]:
    """The checkpoints that need not stay beside the one just written."""
    later = [path for path in _steps(root) if _step_of(path) > _step_of(newest)]
    steps = [path for path in _steps(root) if path not in later and _is_ours(path)]
    best = _best(steps)
    return later + [path for path in steps[:-keep] if path != best]


def _is_ours(checkpoint: Path) -> bool:
    return any(os.path.lexists(checkpoint / name) for name in (STATE, ABOUT, HASHES))


def best_checkpoint(root: Path) -> Path | None:
    """The checkpoint whose rollouts scored highest; None where none has a score."""
    return _best(_steps(root))


def _best(checkpoints: list[Path]) -> Path | None:
    scores = {path: _score(path) for path in checkpoints}
    scored = {path: score for path, score in scores.items() if score is not None}
    return max(scored, key=scored.__getitem__, default=None)


def _score(checkpoint: Path) -> float | None:
    try:
        return float(read_json(checkpoint / ABOUT)["score"])
    except (ValueError, TypeError, LookupError):  # UnreadableFileError is a ValueError
        return None


def load_newest(root: Path) -> dict[str, Any] | None:
    """The state of the newest intact checkpoint; damaged ones are named and skipped.

    `root` is a directory of checkpoints or one checkpoint. None where there is no checkpoint;
    ConfigError where there are some and none can be used, for to begin again would replace what
    the run has reached.
    """
    alone = os.path.lexists(root / HASHES) or os.path.lexists(root / STATE)
    if not alone:
        _put_back(root)
    there = [root] if alone else _steps(root)
    for path in reversed(there):
        damage = _damage(path)
        if damage is None:
            try:
                return _checked(_loaded(path / STATE))
            except Exception as error:  # whole, but of another version of torch, or of a stranger
                damage = f"{type(error).__name__} when it is read"
        said = f"checkpoint {path} is damaged ({damage}) and not used."
        warnings.warn(printable(said), stacklevel=2)
    if there:
        raise ConfigError(
            f"{root} holds {len(there)} checkpoints and none of them can be read (the warnings "
            "say why): restore one, choose another directory, or, to start over, remove them, "
            "metrics.jsonl and policy."
        )
    return None


def _loaded(path: Path) -> Any:
    with open_regular(path) as file:
        return torch.load(file, weights_only=True, map_location="cpu")


def _checked(state: Any) -> dict[str, Any]:
    if not isinstance(state, dict):
        raise TypeError(f"{shown(state)} is no state of a run")
    return state


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, None where nothing is."""
    if checkpoint.is_symlink():
        return "it is a link"
    if not checkpoint.is_dir():
        return "it is no directory"
    try:
        hashes = read_json(checkpoint / HASHES)
        if not isinstance(hashes, dict) or STATE not in hashes:
            return f"{HASHES} names no {STATE}"
        if any(Path(name).name != name for name in hashes):
            return f"{HASHES} names a file outside of it"
        missing = [name for name in hashes if not os.path.lexists(checkpoint / name)]
        if missing:
            return f"{missing[0]} is missing"
        wrong = [name for name, digest in hashes.items() if _sha256(checkpoint / name) != digest]
    except (UnreadableFileError, OSError) as error:
        return str(error).removesuffix(".")
    return f"{wrong[0]} is not what was written" if wrong else None


def _steps(root: Path) -> list[Path]:
    """What is named as a checkpoint, in order of the steps."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if _STEP.fullmatch(p.name)), key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def _half_done(root: Path, ending: str) -> list[Path]:
    """What a killed process left under a name with this ending: step_00000004, as .step_...old."""
    if not root.is_dir():
        return []
    own = re.compile(rf"\.{_STEP.pattern}\.{ending}")
    return [path for path in root.iterdir() if own.fullmatch(path.name)]


def _tidy(root: Path) -> None:
    """Remove what a killed process had half written, and put back what it had half replaced."""
    for path in _half_done(root, "tmp"):
        _remove(path)
        if os.path.lexists(path):  # not ours, or not only
            raise ConfigError(f"{path} is in the way of a checkpoint: move it away.")
    _put_back(root)


def _put_back(root: Path) -> None:
    for old in _half_done(root, "old"):
        final = root / old.name[1:].removesuffix(".old")
        if os.path.lexists(final):
            _remove(old)
        else:
            os.rename(old, final)


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
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
                    f"{directory} holds a run with {section}.{name} = {shown(old)}, not "
                    f"{shown(value)}: choose another directory, or delete that one."
                )
