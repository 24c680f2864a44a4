"""What lies in a run directory, and how files are written there.

Notebooks hand their results on through files only, so a file is either absent or complete:
everything is written under a temporary name and renamed. Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ON_WINDOWS = os.name == "nt"


class MissingRunFileError(FileNotFoundError):
    """A file of the run directory that an earlier notebook writes is not there."""


class CannotWriteError(OSError):
    """The disk is full, a quota reached or a directory closed; the message says what to do."""


# What a full or closed place for files answers, and how to say it.
_CANNOT_WRITE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the limit on the size of files is reached",
    errno.EACCES: "there is no permission to write",
    errno.EPERM: "there is no permission to write",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of this path is a file",
    errno.EEXIST: "a file of this name is in the way",
}


@contextlib.contextmanager
def writing_to(directory: str | Path, afterwards: str = "start it again") -> Iterator[None]:
    """Errors of a full or closed disk as one sentence; all others as they are.

    Raises CannotWriteError, with `afterwards` as what to do once there is room.
    """
    try:
        yield
    except CannotWriteError:
        raise
    except Exception as error:
        number = _error_number(error)
        if number not in _CANNOT_WRITE:
            raise
        raise CannotWriteError(
            f"{directory} cannot be written ({_CANNOT_WRITE[number]}): make room there or choose "
            f"another directory, then {afterwards}."
        ) from error


def _error_number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    # safetensors and tokenizers, written in Rust, put it into the text.
    found = re.search(r"\(os error (\d+)\)|code: (\d+), kind", str(error))
    return int(found[1] or found[2]) if found else None


def fsync(path: Path) -> None:
    """Wait until a file, or a directory's list of files, is on the disk."""
    if ON_WINDOWS and path.is_dir():  # it opens no directories
        return
    # Windows also refuses to flush a file that was opened for reading only.
    flags = os.O_RDWR | os.O_BINARY if ON_WINDOWS else os.O_RDONLY
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8 so that `path` never holds half of it, even after a crash."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's files are private; these are meant to be read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync(path.parent)


@contextlib.contextmanager
def written_together(directory: str | Path) -> Iterator[Path]:
    """An empty directory to write files to, which then replace those of `directory` by name.

    They are moved when all of them are on the disk; where writing fails, none is.
    """
    directory = Path(directory)
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        for path in files:
            fsync(path)
        for path in files:
            final = directory / path.relative_to(temporary)
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync(directory)


def atomic_write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON. ValueError on NaN and infinity, which JSON lacks."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write_text(path, text + "\n")


def write_jsonl(path: str | Path, records: Iterable[dict]) -> None:
    """Write one JSON object a line, all or nothing."""
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records]
    atomic_write_text(path, "".join(line + "\n" for line in lines))


def append_jsonl(path: str | Path, record: dict) -> None:
    """Add one JSON object as a line, handed to the operating system at once."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_json(path: str | Path) -> Any:
    """The value in a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_jsonl(path: str | Path) -> list[dict]:
    """All complete lines; a last line that a crash cut short (no newline) is left out."""
    text = Path(path).read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in complete.split("\n") if line.strip()]


# Which notebook writes what, for the sentence that a reader gets when it is missing.
WRITTEN_BY = {
    "config": "01_setup.ipynb",
    "manifest": "01_setup.ipynb",
    "setup": "01_setup.ipynb",
    "baseline_samples": "02_baseline_sampling.ipynb",
    "reward_check": "02_baseline_sampling.ipynb",
    "lora_report": "03_lora_parameter_inspection.ipynb",
    "metrics": "04_ppo_run.ipynb",
    "checkpoints": "04_ppo_run.ipynb",
    "policy": "04_ppo_run.ipynb",
    "after_samples": "05_before_after_evaluation.ipynb",
    "evaluation": "05_before_after_evaluation.ipynb",
}


# What is kept of a finished run, so that every notebook can show it.
KEPT = (
    "config", "manifest", "setup", "baseline_samples", "reward_check", "lora_report", "metrics",
    "policy", "after_samples", "evaluation",
)  # fmt: skip


class RunDir:
    """The paths inside one run directory; creates nothing by itself but the directory."""

    def __init__(self, path: str | Path, create: bool = True):
        self.path = Path(path)
        if create:
            self.path.mkdir(parents=True, exist_ok=True)
        self.config = self.path / "config.yml"
        self.manifest = self.path / "manifest.json"
        self.setup = self.path / "setup.json"
        self.baseline_samples = self.path / "baseline_samples.jsonl"
        self.reward_check = self.path / "reward_check.jsonl"
        self.lora_report = self.path / "lora_report.json"
        self.metrics = self.path / "metrics.jsonl"
        self.eval_samples = self.path / "eval_samples.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.policy = self.path / "policy"
        self.after_samples = self.path / "after_samples.jsonl"
        self.evaluation = self.path / "evaluation.json"
        self.figures = self.path / "figures"
        self.notebooks = self.path / "notebooks"

    def require(self, name: str) -> Path:
        """The path called `name` ("baseline_samples", "policy", ...), which must exist.

        Raises MissingRunFileError with the notebook to run first.
        """
        path: Path = getattr(self, name)
        if not path.exists():
            raise MissingRunFileError(
                f"{path} is missing: run {WRITTEN_BY[name]} with run_dir={str(self.path)!r} first."
            )
        return path

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"


def reference_run_dir(profile: str) -> RunDir:
    """The committed files of one finished run of `profile`.

    Raises MissingRunFileError naming the profiles that have one.
    """
    from rlhf_helpers.config.trl_config import repo_root

    runs = repo_root() / "figures" / "reference_runs"
    path = runs / Path(profile).stem
    if not path.is_dir():
        known = sorted(p.name for p in runs.glob("*") if p.is_dir()) or ["none yet"]
        raise MissingRunFileError(
            f"There is no reference run of profile {profile!r} (there is: {', '.join(known)}): "
            "set reference_run=False to run it."
        )
    return RunDir(path, create=False)


def open_run(profile: str, run_dir: str | Path, reference_run: bool = False) -> RunDir:
    """Where a notebook reads its inputs: the run directory, or the profile's reference run.

    Raises MissingRunFileError where there is no reference run, or where it is not complete.
    """
    if reference_run:
        return _complete(reference_run_dir(profile))
    from rlhf_helpers.config.trl_config import resolve_run_dir

    return RunDir(resolve_run_dir(run_dir))


def _complete(run: RunDir) -> RunDir:
    missing = [p.name for p in (getattr(run, name) for name in KEPT) if not p.exists()]
    if missing:
        raise MissingRunFileError(
            f"The reference run of profile {run.path.name!r} lacks {', '.join(missing)}: keep a "
            "finished run of it again (python -m rlhf_helpers keep), or set reference_run=False."
        )
    return run
