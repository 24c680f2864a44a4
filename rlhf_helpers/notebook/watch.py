"""What a person sees while a notebook runs without Jupyter: its lines, a its memory."""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TextIO

import psutil

from rlhf_helpers.progress import duration, printable
from rlhf_helpers.runs.contents import read_manifest
from rlhf_helpers.runs.files import MissingRunFileError, RunDir, reference_run_dir

from .reading import read_notebook

SAMPLE_SECONDS = 0.25
QUIET_SECONDS = 10.0  # after which a line says that the notebook still runs
INDENT = "    "


class TimeEstimate:
    """Time left for the whole run, from what each notebook took in an earlier run."""

    def __init__(self, names: list[str], earlier: dict[str, float]):
        self.names = names
        self.earlier = earlier if all(name in earlier for name in names) else {}
        self.taken: dict[str, float] = {}

    @classmethod
    def from_earlier_runs(cls, names: list[str], profile: str, run: RunDir) -> TimeEstimate:
        """Seconds from this directory's last run, else from the profile's reference run."""
        manifests = [run.manifest]
        try:
            manifests.append(reference_run_dir(profile).manifest)
        except MissingRunFileError:
            pass
        for path in manifests:
            rows = read_manifest(path)["notebooks"] if path.exists() else []
            seconds = {r["name"]: r["seconds"] for r in rows if r["status"] == "executed"}
            if all(name in seconds for name in names):
                return cls(names, seconds)
        return cls(names, {})

    def finish(self, name: str, seconds: float) -> None:
        """Note what a notebook took: this machine's pace corrects the rest of the estimate."""
        self.taken[name] = seconds

    def pace(self) -> float:
        """How much slower this machine is than the one of the earlier run."""
        expected = sum(self.earlier.get(name, 0.0) for name in self.taken)
        # The first seconds are imports, which say little about the pace of training.
        return sum(self.taken.values()) / expected if expected > 20 else 1.0

    def seconds_left(self, current: str, elapsed: float) -> float | None:
        """Expected seconds until the whole run ends; None when nothing is known."""
        if not self.earlier:
            return None
        ahead = self.names[self.names.index(current) + 1 :]
        rest = max(0.0, self.earlier[current] * self.pace() - elapsed)
        return rest + sum(self.earlier[name] for name in ahead) * self.pace()

    def opening(self, name: str) -> str:
        """What to say about time when a notebook starts."""
        place = f" · notebook {self.names.index(name) + 1}/{len(self.names)}"
        left = self.seconds_left(name, 0.0)
        return place if left is None else f"{place} · about {duration(left)} left in all"


class CellNumbers:
    """Numbers of cells as in the notebook that the reader knows.

    papermill replaces the cell tagged `injected-parameters`; where there is none it puts one
    behind the cell tagged `parameters`, or in front of everything.
    """

    def __init__(self, total: int, new_cell_index: int | None):
        self.total = total
        self.new_cell_index = new_cell_index  # of the cell that papermill adds, if it adds one

    @classmethod
    def of(cls, path: Path) -> CellNumbers:
        """Read a notebook that papermill has not touched yet."""
        cells = read_notebook(path).cells
        tags = [cell.metadata.get("tags", []) for cell in cells]
        if any("injected-parameters" in names for names in tags):
            return cls(len(cells), None)
        behind = [i + 1 for i, names in enumerate(tags) if "parameters" in names]
        return cls(len(cells), behind[0] if behind else 0)

    def of_executed(self, index: int) -> int:
        """Number from 1 of the cell that stands at `index` (from 0) in what papermill executes."""
        shifted = self.new_cell_index is not None and index >= self.new_cell_index
        return max(1, index if shifted else index + 1)


class NotebookWatch:
    """Passes a notebook's output on, says that it lives, and samples its memory.

    Give it to papermill as a text file. As a context manager it starts a thread that sums the
    resident memory of all child processes (the kernel and what it starts) every quarter second,
    and prints a line when nothing else was printed for ten seconds; on leaving, no child that
    appeared in between is left running.
    """

    def __init__(
        self, name: str, estimate: TimeEstimate, cells: CellNumbers, out: TextIO | None = None
    ):
        self.name = name
        self.estimate = estimate
        self.cells = cells
        self.out = out or sys.stdout
        self.peak_rss_bytes = 0
        self.interrupts = 0
        self.cell_number: int | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._at_line_start = True
        self._last_output = self._started = time.monotonic()
        self._before: set[psutil.Process] = set()
        self._seen: set[psutil.Process] = set()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    # --- papermill's side

    def write(self, text: str) -> int:
        """Print text of the notebook, indented."""
        with self._lock:
            for line in text.replace("\r\n", "\n").splitlines(keepends=True):
                line = shown_line(line)
                self.out.write(INDENT + line if self._at_line_start else line)
                self._at_line_start = line.endswith(("\n", "\r"))
            self.out.flush()
            self._last_output = time.monotonic()
        return len(text)

    def flush(self) -> None:
        """Nothing to do: every write is flushed."""

    def cell_started(self, cell: dict, cell_index: int) -> None:
        """nbclient's hook: remember where the execution stands."""
        self.cell_number = self.cells.of_executed(cell_index)
        if self.interrupts:  # the interrupted cell has saved and ended well
            end_processes(self._kernels(), seconds=0)

    def where(self) -> str:
        """The words " in cell 7 of 40", once a cell has started."""
        return f" in cell {self.cell_number} of {self.cells.total}" if self.cell_number else ""

    def interrupt(self) -> None:
        """Interrupt the running cell as Jupyter's stop button does, so that it can save.

        Training answers the first two, which people press by mistake as one, by finishing its
        step (training/interrupts.py). The kernel is ended when that cell is through, or at the
        third call.
        """
        self.interrupts += 1
        if self.interrupts > 2 or self.cell_number is None:
            end_processes(self._kernels(), seconds=0)
            return
        for process in self._kernels():
            process.send_signal(signal.SIGINT)

    def _kernels(self) -> list[psutil.Process]:
        return [p for p in psutil.Process().children() if p not in self._before]

    # --- the thread

    def __enter__(self) -> NotebookWatch:
        self._before = set(psutil.Process().children(recursive=True))
        self._started = self._last_output = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._new_children()
        # What the kernel had started has no parent any more once the kernel is gone.
        end_processes([p for p in self._seen if p.is_running()])

    def _new_children(self) -> set[psutil.Process]:
        children = set(psutil.Process().children(recursive=True)) - self._before
        self._seen |= children
        return children

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.peak_rss_bytes = max(self.peak_rss_bytes, resident_bytes(self._new_children()))
            if time.monotonic() - self._last_output > QUIET_SECONDS:
                self._say_alive()

    def _say_alive(self) -> None:
        elapsed = time.monotonic() - self._started
        left = self.estimate.seconds_left(self.name, elapsed)
        ending = "" if left is None else f" · about {duration(left)} left in all"
        newline = "" if self._at_line_start else "\n"
        self.write(f"{newline}… {self.name}{self.where()} · {duration(elapsed)}{ending}\n")


# What colours and moves in a terminal, as kernels print it with their errors.
_ESCAPE_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def shown_line(line: str) -> str:
    """A line of a notebook's output without what could command the terminal."""
    body = line.rstrip("\r\n")
    return printable(_ESCAPE_SEQUENCE.sub("", body)) + line[len(body) :]


def resident_bytes(processes: Iterable[psutil.Process]) -> int:
    """Sum of the resident memory; pages that they share count more than once."""
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.Error:  # ended in between, or a zombie
            continue
    return total


def end_processes(processes: list[psutil.Process], seconds: float = 3.0) -> None:
    """Terminate, and kill what has not ended after `seconds`."""
    for process in processes:
        try:
            process.terminate()
        except psutil.Error:
            continue
    for process in psutil.wait_procs(processes, timeout=seconds)[1]:
        try:
            process.kill()
        except psutil.Error:
            continue
