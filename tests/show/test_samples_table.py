"""The before/after table: matching, escaping, and the plain text."""

from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_helpers.show.samples_table import SamplesTable, samples_table_html, table_rows

BEFORE = [
    {"prompt": "This movie was", "output": " bad.", "reward": 0.01, "seed": 1, "group": "post"},
    {"prompt": "This movie was", "output": " fine.", "reward": 0.5, "seed": 2, "group": "post"},
]
AFTER = [
    {"prompt": "This movie was", "output": " great!", "reward": 0.99, "seed": 2, "group": "post"},
    {"prompt": "This movie was", "output": " loved.", "reward": 0.9, "seed": 1, "group": "post"},
]


class Cells(HTMLParser):
    """What a browser makes of the table: tags, and the text of each cell."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.cells, self._inside = set(), [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "td":
            self.cells.append("")
            self._inside = True

    def handle_endtag(self, tag):
        if tag == "td":
            self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.cells[-1] += data


def test_rows_are_matched_by_seed():
    rows = table_rows(BEFORE, AFTER)
    assert [(r["output"], r["after_output"]) for r in rows] == [
        (" bad.", " loved."), (" fine.", " great!")]
    assert [(r["reward"], r["after_reward"]) for r in rows] == [(0.01, 0.9), (0.5, 0.99)]


def test_html_has_a_cell_for_each_value():
    table = SamplesTable(BEFORE, AFTER)._repr_html_()
    assert Cells(table).cells[:5] == ["This movie was", " bad.", "0.010", " loved.", "0.900"]
    assert len(Cells(SamplesTable(BEFORE)._repr_html_()).cells) == 6


def test_a_sample_without_partner_keeps_empty_cells():
    assert Cells(SamplesTable(BEFORE[:1], AFTER[:1])._repr_html_()).cells[3:] == ["", ""]


def test_text_cannot_become_markup():
    row = {"prompt": "<script>alert(1)</script>", "output": "<img src=x onerror=y> & \"q\" $x$",
           "reward": 0.5}
    table = samples_table_html([row])
    parsed = Cells(table)
    assert parsed.tags == {"table", "thead", "tbody", "tr", "th", "td", "span"}
    assert parsed.cells[:2] == [row["prompt"], row["output"]]
    assert "$x" not in table  # a dollar of its own, so that no formula is found
    assert "mathjax_ignore" in table


@given(st.text(max_size=40))
@settings(max_examples=60)
def test_any_text_comes_back_as_text(text):
    parsed = Cells(samples_table_html([{"prompt": text, "output": text, "reward": 0.0}]))
    assert parsed.tags <= {"table", "thead", "tbody", "tr", "th", "td", "span"}
    kept = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    assert parsed.cells[0] == parsed.cells[1] == kept


def test_colour_grows_with_the_distance_from_one_half():
    def background(reward: float) -> str:
        table = samples_table_html([{"prompt": "", "output": "", "reward": reward}])
        return table.split("background:")[1].split('"')[0]

    assert background(1.0) == "rgba(0,114,178,0.55)"
    assert background(0.0) == "rgba(230,130,0,0.55)"
    assert background(0.5).endswith(",0.00)")


def test_plain_text_names_both_sides():
    text = repr(SamplesTable(BEFORE[:1], AFTER))
    assert text == "This movie was\n  before 0.010  bad.\n  after  0.900  loved."
    assert repr(SamplesTable(BEFORE[:1])) == "This movie was\n  0.010  bad."


def test_plain_text_wraps_and_keeps_terminal_codes_out():
    row = {"prompt": "p", "output": "word " * 60 + "\x1b[31mred", "reward": 0.2, "seed": 0}
    text = repr(SamplesTable([row]))
    assert max(map(len, text.splitlines())) <= 100 and "\x1b" not in text


def test_the_two_sides_can_have_names_of_their_own():
    row = {"prompt": "p", "output": "x", "reward": 0.25, "seed": 1, "group": "g"}
    table = SamplesTable([row], [{**row, "output": "y", "reward": 0.75}], ("β = 0.01", "β = <0>"))
    assert repr(table) == "p\n  β = 0.01 0.250  x\n  β = <0>  0.750  y"
    assert "output β = 0.01</th>" in table._repr_html_()
    assert "output β = &lt;0&gt;</th>" in table._repr_html_()
