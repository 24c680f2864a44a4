"""Where relative paths begin: the clone, or, if the package is installed, the current directory."""

from __future__ import annotations

import os
from pathlib import Path

from .checks import (
    ConfigError,
    file_path,
)


def repo_root() -> Path:
    """The repository: where the package lies, or, if it is installed, the current directory."""
    parent = Path(__file__).resolve().parents[2]
    return Path.cwd() if parent.name in ("site-packages", "dist-packages") else parent


def clone_root(what: str) -> Path:
    """The clone of the repository; ConfigError, with `what` needs it, where there is none here.

    What pip installs has the package alone: no notebooks, no figures, no README.
    """
    root = repo_root()
    if not ((root / "pyproject.toml").is_file() and (root / "notebooks").is_dir()):
        raise ConfigError(f"{what} needs a clone of the repository, and {root} is none: clone it "
                          "and start the command there.")
    return root


def resolve_run_dir(run_dir: str | Path) -> Path:
    """A run directory as an absolute path; a relative one lies in the repository."""
    return repo_root() / os.path.expanduser(file_path("run_dir", run_dir))
