"""What the book and the slides share: which notebooks, in what form, and MathJax from PyPI.

Both are made from the committed notebooks as they are; nothing is executed.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import nbformat
from nbformat.v4 import new_markdown_cell

from rlhf_helpers.notebook.badges import repository_url

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
URL = repository_url(ROOT / "pyproject.toml")
MATHJAX = "tex-svg.js"  # one file: glyphs are drawn, no fonts are loaded
IN_COLAB = re.compile(r"\[!\[Open In Colab\]\([^)]*\)\]\(([^)]*)\)")


def tutorial() -> list[Path]:
    """The numbered notebooks, in their order."""
    return sorted((ROOT / "notebooks").glob("0*.ipynb"))


def exercises() -> list[Path]:
    return sorted((ROOT / "notebooks" / "exercises").glob("0*.ipynb"))


def tags(cell: nbformat.NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def title(notebook: nbformat.NotebookNode) -> str:
    """The first heading, without its hash."""
    return notebook.cells[0].source.splitlines()[0].removeprefix("# ")


def without_badge(text: str) -> str:
    """Colab's badge is a picture from a server: a link in words says the same without one."""
    return IN_COLAB.sub(r"[Open in Colab](\1)", text)


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """A committed notebook; Markdown that a cell has printed becomes a Markdown cell behind it.

    So the headings of such output ("What was seen") are headings of the page.
    """
    notebook = nbformat.read(path, as_version=4)
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        for output in list(cell.get("outputs", [])):
            if "text/markdown" in output.get("data", {}):
                cell.outputs.remove(output)
                cells.append(new_markdown_cell(output.data["text/markdown"].strip()))
    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = without_badge(cell.source)
    notebook.cells = cells
    return notebook


def copy_mathjax(folder: Path) -> None:
    """MathJax 3 out of the package sphinx-mathjax-offline (Apache-2.0)."""
    package = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(package / "static" / "mathjax" / MATHJAX, folder / MATHJAX)
