"""Where a run may begin: in a directory that holds nothing of another run, or of a stranger.

A run that begins leaves a note, `.begun.json`, until its first checkpoint is on the disk. With the
note a run that died before that may begin again; without it, metrics, policies or checkpoints that
lie there belong to somebody, and are not replaced.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.reading import read_json, unreadable

from .checkpoint import check_same_config
from .files import RunDir, atomic_write_json, own_paths

NOTE = ".begun.json"
# What training writes; the notebooks before and after it write the rest.
TRAINED = ("metrics.jsonl", "eval_samples.jsonl", "checkpoints", "policy", "best_checkpoint",
           "merged_policy")  # fmt: skip


def begin(directory: str | Path, config: dict[str, Any]) -> None:
    """Take a directory for a run of this configuration that has no checkpoint to go on from.

    Raises ConfigError where it holds what another run, or somebody else, has made.
    """
    directory = Path(directory)
    note = directory / NOTE
    if os.path.lexists(note):
        begun = read_json(note)
        sections = isinstance(begun, dict) and begun.values()
        if not sections or not all(isinstance(section, dict) for section in sections):
            raise unreadable(note, "it is no configuration")
        check_same_config(begun, config, directory)
        return
    there = [name for name in TRAINED if _holds_something(directory / name)]
    if there:
        raise ConfigError(
            f"{directory} holds {' and '.join(there)} and no checkpoint to go on from: choose "
            "another directory, or move these away to start over."
        )
    atomic_write_json(note, config)


def has_checkpoint(directory: str | Path) -> None:
    """Take the note away: from now on the run's checkpoints say what there is to go on from."""
    (Path(directory) / NOTE).unlink(missing_ok=True)


def claim(run: RunDir) -> None:
    """ConfigError where a directory without config.yml holds files of the names that a run gives.

    A repository, for one, has folders `notebooks` and `figures` of its own.
    """
    if os.path.lexists(run.config):
        return
    there = [path.name for path in own_paths(run.path) if path.name[0] != "."]
    there = [name for name in there if _holds_something(run.path / name)]
    if there:
        raise ConfigError(
            f"{run.path} holds {' and '.join(there[:3])} but no config.yml, so it is no run's "
            "directory: choose an empty one, or one that does not exist yet."
        )


def _holds_something(path: Path) -> bool:
    """Whether there is anything of that name but an empty file or an empty directory."""
    if not os.path.lexists(path):
        return False
    if path.is_dir() and not path.is_symlink():
        return any(path.iterdir())
    return path.is_symlink() or path.stat().st_size > 0
