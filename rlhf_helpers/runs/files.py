"""What lies in a run directory, and how files are written there.

Notebooks hand their results on through files only, so a file is either absent or complete:
everything is written under a temporary name and renamed. Nothing is written through a link.
Standard library only.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from rlhf_helpers.config.checks import ConfigError, Sentence
from rlhf_helpers.config.reading import read_json, read_jsonl

__all__ = [
    "CannotWriteError", "KEPT", "MissingRunFileError", "RunDir", "append_jsonl",
    "atomic_write_json", "atomic_write_text", "fsync", "made_directory", "open_run", "read_json",
    "read_jsonl", "reference_run_dir", "refuse_links", "refuse_links_below", "remove",
    "write_jsonl", "writing_to", "written_together",
]  # fmt: skip

ON_WINDOWS = os.name == "nt"


class MissingRunFileError(Sentence, FileNotFoundError):
    """A file of the run directory that an earlier notebook writes is not there."""


class CannotWriteError(Sentence, OSError):
    """The disk is full, a quota reached or a directory closed; the message says what to do."""


# What a full or closed place for files answers, and how to say it.
_CANNOT_WRITE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the limit on the size of files is reached",
    errno.EACCES: "there is no permission to write",
    errno.EPERM: "there is no permission to write",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk or its connection fails",
    errno.ENOTDIR: "a part of this path is a file",
    errno.EEXIST: "a file of this name is in the way",
    errno.EISDIR: "a directory is in the way of a file",
    errno.ENOTEMPTY: "a directory is in the way of a file",
    errno.ELOOP: "a link is in the way",
    errno.ENAMETOOLONG: "this path is too long",
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


def made_directory(path: str | Path) -> Path:
    """`path` as a directory, made where it is missing; CannotWriteError where it cannot be one.

    It may be reached through links: what lies in it may not (`refuse_links`).
    """
    path = Path(path)
    with writing_to(path, "try again"):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # in /proc, where nobody makes directories, and on dead links
            problem = "a link to nothing is in the way" if path.is_symlink() else "no directory \
can be made there"
            raise CannotWriteError(
                f"{path} cannot be written ({problem}): choose another directory."
            ) from None
    return path


def remove(path: Path) -> None:
    """Remove a file, or a directory with all that is in it; of a link the link alone."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


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
    made_directory(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's files are private; these are meant to be read
        try:
            os.replace(temporary, path)
        except IsADirectoryError:
            raise CannotWriteError(
                f"{path} is a directory where a file is to be: remove it, then try again."
            ) from None
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
    refuse_link(directory)
    temporary = directory.with_name(f".{directory.name}.tmp")
    remove(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        for path in files:
            fsync(path)
        for path in files:
            final = directory / path.relative_to(temporary)
            final.parent.mkdir(parents=True, exist_ok=True)
            refuse_link(final.parent)
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
    with open_to_append(path) as file:
        file.write(line + "\n")


def open_to_append(path: str | Path) -> TextIO:
    """A text file of ours, made where it is missing; CannotWriteError where a link is in the way.

    So is a pipe, which would wait for a reader, and a file with a second name: a backup by hard
    links would change with this one.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, flags, 0o644)
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            os.close(handle)
            raise OSError(errno.ENXIO, "")
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise CannotWriteError(
            f"{path} is a pipe or a device: remove it, or choose another directory."
        ) from None
    if found.st_nlink > 1:
        os.close(handle)
        raise CannotWriteError(
            f"{path} has another name elsewhere (a hard link), which would change with it: put a "
            "copy in its place, then start again."
        )
    return os.fdopen(handle, "a", encoding="utf-8")


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


# What else this project writes into a run directory; the rest are files that it leaves alone.
MORE_OF_A_RUN = (
    "eval_samples.jsonl", "best_checkpoint", "merged_policy", "logs", "figures", "notebooks",
    "judge_course.csv", "evaluation_*.json", ".lock", ".pipeline.lock", ".begun.json",
)  # fmt: skip


# What is kept of a finished run, so that every notebook can show it.
KEPT = (
    "config", "manifest", "setup", "baseline_samples", "reward_check", "lora_report", "metrics",
    "policy", "after_samples", "evaluation",
)  # fmt: skip


class RunDir:
    """The paths inside one run directory; creates nothing by itself but the directory.

    With `create` it is opened for writing: CannotWriteError where it cannot be a directory,
    ConfigError where a link or a pipe has one of the names that a run writes to.
    """

    def __init__(self, path: str | Path, create: bool = True):
        self.path = Path(path)
        if create:
            made_directory(self.path)
            refuse_links(self.path)
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


def refuse_link(path: Path) -> None:
    """ConfigError where `path` is a link: what a run writes stays in the run's directory."""
    if path.is_symlink():
        raise ConfigError(
            f"{path} is a link, and a run writes through none: remove it, or choose another "
            "directory (the run's directory itself may be a link)."
        )


def own_paths(directory: Path) -> list[Path]:
    """What lies in a run directory under a name that this project gives, in order."""
    _, *named = [path.name for path in vars(RunDir(directory, create=False)).values()]
    patterns = (*named, *MORE_OF_A_RUN)
    # Not glob, which does not see links to nothing.
    there = sorted(os.listdir(directory)) if directory.is_dir() else []
    return [directory / n for n in there if any(fnmatch.fnmatchcase(n, p) for p in patterns)]


def refuse_links(directory: Path) -> None:
    """ConfigError for the first link, pipe or device among what a run writes to, at any depth."""
    with writing_to(directory, "try again"):
        for path in own_paths(directory):
            refuse_links_below(path)


def refuse_links_below(path: Path) -> None:
    """ConfigError where `path`, or anything in it at any depth, is a link, a pipe or a device."""
    refuse_link(path)
    for inner in path.rglob("*") if path.is_dir() else [path]:
        refuse_link(inner)
        kind = inner.lstat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise ConfigError(
                f"{inner} is a pipe or a device: remove it, or choose another directory."
            )


def reference_run_dir(profile: str) -> RunDir:
    """The committed files of one finished run of `profile`.

    Raises MissingRunFileError naming the profiles that have one.
    """
    from rlhf_helpers.config.paths import repo_root

    runs = repo_root() / "figures" / "reference_runs"
    path = runs / (Path(profile).stem or "no name")
    if not path.is_dir():
        known = sorted(p.parent.name for p in runs.glob("*/config.yml")) or ["none yet"]
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
    from rlhf_helpers.config.paths import resolve_run_dir

    return RunDir(resolve_run_dir(run_dir))


def _complete(run: RunDir) -> RunDir:
    missing = [p.name for p in (getattr(run, name) for name in KEPT) if not p.exists()]
    if missing:
        raise MissingRunFileError(
            f"The reference run of profile {run.path.name!r} lacks {', '.join(missing)}: keep a "
            "finished run of it again (python -m rlhf_helpers keep), or set reference_run=False."
        )
    return run
