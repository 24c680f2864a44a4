"""make slides: the numbered notebooks as reveal.js slides, in build/slides.

    .venv/bin/python book/make_slides.py

No notebook says where its slides end: `pages_of` finds that from headings, folds and lengths.

- A heading begins a slide to the right (##) or below (###); what does not fit goes on below.
- What is folded in a notebook, the answer to a prediction, comes on the next slide.
- Bootstrap, parameters and cells that are folded whole are left out.
"""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

import nbformat
from common import (
    BUILD,
    ROOT,
    copy_mathjax,
    read_notebook,
    tags,
    title,
    tutorial,
    with_links,
)
from nbconvert import SlidesExporter
from nbformat.v4 import new_code_cell, new_markdown_cell

SITE = BUILD / "slides"
CAPACITY = 650  # pixels below a slide's title, of 720
A_LITTLE = 80  # so much more is allowed for a cell's output to stay with its code
LINE, CODE_LINE, ROW = 36, 25, 35  # pixels of a line of text, of code, of a row of a table
TEXT_WIDTH, OUTPUT_WIDTH, ROW_WIDTH = 92, 108, 120  # characters in a line
DIAGRAM, FIGURE = 410, 475
PLUMBING = {"bootstrap", "parameters", "injected-parameters"}
# A fence, a formula and a fold may hold empty lines; everything else ends at one.
BLOCK = re.compile(
    r"\n*(```.*?```|\$\$.*?\$\$|<details>.*?</details>|(?:(?!\n\n|<details>).)+)", re.S
)
FOLD = re.compile(r"<details><summary>(.*?)</summary>(.*?)</details>", re.S)
ABOUT_PLUMBING = re.compile(r"\s*\(The next cell[^)]*\)|^\[Open in Colab\].*$", re.M)


@dataclass
class Piece:
    """A part of a slide that is not divided: a paragraph, a cell's code, a cell's output."""

    cell: nbformat.NotebookNode
    height: int  # pixels, estimated
    begins: str = ""  # "slide" or "subslide" where it has to begin one


# --- from cells to pieces ----------------------------------------------------------------------


def pieces_of(notebook: nbformat.NotebookNode) -> list[Piece]:
    pieces = []
    for cell in without_plumbing(notebook.cells):
        more = text_pieces(cell.source) if cell.cell_type == "markdown" else code_pieces(cell)
        after_answer = pieces and pieces[-1].cell.cell_type == "code" and pieces[-1].begins
        if more and after_answer and not more[0].cell.source.startswith("#"):
            more[0].begins = ""  # the answer in words goes with the output that shows it
        pieces += more
    return pieces


def without_plumbing(cells: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """All but the bootstrap, the parameters, and the prose between them."""
    places = [index for index, cell in enumerate(cells) if tags(cell) & PLUMBING]
    first, last = (places[0], places[-1]) if places else (0, -1)
    return [cell for index, cell in enumerate(cells) if not first <= index <= last]


def text_pieces(source: str) -> list[Piece]:
    pieces = []
    for block in BLOCK.findall(ABOUT_PLUMBING.sub("", source)):
        block = block.strip("\n")
        fold = FOLD.fullmatch(block)
        if fold:
            inner = text_pieces(f"**{fold[1]}.** {fold[2].strip()}")
            inner[0].begins = "subslide"
            pieces += inner
        elif block.strip():
            pieces += [text_piece(part) for part in parts_of_list(block)]
    return pieces


def parts_of_list(block: str) -> list[str]:
    """A list that is longer than half a slide, item by item."""
    if text_height(block) <= CAPACITY / 2 or not re.match(r"- |\d+\. ", block):
        return [block]
    return re.split(r"\n(?=- |\d+\. )", block)


def text_piece(block: str) -> Piece:
    begins = {"# ": "slide", "##": "slide"}.get(block[:2], "")
    return Piece(new_markdown_cell(block), text_height(block),
                 "subslide" if block.startswith("###") else begins)  # fmt: skip


def text_height(block: str) -> int:
    if block.startswith("!["):
        return DIAGRAM
    if block.startswith("$$"):
        return 110
    if block.startswith("|"):
        return ROW * len(block.splitlines())
    paragraphs = re.split(r"\n(?=- |\d+\. )", block)
    return sum(LINE * math.ceil(len(text) / TEXT_WIDTH) + 8 for text in paragraphs)


def code_pieces(cell: nbformat.NotebookNode) -> list[Piece]:
    """The code, then what it has shown; an output that is folded begins a slide."""
    folded = {name for name in ("hide-input", "hide-output") if name in tags(cell)}
    pieces = []
    if "hide-input" not in folded:
        height = CODE_LINE * len(cell.source.splitlines()) + 24
        pieces.append(Piece(new_code_cell(cell.source), height))
    if folded != {"hide-input", "hide-output"} and cell.outputs:
        shown = new_code_cell(cell.source, outputs=cell.outputs)
        shown.metadata["transient"] = {"remove_source": True}
        height = sum(output_height(output) for output in cell.outputs)
        pieces.append(Piece(shown, height, "subslide" if "hide-output" in folded else ""))
    return pieces


def output_height(output: nbformat.NotebookNode) -> int:
    data = output.get("data", {})
    if "image/png" in data or "image/svg+xml" in data:
        return FIGURE
    if "text/html" in data:
        return table_height(data["text/html"])
    lines = output.get("text", data.get("text/plain", "")).splitlines()
    return CODE_LINE * sum(math.ceil(max(len(line), 1) / OUTPUT_WIDTH) for line in lines) + 16


def table_height(html: str) -> int:
    rows = re.split(r"<tr[ >]", html)[1:]
    return sum(ROW * math.ceil(row_length(row) / ROW_WIDTH) for row in rows) + 20


def row_length(row: str) -> int:
    return max(len(re.sub(r"<[^>]*>|\s+", " ", row)), 1)


# --- from pieces to slides ---------------------------------------------------------------------


def pages_of(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells of the slides, each with nbconvert's `slide_type`."""
    cells, used, heading = [], 0, title(notebook)
    for piece in pieces_of(notebook):
        is_little = piece.height <= A_LITTLE and is_output(piece.cell)
        room = CAPACITY + A_LITTLE * is_little - used
        begins = piece.begins or ("subslide" if piece.height > room else "")
        named = re.match(r"#+ (.+)", piece.cell.source) if piece.begins else None
        if named and piece.cell.cell_type == "markdown":
            heading = named[1]
        elif begins:
            cells.append(running_title(heading))
        if begins:
            used = 0
            (piece.cell if named else cells[-1]).metadata["slideshow"] = {"slide_type": begins}
        used += piece.height
        cells.append(piece.cell)
    return cells


def is_output(cell: nbformat.NotebookNode) -> bool:
    return cell.metadata.get("transient", {}).get("remove_source", False)


def running_title(heading: str) -> nbformat.NotebookNode:
    return new_markdown_cell(f'<p class="running">{re.sub("[*`]", "", heading)}</p>')


# --- files -------------------------------------------------------------------------------------


def write_deck(source: Path, exporter: SlidesExporter) -> str:
    """One notebook's slides; returns its title."""
    notebook = read_notebook(source)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_links(cell.source, source, set(), SITE)
    notebook.cells = pages_of(notebook)
    notebook.metadata["title"] = title(notebook)
    html, _ = exporter.from_notebook_node(notebook)
    target = SITE / "notebooks" / f"{source.stem}.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(html, encoding="utf-8")
    return title(notebook)


def copy_static() -> None:
    """reveal.js out of the package sphinx-revealjs (MIT), MathJax, and this folder's own files."""
    package = Path(importlib.util.find_spec("sphinx_revealjs").origin).parent
    reveal, static = package / "_static" / "revealjs", SITE / "static"
    for folder in ("dist", "plugin/notes"):
        shutil.copytree(reveal / folder, static / "reveal" / folder,
                        ignore=shutil.ignore_patterns("*.map", "*.esm.js"))  # fmt: skip
    shutil.copy(reveal / "LICENSE", static / "reveal")
    copy_mathjax(static)
    for name in ("slides.css", "slides.js"):
        shutil.copy(ROOT / "book" / "static" / name, static)


def write_index(decks: dict[str, str]) -> None:
    links = "".join(
        f'<li><a href="notebooks/{name}.html">{escape(heading)}</a></li>\n'
        for name, heading in decks.items()
    )
    (SITE / "index.html").write_text(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Slides</title>'
        "</head>\n"
        '<body style="font: 24px/1.8 system-ui, sans-serif; margin: 3em">\n<h1>Slides</h1>\n'
        f"<ul>\n{links}</ul>\n<p>Space: next. Esc: overview. S: the speaker's view. F: full screen."
        "</p>\n</body></html>\n",
        encoding="utf-8",
    )


def main() -> int:
    shutil.rmtree(SITE, ignore_errors=True)
    exporter = SlidesExporter(
        template_name="slides",
        extra_template_basedirs=[str(ROOT / "book" / "templates")],
        reveal_url_prefix="../static/reveal",
        reveal_theme="white",
    )
    write_index({source.stem: write_deck(source, exporter) for source in tutorial()})
    copy_static()
    print(f"Slides: {SITE.relative_to(ROOT)}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
