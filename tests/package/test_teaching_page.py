"""The places that docs/teaching.md names are headings of the notebooks."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
PLACES = re.findall(r"\*\*(\d\d)(x?) › ((?:[^*\n]|\*(?!\*))+)\*\*", PAGE)


def headings(number: str, is_exercise: bool) -> list[str]:
    """The headings of a notebook, in Markdown cells and in the Markdown that cells have printed."""
    folder = ROOT / "notebooks" / ("exercises" if is_exercise else "")
    (path,) = folder.glob(f"{number}_*.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    texts += [output.get("data", {}).get("text/markdown", "") for output in outputs]
    return re.findall(r"^#+ (.+)$", "\n".join(texts), flags=re.M)


@pytest.mark.parametrize("number, exercise, name", sorted({*PLACES}))
def test_every_place_that_is_named_is_a_heading(number, exercise, name):
    """The page may leave out the number before a heading, and what stands behind its colon."""
    shown = [re.sub(r"^(Exercise )?\d+ · ", "", text) for text in headings(number, bool(exercise))]
    assert any(text.startswith(name) for text in shown), shown


def test_every_named_place_was_found_and_each_notebook_is_taught():
    assert len(PLACES) == len(re.findall(r"\*\*\d\dx? ", PAGE)) > 30
    assert {number for number, _, _ in PLACES} >= {f"0{n}" for n in range(1, 8)}


def test_the_plans_follow_the_clock_to_their_end():
    for plan in re.split(r"^## ", PAGE, flags=re.M):
        minutes = re.match(r"(\d+) minutes", plan)
        rows = re.findall(r"^\| (\d+) to (\d+) \|", plan, flags=re.M)
        spans = [(int(begin), int(end)) for begin, end in rows]
        if not minutes:
            continue
        assert spans[0][0] == 0 and spans[-1][1] == int(minutes[1])
        for (_, end), (begin, _) in zip(spans, spans[1:], strict=False):
            assert 0 <= begin - end <= 10  # ten minutes: a break
