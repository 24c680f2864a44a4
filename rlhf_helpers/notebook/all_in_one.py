"""The whole chain from one cell, for a Colab machine that is thrown away afterwards.

Opened by their own badges, notebooks may get a machine each, none of which has the files of
another. notebooks/colab/all_in_one.ipynb calls what is here instead.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.paths import resolve_run_dir
from rlhf_helpers.runs.files import RunDir
from rlhf_helpers.runs.manifest import device_report

from .pipeline import run_pipeline
from .summary import run_summary

DRIVE = Path("/content/drive")
LARGE_GPU = 20e9  # bytes, which an L4 (24 GB) has, and a T4 or V100 (16 GB) has not


def fitting_profile(device: Mapping[str, Any] | None = None) -> str:
    """The profile for this machine: `seed` on a GPU with 20 GB, `t4` on a smaller one, or `cpu`.

    `device` is a row of `device_report`; by default this machine's.
    """
    device = device or device_report()
    if device["type"] != "cuda":
        return "cpu"
    return "seed" if device["memory_bytes"] >= LARGE_GPU else "t4"


def in_drive(run_dir: str | Path) -> Path:
    """The folder of this name in the user's Google Drive, which is mounted where it is not yet.

    Colab asks the user for leave. ConfigError outside Colab, and for an absolute path.
    """
    if Path(run_dir).is_absolute():
        raise ConfigError(f"{run_dir} is an absolute path: give a relative one, such as runs/seed.")
    try:
        drive = importlib.import_module("google.colab.drive")
    except ImportError as error:
        raise ConfigError(
            "Google Drive can be mounted on Colab only: set keep_in_drive = False."
        ) from error
    drive.mount(str(DRIVE))
    return DRIVE / "MyDrive" / "rlhf" / run_dir


def run_everything(
    profile: str | None = None,
    keep_in_drive: bool = False,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> RunDir:
    """Run all notebooks one after another, show before and after; the run directory.

    `profile` None takes the one that fits the machine. The same call after an interruption goes on
    from the last checkpoint, on another machine too where the run is kept in Drive. Raises what
    `run_pipeline` raises, and ConfigError where there is no Drive.
    """
    name = profile or fitting_profile()
    run_dir: str | Path = f"runs/{Path(name).stem}"
    if keep_in_drive:
        run_dir = in_drive(run_dir)
    run_pipeline(profile=name, run_dir=run_dir, seed=seed, overrides=overrides)
    run = RunDir(resolve_run_dir(run_dir))
    print("\n" + run_summary(run))
    return run
