"""One run at a time in a directory, by a lock that the operating system drops with its process."""

from __future__ import annotations

import errno
import os
import platform
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rlhf_helpers.config.checks import ConfigError

# What file systems answer that know no locks.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def only_run_in(directory: str | Path, name: str = ".lock") -> Iterator[None]:
    """Hold the lock `name` of an existing directory while this lasts.

    ConfigError when another process (or another call in this one) holds it, and where a link or
    anything but a plain file stands in its place. The file stays behind and means nothing by
    itself: a crash, SIGKILL included, releases the lock. Where the file system knows no locks, a
    warning says so.
    """
    path = Path(directory) / name
    _refuse_link(path)
    lock = FileLock(
        path, blocking=False, thread_local=False, on_acquired=_sign,
        fallback_to_soft=False,  # whose file would outlive a killed run
        preserve_lock_file=True,
    )  # fmt: skip
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"{directory} is in use by another run ({_holder(path)}): wait until it ends, or "
            "choose another directory."
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{directory} cannot be locked ({error.strerror}): start no second run in it.",
            stacklevel=3,
        )
    try:
        yield
    finally:
        lock.release()


def _refuse_link(path: Path) -> None:
    """ConfigError unless `path` is a file of one name, or nothing yet: its holder writes there."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise ConfigError(f"{path} is a link or no plain file: remove it, then start again.")


def _sign(handle: int) -> None:
    """Write who holds the lock into its open file."""
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "just started"
    except OSError:  # Windows lets nobody read what another process has locked
        return "another process"
