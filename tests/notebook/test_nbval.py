"""nbval replays the committed notebooks, compares their outputs, and notices a changed one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_output
from notebook_checks import EXERCISES, NOTEBOOKS
from tiny_notebooks import write_notebook

from rlhf_helpers.notebook.pipeline import execute_in_place, joined_streams

ROOT = Path(__file__).resolve().parents[2]


def replay(*paths: Path) -> subprocess.CompletedProcess:
    """`pytest --nbval` on notebooks, as a reader would call it; the package is importable."""
    command = [
        sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", "-rf",
        "-p", "no:cacheprovider", *map(str, paths),
    ]  # fmt: skip
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_committed_notebook_replays(name):
    path = ROOT / "notebooks" / name
    done = replay(path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert f"{len(cells)} passed" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("name", EXERCISES)
def test_the_exercises_replay(name):
    done = replay(ROOT / "notebooks" / "exercises" / name)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def is_compared(cell: nbformat.NotebookNode) -> bool:
    """Whether nbval compares this cell's outputs: nothing tells it to look away."""
    tags = cell.metadata.get("tags", [])
    return not ({"nbval-ignore-output", "nbval-skip"} & set(tags) or "NBVAL_" in cell.source)


def change_one_output(path: Path) -> int:
    """Add a digit to the first compared text of a notebook and drop the cells behind it."""
    notebook = nbformat.read(path, as_version=4)
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or not is_compared(cell):
            continue
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stdout":
                output.text = output.text.rstrip("\n") + "1\n"
            elif "text/plain" in output.get("data", {}):
                output.data["text/plain"] += "1"
            else:
                continue
            notebook.cells = notebook.cells[: index + 1]
            nbformat.write(notebook, path)
            return index
    raise AssertionError(f"{path.name} has no text to compare")


def test_one_changed_output_of_a_committed_notebook_is_noticed(tmp_path):
    copy = tmp_path / NOTEBOOKS[2]
    shutil.copy(ROOT / "notebooks" / NOTEBOOKS[2], copy)
    shutil.copy(ROOT / "conftest.py", tmp_path)
    change_one_output(copy)
    done = replay(copy)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-2000:]
    assert "1 failed" in done.stdout.splitlines()[-1]


def test_in_place_execution_gives_what_nbval_accepts(tmp_path):
    """Streams, values, stderr and numbers: stored by one command, replayed by the other."""
    shutil.copy(ROOT / "conftest.py", tmp_path)
    noisy = "import sys, time\nprint(time.time(), file=sys.stderr)\nprint('same')\n6 * 7"
    path = write_notebook(tmp_path, "01_tiny.ipynb", noisy, "import os\nos.getcwd() != seed")
    execute_in_place([path])
    stored = nbformat.read(path, as_version=4)
    assert [cell.execution_count for cell in stored.cells[1:]] == [1, 2, 3]
    assert any(output.get("name") == "stderr" for output in stored.cells[2].outputs)
    assert replay(path).returncode == 0

    stored.cells[2].outputs = [
        new_output("stream", name="stdout", text="other\n") if o.get("name") == "stdout" else o
        for o in stored.cells[2].outputs
    ]
    nbformat.write(stored, path)
    assert replay(path).returncode == 1


def test_texts_of_one_stream_that_follow_each_other_are_one():
    out, err = (new_output("stream", name=name, text="a") for name in ("stdout", "stderr"))
    value = new_output("execute_result", data={"text/plain": "1"})
    outputs = [new_output("stream", name="stdout", text=text) for text in "bcd"]
    joined = joined_streams([out, *outputs[:2], value, outputs[2], err])
    found = [(o.output_type, o.get("name"), o.get("text")) for o in joined]
    assert found == [("stream", "stdout", "abc"), ("execute_result", None, None),
                     ("stream", "stdout", "d"), ("stream", "stderr", "a")]  # fmt: skip


def test_a_notebook_that_fails_is_not_overwritten(tmp_path):
    from nbclient.exceptions import CellExecutionError

    path = write_notebook(tmp_path, "01_tiny.ipynb", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(CellExecutionError):
        execute_in_place([path])
    assert path.read_bytes() == before
