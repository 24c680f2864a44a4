"""Progress with an estimate of the time left: a bar where someone looks, a line elsewhere.

A tqdm bar redraws itself hundreds of times. In a terminal and in a live notebook that is what one
wants; in an executed notebook or a CI log it is a flood. There, one plain line is printed every
few seconds:

    PPO 12/40 · 30 % · 2.1 s/step · 0:58 left · reward 0.61

Environment: RLHF_PLAIN_PROGRESS=1 asks for lines, RLHF_QUIET_PROGRESS=1 for silence (for cells
that are replayed and compared, since times differ between runs).
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import time
import unicodedata
from collections.abc import Callable
from typing import Any, TextIO

# Work that is shorter than this prints nothing at all.
FIRST_LINE_SECONDS = 2.0


class Progress:
    """Count towards `total` and show it. Use as a context manager, or call `close()`.

    Args:
        total: amount of work, or None when it is not known (then there is no estimate).
        label: what is going on, e.g. "PPO".
        unit: what is counted, e.g. "step".
        every_seconds: distance between two plain lines.
        done: work that an earlier, interrupted run did; the estimate leaves it out.
        quiet: show nothing; None asks the environment.
        stream, clock: where to print (default: sys.stdout) and how to tell the time, in seconds.
    """

    def __init__(self, total: int | None, label: str, unit: str = "step",
                 every_seconds: float = 5.0, *, done: int = 0, quiet: bool | None = None,
                 stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.every_seconds = every_seconds
        self.done = self._initial = done
        self.fields: dict[str, Any] = {}
        self._clock = clock
        self._start = clock()
        self._next_line = self._start + min(FIRST_LINE_SECONDS, every_seconds)
        self._stream = stream
        self._printed: int | None = None  # `done` in the last line
        self._closed = False
        self.quiet = _is_set("RLHF_QUIET_PROGRESS") if quiet is None else quiet
        self._bar = None if self.quiet or not is_interactive(stream) else self._make_bar()

    def update(self, done: int | None = None, n: int = 1, **fields: Any) -> None:
        """Add `n`, or set the count to `done`; `fields` such as reward=0.61 are shown beside it."""
        previous, self.done = self.done, self.done + n if done is None else done
        self.fields.update(fields)
        if self._bar is not None:
            self._bar.set_postfix(_shown_fields(self.fields), refresh=False)
            self._bar.update(self.done - previous)
        elif not self.quiet and self._clock() >= self._next_line:
            self._print_line()

    def close(self) -> None:
        """End the bar; in plain mode print the last state if lines were printed before."""
        if self._closed:
            return
        self._closed = True
        if self._bar is not None:
            self._bar.close()
        elif self._printed is not None and self._printed != self.done:
            self._print_line()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def line(self) -> str:
        """The current state as one line of text."""
        elapsed = self._clock() - self._start
        worked = self.done - self._initial
        parts = [f"{printable(self.label)} {self.done}" + (f"/{self.total}" if self.total else "")]
        if self.total:
            parts.append(f"{100 * self.done // self.total} %")
        if worked > 0 and elapsed > 0:
            parts.append(_pace(elapsed / worked, self.unit))
        if self.total and worked > 0:
            seconds_left = elapsed / worked * max(0, self.total - self.done)
            parts.append(f"{duration(seconds_left)} left")
        else:
            parts.append(f"{duration(elapsed)} so far")
        parts += [f"{name} {value}" for name, value in _shown_fields(self.fields).items()]
        return " · ".join(parts)

    def _print_line(self) -> None:
        print(self.line(), file=self._stream or sys.stdout, flush=True)
        self._printed = self.done
        self._next_line = self._clock() + self.every_seconds

    def _make_bar(self) -> Any:
        if in_live_notebook() and importlib.util.find_spec("ipywidgets"):
            from tqdm.notebook import tqdm
        else:
            from tqdm import tqdm
        return tqdm(total=self.total, desc=self.label, unit=self.unit, initial=self.done,
                    file=self._stream or sys.stdout, dynamic_ncols=True)


_LEFT = re.compile(r"(\S.*?) \d+/\d+ · .* · (?:(\d+):)?(\d+):(\d\d) left(?: · |$)")


def told_left(line: str) -> tuple[str, int] | None:
    """Label and seconds left of a line that `Progress` printed; None for any other line."""
    found = _LEFT.match(line.strip())
    if not found:
        return None
    label, hours, minutes, seconds = found.groups()
    return label, 3600 * int(hours or 0) + 60 * int(minutes) + int(seconds)


def is_interactive(stream: TextIO | None = None) -> bool:
    """Whether a redrawing bar is of use: a terminal, or a notebook that someone has open."""
    if _is_set("RLHF_PLAIN_PROGRESS"):
        return False
    if stream is None and in_live_notebook():
        return True
    isatty = getattr(stream or sys.stdout, "isatty", None)
    return bool(isatty and isatty())


def in_live_notebook() -> bool:
    """Whether this is a notebook kernel with a person in front of it.

    papermill and nbval start kernels too. A Jupyter server, Colab and VS Code leave traces of
    themselves in the kernel, those two do not. (VSCODE_* variables tell nothing: what is started
    from VS Code's terminal inherits them.)
    """
    if "ipykernel" not in sys.modules:
        return False
    return ("JPY_SESSION_NAME" in os.environ or "google.colab" in sys.modules
            or hasattr(sys.modules["__main__"], "__vsc_ipynb_file__"))


def printable(text: str) -> str:
    """`text` as a terminal may show it: what could command it, or is no text, is written out.

    Escape sequences, other control characters, characters that turn the direction of writing and
    halves of surrogate pairs become their escapes, such as \\x1b; line ends and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char in "\n\t" or char.isprintable() or unicodedata.category(char) == "Zs"
        else char.encode("unicode_escape", "surrogatepass").decode("ascii")
        for char in text
    )  # fmt: skip


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    whole = int(seconds + 0.5)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _pace(seconds_each: float, unit: str) -> str:
    if seconds_each >= 1.0:
        return f"{seconds_each:.1f} s/{unit}"
    return f"{1.0 / seconds_each:.1f} {unit}/s"


def _shown_fields(fields: dict[str, Any]) -> dict[str, str]:
    return {name.replace("_", " "): f"{value:.3g}" if isinstance(value, float) else str(value)
            for name, value in fields.items()}


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() not in ("", "0", "false", "no")
