"""Diagrams: every word is large enough, inside the picture, and covers no other word or arrow."""

import itertools
import re
from pathlib import Path

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from rlhf_helpers.show import diagrams
from rlhf_helpers.show.diagrams import DIAGRAMS, SVG, draw_diagrams, rooms

ROOT = Path(__file__).resolve().parents[2]
by_name = pytest.mark.parametrize("name", DIAGRAMS)


def drawn(name):
    """The axes of a diagram, laid out."""
    with matplotlib.rc_context(SVG):
        figure = DIAGRAMS[name]()
        FigureCanvasAgg(figure).draw()
    return figure.axes[0]


def words_of(ax):
    return [text for text in ax.texts if text.get_text()]


@by_name
def test_no_text_is_under_eleven_points(name):
    assert min(text.get_fontsize() for text in words_of(drawn(name))) >= 11


@by_name
def test_every_word_is_inside_the_picture(name):
    ax = drawn(name)
    for text in words_of(ax):
        box = text.get_window_extent()
        assert box.x0 >= ax.bbox.x0 and box.x1 <= ax.bbox.x1, text.get_text()
        assert box.y0 >= ax.bbox.y0 and box.y1 <= ax.bbox.y1, text.get_text()


@by_name
def test_no_word_covers_another(name):
    boxes = [(t.get_text(), t.get_window_extent()) for t in words_of(drawn(name))]
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.overlaps(b), f"{one!r} and {other!r}"


@by_name
def test_no_arrow_crosses_a_word(name):
    ax = drawn(name)
    boxes = [(t.get_text(), t.get_window_extent()) for t in words_of(ax)]
    lines = [line.get_path().transformed(ax.transData) for line in ax.lines]
    for path, (word, box) in itertools.product(lines, boxes):
        assert not path.intersects_bbox(box, filled=False), word


@by_name
def test_words_in_a_box_stay_in_it(name):
    """A box drawn with `draw_box` holds every word whose middle lies in it."""
    ax = drawn(name)
    boxes = [p for p in ax.patches if hasattr(p, "get_boxstyle")]
    for patch, text in itertools.product(boxes, words_of(ax)):
        frame, box = patch.get_window_extent(), text.get_window_extent()
        if frame.contains(*((box.p0 + box.p1) / 2)) and not text.get_text().isdigit():
            assert frame.x0 + 2 <= box.x0 and box.x1 <= frame.x1 - 2, text.get_text()


def contrast(one, other):
    """WCAG 2.1's contrast ratio of two colours."""

    def luminance(colour):
        parts = [((c + 0.055) / 1.055) ** 2.4 if c > 0.04045 else c / 12.92 for c in to_rgb(colour)]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True))

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("fill", ["white", *diagrams.FILLS.values()])
def test_ink_stands_out_on_every_fill(fill):
    assert contrast(diagrams.INK, fill) >= 7


def test_the_house_has_the_rooms_of_the_contract_from_top_to_bottom():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    layers = re.search(r"^layers = \[(.*?)\]", text, re.S | re.M)[1]
    expected = re.findall(r"[a-z_]+", layers)
    assert [room for storey in rooms() for room in storey] == expected
    ax = drawn("house")
    heights = {t.get_text(): t.get_position()[1] for t in words_of(ax)}
    drawn_order = sorted(expected, key=lambda room: (-heights[room], expected.index(room)))
    assert drawn_order == expected


def comments(path):
    """The words of an SVG file: matplotlib writes each beside its outlines."""
    return re.findall(r"<!-- (.*?) -->", path.read_text(encoding="utf-8"))


def test_the_committed_files_are_what_the_code_draws(tmp_path):
    paths = draw_diagrams(tmp_path)
    committed = ROOT / "figures" / "diagrams"
    assert sorted(p.name for p in paths) == sorted(p.name for p in committed.iterdir())
    for path in paths:
        assert comments(path) and comments(path) == comments(committed / path.name)
        assert path.stat().st_size < 100_000
    again = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in draw_diagrams(tmp_path)] == again
