"""Notebooks of a few lines for tests of what runs and checks notebooks."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMETERS = """\
profile = "cpu"
run_dir = "runs/cpu"
seed = 0
overrides = {}
reference_run = False"""


def tagged_cell(source: str, tag: str) -> nbformat.NotebookNode:
    """A code cell with one tag."""
    cell = new_code_cell(source)
    cell.metadata["tags"] = [tag]
    return cell


def write_notebook(folder: Path, name: str, *sources: str) -> Path:
    """A heading, a parameters cell (cells 1 and 2), then one code cell for each source."""
    cells = [new_markdown_cell("# Title"), tagged_cell(PARAMETERS, "parameters")]
    cells += [new_code_cell(source) for source in sources]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    nbformat.write(new_notebook(cells=cells), path)
    return path
