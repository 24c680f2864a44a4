"""One run at a time in a directory, by a lock that the operating system drops with its process."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_helpers.config.trl_config import ConfigError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None


@contextmanager
def only_run_in(directory: str | Path, name: str = ".lock") -> Iterator[None]:
    """Hold the lock `name` of an existing directory while this lasts.

    ConfigError when another process (or another call in this one) holds it. The file stays behind
    and means nothing by itself: a crash, SIGKILL included, releases the lock. Where the file
    system knows no locks, a warning says so.
    """
    with open(Path(directory) / name, "a+", encoding="utf-8") as file:
        _lock(file, directory)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def _lock(file, directory: str | Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise ConfigError(
            f"{directory} is in use by another run ({file.read() or 'just started'}): wait until "
            "it ends, or choose another directory."
        ) from None
    except OSError as error:
        warnings.warn(
            f"{directory} cannot be locked ({error.strerror}): start no second run in it.",
            stacklevel=4,
        )
