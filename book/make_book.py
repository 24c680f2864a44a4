"""make book: the notebooks, exercises, docs and public API as a site, in build/book.

    .venv/bin/python book/make_book.py

Copies the pages into build/book-pages in the repository's own order of folders, so that links
between them stay as they are, and calls Sphinx, for which a warning is an error. Links to files
that are no pages go to the repository's address.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nbformat
from api import write_api
from common import (
    BUILD,
    ROOT,
    copy_mathjax,
    exercises,
    place,
    read_notebook,
    title,
    tutorial,
    with_links,
    without_badge,
)
from sphinx.cmd.build import main as sphinx

PAGES, SITE = BUILD / "book-pages", BUILD / "book"
FIRST_DOCS = ("teaching", "study")  # then the others by name


def pages() -> list[Path]:
    """The files of the repository that become pages."""
    docs = sorted((ROOT / "docs").glob("*.md"))
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *docs, *tutorial(), *exercises()]


def write_page(source: Path, known: set[Path]) -> None:
    target = PAGES / place(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".ipynb":
        notebook = read_notebook(source)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = with_links(cell.source, source, known, PAGES)
        nbformat.write(notebook, target)
    else:
        text = without_badge(source.read_text(encoding="utf-8"))
        target.write_text(with_links(text, source, known, PAGES), encoding="utf-8")


def contents(api: list[str]) -> str:
    """The navigation, as it is appended to the first page."""
    docs = {path.stem: path for path in (ROOT / "docs").glob("*.md")}
    order = [name for name in FIRST_DOCS if name in docs]
    order += sorted(docs.keys() - {*order})
    groups = {
        "The notebooks": [entry(path) for path in tutorial()],
        "Exercises": [entry(path) for path in exercises()],
        "Pages": [f"docs/{name}" for name in order] + ["CONTRIBUTING"],
        "Public names": [f"{name} <api/{name}>" for name in api],
    }
    return "".join(
        f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(lines) + "\n```\n"
        for caption, lines in groups.items()
    )


def entry(path: Path) -> str:
    name = title(nbformat.read(path, as_version=4))
    return f"{name} <{place(path).with_suffix('').as_posix()}>"


def main() -> int:
    for folder in (PAGES, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    known = {path.resolve() for path in pages()}
    for source in pages():
        write_page(source, known)
    with (PAGES / "index.md").open("a", encoding="utf-8") as first:
        first.write(contents(write_api(PAGES / "api")))
    options = ["-q", "-W", "--keep-going", "-j", "auto", "-c", str(ROOT / "book")]
    copy_mathjax(SITE / "_static" / "mathjax")
    code = sphinx([*options, "-d", str(BUILD / "book-doctrees"), str(PAGES), str(SITE)])
    if code == 0:
        print(f"The book: {SITE.relative_to(ROOT)}/index.html")
    return code


if __name__ == "__main__":
    sys.exit(main())
