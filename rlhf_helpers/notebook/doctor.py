"""Check a machine before anything is run on it, and say what to do about what is wrong.

    python -m rlhf_helpers doctor

The notebook 01_setup shows the same rows.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.paths import clone_root, repo_root, resolve_run_dir
from rlhf_helpers.config.profiles import Profile
from rlhf_helpers.progress import printable

from .colab import installed_version

OK, WARN, FAIL = "ok", "warn", "fail"
PACKAGE = "rlhf-on-one-gpu"
GB = 1e9
MEMORY_NEEDED = {"cpu": 4 * GB, "smoke": 3 * GB}  # bytes; other profiles need a GPU
# Without these a run still works; the rest of requirements.txt must be there.
NOT_FOR_A_RUN = {"jupyterlab", "pytest", "pytest-xdist", "nbval", "hypothesis", "ruff",
                 "import-linter", "packaging", "pyppmd"}  # fmt: skip
DISK_NEEDED = 1 * GB  # checkpoints, executed notebooks and figures of a run


@dataclass(frozen=True)
class Finding:
    """One row: what was looked at, how it is, what was found, what to do."""

    name: str
    status: str  # ok, warn, fail
    found: str
    todo: str = ""


def examine(profile: Profile, run_dir: str | Path) -> list[Finding]:
    """All checks; one that breaks becomes a failed row instead of an exception."""
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("Python", check_python),
        ("system", check_system),
        ("libraries", check_libraries),
        ("device", lambda: check_device(profile)),
        ("memory", lambda: check_memory(profile)),
        ("disk", lambda: check_disk(resolve_run_dir(run_dir))),
        ("write access", lambda: check_write_access(resolve_run_dir(run_dir))),
        ("assets", lambda: check_assets(profile)),
        ("notebook kernel", check_kernel),
        ("clone", check_clone),
    ]
    return [finding for name, check in checks for finding in _guarded(name, check)]


def _guarded(name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except Exception as error:
        return [Finding(name, FAIL, f"{type(error).__name__}: {error}", "see the message")]


def check_python() -> list[Finding]:
    """3.11 or newer."""
    version = platform.python_version()
    found = f"{version} ({platform.system()}, {platform.machine()})"
    if tuple(map(int, version.split(".")[:2])) < (3, 11):
        return [Finding("Python", FAIL, found, "install Python 3.11 or newer")]
    return [Finding("Python", OK, found)]


def check_system() -> list[Finding]:
    """What is not supported outside Linux: a row for Windows and a Mac with Apple's GPU."""
    if platform.system() == "Windows":
        found = "never tested: stopping a run may lose what came after its last checkpoint"
        return [Finding("system", WARN, found, "use WSL 2, or try it on a short run first")]
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return [Finding("system", OK, "macOS: runs take the CPU, Apple's GPU (MPS) is not used")]
    return []


def requirement_lines(path: Path) -> list[str]:
    """The requirements of a requirements.txt without comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    bare = (line.partition("#")[0].strip() for line in lines)
    return [line for line in bare if line]


def check_libraries(requirements: Path | None = None) -> list[Finding]:
    """Every direct dependency is there and in its range: one row, or one for each that is not."""
    from packaging.requirements import Requirement

    path = requirements or repo_root() / "requirements.txt"
    # What pip installed has no such file, but remembers what it asked for.
    asked = requirement_lines(path) if path.is_file() else importlib.metadata.requires(PACKAGE)
    wanted = [Requirement(line) for line in asked or []]
    wanted = [requirement for requirement in wanted if requirement.marker is None]
    rows = []
    for requirement in wanted:
        version = installed_version(requirement.name)
        remedy = f"pip install '{requirement}'"
        if version is None:
            status = WARN if requirement.name in NOT_FOR_A_RUN else FAIL
            rows.append(Finding(requirement.name, status, "not installed", remedy))
        elif not requirement.specifier.contains(version, prereleases=True):
            found = f"{version}, tested with {requirement.specifier}"
            rows.append(Finding(requirement.name, WARN, found, remedy))
    if not rows:
        shown = ", ".join(f"{n} {installed_version(n)}" for n in ("torch", "transformers", "peft"))
        rows.append(Finding("libraries", OK, f"all {len(wanted)} in range: {shown}"))
    return rows


def check_device(profile: Profile) -> list[Finding]:
    """What training will run on, and whether the profile was meant for it."""
    from rlhf_helpers.runs.manifest import device_report

    device = device_report()
    found = f"{device['type']}: {device['name']}, {device['cpu_count']} CPU cores usable"
    if device["type"] == "cpu" and profile.name not in MEMORY_NEEDED:
        todo = f"profile {profile.name} was made for a GPU: expect hours, or choose profile cpu"
        return [Finding("device", WARN, found, todo)]
    return [Finding("device", OK, found)]


def check_memory(profile: Profile) -> list[Finding]:
    """Main memory that is free now against what the profile needs."""
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / GB:.1f} of {memory.total / GB:.1f} GB free"
    needed = MEMORY_NEEDED.get(profile.name, 8 * GB)
    if memory.available < needed:
        todo = f"close programs, {needed / GB:.0f} GB are needed; or lower method.chunk_size"
        return [Finding("memory", WARN, found, todo)]
    return [Finding("memory", OK, found)]


def nearest_folder(path: Path) -> Path:
    """The path itself or its closest parent that is a directory."""
    return next(p for p in (path, *path.parents) if p.is_dir())


def check_disk(run_dir: Path) -> list[Finding]:
    """Free space where the results go."""
    free = shutil.disk_usage(nearest_folder(run_dir)).free
    found = f"{free / GB:.1f} GB free"
    if free < DISK_NEEDED:
        return [Finding("disk", FAIL, found, f"make room: {DISK_NEEDED / GB:.0f} GB are needed")]
    return [Finding("disk", OK, found)]


def check_write_access(run_dir: Path) -> list[Finding]:
    """A file can be written where the results go; nothing stays behind."""
    folder = nearest_folder(run_dir)
    in_the_way = [p for p in (run_dir, *run_dir.parents) if os.path.lexists(p) and not p.is_dir()]
    if in_the_way:
        todo = "choose another --run-dir"
        return [Finding("write access", FAIL, f"{in_the_way[0]} is no directory", todo)]
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        todo = "choose another --run-dir"
        return [Finding("write access", FAIL, f"{folder}: {error.strerror}", todo)]
    return [Finding("write access", OK, _shown(folder))]


def _shown(path: Path) -> str:
    root = repo_root()
    return f"./{path.relative_to(root)}" if path.is_relative_to(root) else str(path)


def check_assets(profile: Profile) -> list[Finding]:
    """Every asset of the profile, each with where it comes from or how to get it."""
    from rlhf_helpers.data.assets import asset_table

    rows = []
    for row in asset_table(profile):
        name = f"asset {row['role']}"
        if row["problem"]:
            rows.append(Finding(name, FAIL, f"{row['name']}: missing or damaged", row["problem"]))
        else:
            rows.append(Finding(name, OK, f"{row['name']} ({row['source']}, {row['licence']})"))
    return rows


def check_kernel() -> list[Finding]:
    """This interpreter can be a notebook kernel."""
    if importlib.util.find_spec("ipykernel") is None:
        todo = f"{sys.executable} -m pip install ipykernel"
        return [Finding("notebook kernel", FAIL, "ipykernel is missing", todo)]
    command = [sys.executable, "-m", "ipykernel_launcher", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        error = (done.stderr.strip().splitlines() or ["no message"])[-1]
        todo = "pip install --force-reinstall ipykernel"
        return [Finding("notebook kernel", FAIL, error, todo)]
    return [Finding("notebook kernel", OK, f"ipykernel {importlib.metadata.version('ipykernel')}")]


def check_clone() -> list[Finding]:
    """Whether the commands that need the repository's other files can work: a row where not."""
    try:
        clone_root("run")
    except ConfigError:
        needed = "run, notebooks, keep, figures and badges need a clone of the repository"
        return [Finding("clone", WARN, "the package alone is installed", needed)]
    return []


def table_rows(findings: list[Finding]) -> list[dict[str, str]]:
    """Plain dicts, for a data frame in the notebook."""
    return [
        {"check": f.name, "status": f.status, "found": f.found, "what to do": f.todo}
        for f in findings
    ]


def table_text(findings: list[Finding]) -> str:
    """The rows as aligned text, and one closing line."""
    width = max(len(f.name) for f in findings)
    lines = []
    for f in findings:
        lines.append(f"{f.status:5}{f.name:{width + 2}}{f.found}")
        if f.todo:
            lines.append(f"{'':{width + 7}}-> {f.todo}")
    failed = sum(f.status == FAIL for f in findings)
    warned = sum(f.status == WARN for f in findings)
    lines.append("")
    if failed:
        lines.append(f"{failed} to mend before a run, {warned} to know about.")
    else:
        lines.append(f"Ready to run, {warned} to know about." if warned else "Ready to run.")
    return printable("\n".join(lines))
