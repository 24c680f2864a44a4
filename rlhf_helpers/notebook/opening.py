"""What every notebook does first: turn its parameters into a run directory and a profile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.config.profiles import Profile, check_run_dir, load_profile, save_config
from rlhf_helpers.progress import printable
from rlhf_helpers.runs.beginning import claim
from rlhf_helpers.runs.files import RunDir, open_run, reference_run_dir


def start(
    profile: str,
    run_dir: str | Path,
    seed: int | None,
    overrides: Mapping[str, Any],
    reference_run: bool,
    shows: str | None = None,
) -> tuple[RunDir, Profile]:
    """The run directory and the settings that a notebook works with; says in one line which.

    `shows` names a reference run that the page always reads, whatever the other settings: then the
    line names that one.

    A reference run is read with the configuration that made it, and nothing is written to it.
    Otherwise config.yml is written to the run directory. Raises ConfigError when the directory
    belongs to another configuration, MissingRunFileError when there is no reference run.
    """
    _no_bars_while_loading()
    run = open_run(profile, run_dir, reference_run)
    kept = _shown(reference_run_dir(shows).path) if shows else None
    if reference_run:
        settings = load_profile(run.path)
        print(f"Showing the finished runs in {kept}." if kept else
              f"Showing the finished run in {_shown(run.path)} ({_named(settings)}).")  # fmt: skip
        return run, settings
    settings = load_profile(profile, overrides=overrides, seed=seed, run_dir=run_dir)
    claim(run)
    check_run_dir(settings, run_dir)
    save_config(settings, run_dir)
    more = f" The finished runs are those in {kept}." if kept else ""
    print(f"Running in {_shown(run.path)} ({_named(settings)}).{more}")
    return run, settings


def _no_bars_while_loading() -> None:
    """Keep transformers' bar "Loading weights", which takes no second here, off the page."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _named(settings: Profile) -> str:
    return f"profile {settings.name}, seed {settings.config.train.seed}"


def _shown(path: Path) -> str:
    root = repo_root()
    return printable(str(path.relative_to(root) if path.is_relative_to(root) else path))
