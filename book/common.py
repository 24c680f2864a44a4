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
PICTURES = {".png", ".svg"}
# Markdown's links and pictures, and pictures in HTML: what comes before the target, the target.
TARGET = re.compile(r"(\]\(|<img[^>]*?\bsrc=[\"'])([^)\s\"']+)")
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


class BrokenLinkError(Exception):
    """A page names a file that the repository does not have."""


def place(path: Path) -> Path:
    """Where a file of the repository lies in the book, relative to its top."""
    relative = path.relative_to(ROOT)
    return Path("index.md") if relative == Path("README.md") else relative


def with_links(text: str, source: Path, known: set[Path], top: Path) -> str:
    """Links of a page as they have to be below `top`, to which pictures are copied.

    A link to one of the files `known` stays inside, one to another file of the repository goes to
    the repository's address. Raises BrokenLinkError where there is no such file.
    """

    def changed(match: re.Match) -> str:
        before, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match.group()
        name, hash_sign, anchor = target.partition("#")
        path = (source.parent / name).resolve()
        if not path.exists():
            raise BrokenLinkError(f"{source.relative_to(ROOT)} names {target}, which is not there")
        if path.suffix in PICTURES:
            copied = top / path.relative_to(ROOT)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copied)
            return match.group()
        if path in known:
            up = Path(*[".."] * (len(place(source).parts) - 1))
            return f"{before}{(up / place(path)).as_posix()}{hash_sign}{anchor}"
        kind = "tree" if path.is_dir() else "blob"
        return f"{before}{URL}/{kind}/main/{path.relative_to(ROOT).as_posix()}{hash_sign}{anchor}"

    return TARGET.sub(changed, text)


def copy_mathjax(folder: Path) -> None:
    """MathJax 3 out of the package sphinx-mathjax-offline (Apache-2.0)."""
    package = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(package / "static" / "mathjax" / MATHJAX, folder / MATHJAX)
