"""How notebooks become slides and pages of the book: nothing is lost, nothing is given away."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_checks import NOTEBOOKS

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "book"))  # scripts, no package

import common  # noqa: E402
import make_slides  # noqa: E402


def code(source: str, *names: str, shown: str = "") -> nbformat.NotebookNode:
    outputs = [new_output("stream", name="stdout", text=shown)] if shown else []
    return new_code_cell(source, outputs=outputs, metadata={"tags": list(names)})


def slides(*cells: nbformat.NotebookNode) -> list[str]:
    """The text of each slide: its prose, its code unless it is hidden, its output."""
    texts = []
    for cell in make_slides.pages_of(new_notebook(cells=list(cells))):
        if cell.metadata.get("slideshow"):
            texts.append("")
        hidden = cell.metadata.get("transient", {}).get("remove_source")
        texts[-1] += "" if hidden else cell.source + "\n"
        texts[-1] += "".join(output.get("text", "") for output in cell.get("outputs", []))
    return texts


def test_headings_begin_slides_and_plumbing_is_left_out():
    first, second = slides(
        new_markdown_cell("# Title\n\nAbout it. (The next cell finds the package.)"),
        code("import sys", "bootstrap"),
        new_markdown_cell("The next two cells choose."),
        code("seed = 0", "parameters"),
        code("seed = 1", "injected-parameters"),
        code("print(1)", shown="1\n"),
        new_markdown_cell("## Part\n\nProse."),
        code("machine()", "hide-input", "hide-output", shown="secret\n"),
        code("summary()", "hide-input", shown="seen\n"),
    )
    assert first == "# Title\nAbout it.\nprint(1)\n1\n"
    assert second == "## Part\nProse.\nseen\n"


def test_what_is_folded_comes_one_slide_later():
    question, answer = slides(
        new_markdown_cell("# Title\n\n**Predict.** One or two?"),
        code("x", "hide-output", shown="Answer:\n2\n"),
        new_markdown_cell("<details><summary>Answer</summary>\n\nTwo.\n\nOf course.\n\n</details>"),
    )
    assert "x" in question and "2" not in question
    assert answer.endswith("Answer:\n2\n**Answer.** Two.\nOf course.\n")
    asked, told = slides(
        new_markdown_cell("# Title\n\nWhy?\n\n<details><summary>Hint</summary>\n\nSo.\n</details>")
    )
    assert "So." not in asked and "**Hint.** So." in told


def test_what_is_too_long_goes_on_below_under_the_name_of_its_section():
    long = "\n\n".join(f"Paragraph {i}. " + "word " * 60 for i in range(12))
    found = slides(new_markdown_cell(f"# Title\n\n## *Part*\n\n{long}"))
    assert len(found) >= 4
    assert all('<p class="running">Part</p>' in text for text in found[2:])
    assert re.findall(r"Paragraph (\d+)", "".join(found)) == [str(i) for i in range(12)]


def test_formulas_and_fences_are_not_divided():
    block = "$$a\n\n= b$$"
    fence = "```\nx\n\ny\n```"
    pieces = make_slides.text_pieces(f"One.\n\n{block}\n\n{fence}\n\nTwo.")
    assert [piece.cell.source for piece in pieces] == ["One.", block, fence, "Two."]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_prose_and_no_code_of_a_notebook_is_lost(name):
    notebook = common.read_notebook(ROOT / "notebooks" / name)
    kept = make_slides.without_plumbing(notebook.cells)
    deck = "\n".join(cell.source for cell in make_slides.pages_of(notebook))
    for cell in kept:
        if cell.cell_type == "code" and "hide-input" not in common.tags(cell):
            assert cell.source in deck
        if cell.cell_type == "markdown":
            text = make_slides.ABOUT_PLUMBING.sub("", re.sub(r"<[^>]+>", " ", cell.source))
            assert {*re.findall(r"\w+", text)} <= {*re.findall(r"\w+", deck)}


def test_printed_markdown_becomes_a_cell_and_a_badge_a_link(tmp_path):
    output = new_output("execute_result", data={"text/markdown": "## Seen\n", "text/plain": "<M>"})
    badge = (
        "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://a)"
    )
    cells = [new_markdown_cell(f"# T\n\n{badge}"), new_code_cell("show()", outputs=[output])]
    nbformat.write(new_notebook(cells=cells), tmp_path / "01_a.ipynb")
    first, shown, printed = common.read_notebook(tmp_path / "01_a.ipynb").cells
    assert first.source == "# T\n\n[Open in Colab](https://a)"
    assert shown.outputs == [] and printed.source == "## Seen"


def test_links_stay_inside_go_to_the_repository_or_are_an_error(tmp_path):
    page, study = ROOT / "notebooks" / "04_ppo_run.ipynb", ROOT / "docs" / "study.md"

    def linked(text: str) -> str:
        return common.with_links(text, page, {study}, tmp_path)

    assert linked("[a](../docs/study.md#x)") == "[a](../docs/study.md#x)"
    assert linked("[a](../README.md)") == f"[a]({common.URL}/blob/main/README.md)"
    assert linked("[a](../docs)") == f"[a]({common.URL}/tree/main/docs)"
    assert linked("[a](https://b.c) [d](#e)") == "[a](https://b.c) [d](#e)"
    assert linked("![p](../figures/diagrams/loop.svg)") == "![p](../figures/diagrams/loop.svg)"
    assert (tmp_path / "figures" / "diagrams" / "loop.svg").exists()
    with pytest.raises(common.BrokenLinkError, match="04_ppo_run.ipynb names ../docs/no.md"):
        linked("[a](../docs/no.md)")


def test_one_html_file_keeps_what_the_notebook_folds():
    exporter = HTMLExporter(
        template_name="folded", extra_template_basedirs=[str(ROOT / "book" / "templates")]
    )
    cells = [code("a", shown="open"), code("b", "hide-output", shown="secret"),
             code("c", "hide-input", shown="seen")]  # fmt: skip
    html, _ = exporter.from_notebook_node(new_notebook(cells=cells))
    outputs = re.findall(r'<details class="folded-output">(.*?)</details>', html, flags=re.S)
    inputs = re.findall(r'<details class="folded-input">(.*?)</details>', html, flags=re.S)
    assert len(outputs) == len(inputs) == 1
    assert "secret" in outputs[0] and "open" not in outputs[0] and "seen" in html
