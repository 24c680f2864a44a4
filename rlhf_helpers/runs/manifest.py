"""manifest.json: which versions, device and assets made a run, and what each notebook took."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.config.profiles import Profile

from .contents import read_manifest
from .files import RunDir, atomic_write_json

# The libraries whose version can change a result.
RECORDED = (
    "torch", "transformers", "tokenizers", "accelerate", "opendelta", "peft", "datasets",
    "safetensors", "numpy", "pandas", "scikit-learn",
)  # fmt: skip


def library_versions() -> dict[str, str]:
    """Python, the libraries that can change a result, and the commit where git knows it."""
    versions = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _git_commit(repo_root())
    return versions | ({"commit": commit} if commit else {})


def _git_commit(folder: Path) -> str | None:
    if not (folder / ".git").exists():  # an installed package must not report a parent's commit
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def device_report() -> dict[str, Any]:
    """The device that training will take: type, name, memory_bytes, cpu_count.

    A CUDA GPU, or else the CPU, on Macs too: nothing here runs on Apple's GPU.
    """
    import torch

    report: dict[str, Any] = {"cpu_count": usable_cpus()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return report | {
            "type": "cuda",
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "count": torch.cuda.device_count(),
        }
    return report | {"type": "cpu", "name": cpu_name(), "memory_bytes": total_memory()}


def usable_cpus() -> int:
    """CPUs that this process may use, which on shared machines are fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def total_memory() -> int:
    """Bytes of main memory."""
    import psutil

    return psutil.virtual_memory().total


def cpu_name() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write_manifest(run: RunDir, profile: Profile) -> dict[str, Any]:
    """Write who, what and where; rows of notebooks that ran before in this directory stay.

    An asset that cannot be used has the reason in its field `problem`.
    """
    from rlhf_helpers.data.assets import asset_table

    earlier = read_manifest(run.manifest) if os.path.lexists(run.manifest) else {}
    manifest = {
        "profile": profile.name,
        "seed": profile.config.train.seed,
        "versions": library_versions(),
        "device": device_report(),
        "assets": asset_table(profile),
        "notebooks": earlier.get("notebooks", []),
    }
    atomic_write_json(run.manifest, manifest)
    return manifest


def record_notebook(
    run: RunDir, name: str, seconds: float, peak_rss_bytes: int, status: str, **more: Any
) -> None:
    """Put one notebook's row into manifest.json, in place of an earlier row of that name."""
    manifest = read_manifest(run.manifest)
    row = {
        "name": name,
        "seconds": round(seconds, 2),
        "peak_rss_bytes": int(peak_rss_bytes),
        "status": status,
        **more,
    }
    rows = {old["name"]: old for old in manifest["notebooks"]} | {name: row}
    manifest["notebooks"] = [rows[key] for key in sorted(rows)]
    atomic_write_json(run.manifest, manifest)
