"""Interrupts that wait until a step is done, and say so."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# A closed terminal sends SIGHUP, a cluster or `kill` SIGTERM. Windows has no SIGHUP.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
           if hasattr(signal, name)]  # fmt: skip
FIRST = "Interrupted: the step that runs is finished and saved, then the run stops."
SECOND = (
    "Still at that step. Once more stops at once: what came after the last checkpoint is then lost."
)


@contextmanager
def interrupts_noted() -> Iterator[list[int]]:
    """A list that fills when the user interrupts, so that a step is never left half done.

    The first interrupt is answered at once, with what happens next; so is the second, since people
    press a key twice. The third acts at once. A signal that was ignored before, as SIGHUP is under
    nohup, stays ignored; Ctrl-C alone is taken up, since shells ignore it for what runs in the
    background.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number, frame):
        noted.append(number)
        if len(noted) > 2:
            raise KeyboardInterrupt("stopped at once, at the third interrupt")
        _say(FIRST if len(noted) == 1 else SECOND)

    taken = [
        s for s in SIGNALS if s == signal.SIGINT or signal.getsignal(s) is not signal.SIG_IGN
    ]
    previous = {s: signal.signal(s, note) for s in taken}
    try:
        yield noted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    # The terminal may be gone, or be in the middle of a line when the signal comes.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        print(f"\n{text}", file=sys.stderr, flush=True)
