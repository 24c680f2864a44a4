"""All notebooks as one papermill run, with progress, a manifest and a clear first failure.

    python -m rlhf_helpers run --profile cpu --run-dir runs/cpu

Every notebook is executed by the running interpreter with the parameters of the run, and lands
in <run_dir>/notebooks. What a notebook prints is passed on to the terminal as it comes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_helpers.config.checks import ConfigError, Sentence, shown
from rlhf_helpers.config.paths import clone_root, resolve_run_dir
from rlhf_helpers.config.profiles import Profile, check_run_dir, load_profile, save_config
from rlhf_helpers.progress import duration, printable
from rlhf_helpers.runs.beginning import claim
from rlhf_helpers.runs.files import RunDir, writing_to
from rlhf_helpers.runs.lock import only_run_in
from rlhf_helpers.runs.manifest import record_notebook, write_manifest

from .kernels import InterpreterKernelManager
from .reading import read_notebook
from .watch import CellNumbers, NotebookWatch, TimeEstimate

EXECUTED, FAILED, INTERRUPTED = "executed", "failed", "interrupted"


class PipelineError(Sentence, RuntimeError):
    """A notebook failed or the run was interrupted; the message names notebook, cell and error."""


@dataclass(frozen=True)
class NotebookResult:
    """What one notebook took."""

    name: str
    seconds: float
    peak_rss_bytes: int


def notebook_paths(names: list[str] | None = None, folder: Path | None = None) -> list[Path]:
    """The notebooks to run, in order; `names` may be whole names or their numbers ("04").

    Raises ConfigError for a name that does not exist, with those that do.
    """
    folder = folder or clone_root("The command run") / "notebooks"
    everything = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not everything:
        raise ConfigError(f"There are no notebooks in {folder}: run this in a full clone.")
    if names is None:
        return everything
    chosen = set()
    for name in names:
        stem = Path(name).stem
        number = stem.zfill(2)  # 3 is 03
        found = [p for p in everything if p.stem == stem or p.stem.split("_")[0] == number]
        found += (folder / "exercises").glob(f"{stem}.ipynb")  # by the whole name alone
        if not found:
            known = ", ".join(p.stem for p in everything)
            raise ConfigError(f"Notebook {shown(name)} does not exist: choose from {known}.")
        chosen.update(found)
    return sorted(chosen)


def run_pipeline(
    profile: str = "cpu",
    run_dir: str | Path = "runs/cpu",
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    notebooks: list[str] | None = None,
    reference_run: bool = False,
    notebook_folder: Path | None = None,
) -> list[NotebookResult]:
    """Execute the notebooks in order and return what each took.

    Raises ConfigError or AssetError before anything runs (unknown profile or field, a run directory
    of another configuration, a missing asset), and PipelineError at the first notebook that fails.
    Files written until then, the half-executed notebook among them, stay in the run directory.
    """
    paths = notebook_paths(notebooks, notebook_folder)
    loaded = load_profile(profile, overrides=overrides, seed=seed, run_dir=run_dir)
    run = RunDir(resolve_run_dir(run_dir))
    claim(run)
    check_run_dir(loaded, run_dir)
    with writing_to(run.path), only_run_in(run.path, ".pipeline.lock"):
        return _run_locked(paths, loaded, run, run_dir, profile, overrides, reference_run)


def _run_locked(
    paths: list[Path],
    loaded: Profile,
    run: RunDir,
    run_dir: str | Path,
    profile: str,
    overrides: Mapping[str, Any] | None,
    reference_run: bool,
) -> list[NotebookResult]:
    """Execute the notebooks in a run directory that no other pipeline uses."""
    save_config(loaded, run_dir)
    manifest = write_manifest(run, loaded)
    if not reference_run:  # which is shown without the models that made it
        require_assets(manifest["assets"])
    parameters = {
        # A profile given as a file is found from any directory; run_dir is resolved by config.
        "profile": str(Path(profile).resolve()) if Path(profile).is_file() else profile,
        "run_dir": str(run_dir),
        "seed": loaded.config.train.seed,
        "overrides": dict(overrides or {}),
        "reference_run": reference_run,
    }
    print(printable(
        f"Profile {loaded.name}, seed {parameters['seed']}, {len(paths)} notebooks -> {run.path}"
    ))  # fmt: skip
    estimate = TimeEstimate.from_earlier_runs([p.stem for p in paths], loaded.name, run)
    with Interrupts() as interrupts:
        return [_run_notebook(path, parameters, run, estimate, interrupts) for path in paths]


def require_assets(rows: list[dict[str, Any]]) -> None:
    """Raise AssetError for the first asset that cannot be used, before minutes go into others."""
    from rlhf_helpers.data.assets import AssetError

    for row in rows:
        if row["problem"]:
            raise AssetError(row["problem"])


def _run_notebook(
    path: Path,
    parameters: dict[str, Any],
    run: RunDir,
    estimate: TimeEstimate,
    interrupts: Interrupts,
) -> NotebookResult:
    """Execute one notebook, put it on record, and turn its failure into a PipelineError."""
    print(f"\n{path.stem}{estimate.opening(path.stem)}", flush=True)
    watch = NotebookWatch(path.stem, estimate, CellNumbers.of(path))
    started = time.monotonic()
    status, problem = EXECUTED, None
    try:
        with watch, interrupts.reach(watch):
            _execute(path, run.notebooks / path.name, parameters, watch)
    except Exception as error:
        status, problem = FAILED, failure_sentence(path.name, error, watch)
    if watch.interrupts:
        status, problem = INTERRUPTED, f"{path.name} was interrupted{watch.where()}."
    seconds = time.monotonic() - started
    more = {"error": problem} if problem else {}
    record_notebook(run, path.stem, seconds, watch.peak_rss_bytes, status, **more)
    if problem:
        raise PipelineError(
            f"{problem}\nEverything written so far is kept in {run.path}; "
            f"the notebook, as far as it ran: {run.notebooks / path.name}"
        )
    estimate.finish(path.stem, seconds)
    peak = f"{watch.peak_rss_bytes / 1e9:.2f} GB"
    print(f"    done in {duration(seconds)}, peak memory {peak}", flush=True)
    return NotebookResult(path.stem, seconds, watch.peak_rss_bytes)


def _execute(path: Path, output: Path, parameters: dict[str, Any], watch: NotebookWatch) -> None:
    """Let papermill execute one notebook; its streams and cell numbers go to `watch`."""
    import papermill

    output.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        _without_fields(path),
        _without_fields(output),
        parameters=parameters,
        kernel_name="python3",
        language="python",
        cwd=str(path.parent),
        progress_bar=False,
        stdout_file=watch,
        stderr_file=watch,
        kernel_manager_class=InterpreterKernelManager,
        on_cell_start=watch.cell_started,
    )


def _without_fields(path: Path) -> str:
    """The path for papermill, which fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def failure_sentence(notebook: str, error: Exception, watch: NotebookWatch) -> str:
    """Notebook, cell and error of a failed execution."""
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    if isinstance(error, PapermillExecutionError):
        line = next((line for line in error.source.splitlines() if line.strip()), "")
        what = f"{error.ename}: {error.evalue}".rstrip(": ")
        return f"{notebook} failed{watch.where()}, In [{error.exec_count}] ({line.strip()}): {what}"
    if isinstance(error, DeadKernelError):
        return (
            f"{notebook} failed{watch.where()}: its Python process died after using up to "
            f"{watch.peak_rss_bytes / 1e9:.2f} GB, most likely because memory ran out; "
            "lower method.chunk_size or train.batch_size with --set."
        )
    return f"{notebook} failed{watch.where()}: {type(error).__name__}: {error}"


class Interrupts:
    """While this lasts, SIGINT and SIGTERM interrupt the notebook that runs.

    Otherwise they raise KeyboardInterrupt. SIGINT is set too, since a background process of a
    shell inherits it as ignored. In other threads than the main one nothing is changed.
    """

    def __init__(self) -> None:
        self._watch: NotebookWatch | None = None
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._earlier[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _handle(self, signum: int, frame: Any) -> None:
        if self._watch is None:
            raise KeyboardInterrupt
        self._watch.interrupt()

    @contextlib.contextmanager
    def reach(self, watch: NotebookWatch) -> Iterator[None]:
        """Send signals to this notebook."""
        self._watch = watch
        try:
            yield
        finally:
            self._watch = None


def joined_streams(outputs: list[Any]) -> list[Any]:
    """Texts of one stream that follow each other, as one: a busy machine sends them in parts."""
    joined: list[Any] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last and "name" in output and last.get("name") == output.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


def execute_in_place(paths: list[Path]) -> None:
    """Execute committed notebooks with the parameters they hold, and store outputs in them.

    Nothing is injected, so that nbval, which injects nothing either, sees the same values.
    A notebook is only written when all its cells have run.
    """
    import nbformat
    from nbclient import NotebookClient

    from rlhf_helpers.runs.files import atomic_write_text

    for path in paths:
        started = time.monotonic()
        notebook = read_notebook(path)
        NotebookClient(
            notebook,
            timeout=None,
            kernel_manager_class=InterpreterKernelManager,
            resources={"metadata": {"path": str(path.parent)}},
            record_timing=False,
            store_widget_state=False,
        ).execute(env=os.environ | {"RLHF_QUIET_PROGRESS": "1"})  # times differ between runs
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = joined_streams(cell.outputs)
        notebook.metadata["kernelspec"] = {
            "display_name": "Python 3", "language": "python", "name": "python3",
        }  # fmt: skip
        # The patch version of whoever executed it would change this file for nothing.
        notebook.metadata["language_info"] = {"name": "python"}
        atomic_write_text(path, nbformat.writes(notebook) + "\n")
        print(f"{path.name} executed in {duration(time.monotonic() - started)}", flush=True)
