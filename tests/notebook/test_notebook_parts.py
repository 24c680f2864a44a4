"""What the notebooks call: tables, start, reward checks, cost tables."""


import nbformat
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from nbformat.v4 import new_markdown_cell, new_notebook

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.profiles import load_profile
from rlhf_helpers.notebook import costs as notebook_costs
from rlhf_helpers.notebook.fields import try_it
from rlhf_helpers.notebook.opening import start
from rlhf_helpers.rewards.check import accuracy, is_right, reliability_rows, surest_errors
from rlhf_helpers.runs import files as run_files
from rlhf_helpers.runs.files import MissingRunFileError, atomic_write_json
from rlhf_helpers.show.lesson_figures import clipping_plot, next_token_plot, rank_and_layers_plot
from rlhf_helpers.show.tables import Folded, Table, wrapped

# --- tables ---------------------------------------------------------------------------------------


def test_a_table_escapes_what_a_model_wrote():
    shown = Table([{"output": "<script>alert('x')</script> $x$ \x1b[31m"}])._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown
    assert "$x$" not in shown and "\x1b" not in shown


def test_a_table_chooses_orders_formats_and_aligns():
    rows = [{"name": "a", "n": 1234, "p": -0.0001}, {"name": "b", "n": None, "p": 0.5}]
    table = Table(rows, {"n": "count", "name": "who", "p": "p"}, {"n": ",", "p": ".3f"})
    assert table.cells == [["1,234", "a", "0.000"], ["not measured", "b", "0.500"]]
    assert table.right == [True, False, True]
    assert repr(table).splitlines() == [
        "       count  who      p",
        "       1,234  a    0.000",
        "not measured  b    0.500",
    ]


def test_a_table_writes_numbers_as_they_are_printed():
    """A real minus sign, a space before %; what is text stays as it was written."""
    table = Table([{"a": -0.25, "b": 0.487, "c": "-1%"}], formats={"a": "+.2f", "b": ".1%"})
    assert table.cells == [["−0.25", "48.7\N{NO-BREAK SPACE}%", "-1%"]]


def test_an_empty_table_shows_its_titles():
    table = Table([], {"name": "notebook"})
    assert repr(table) == "notebook"
    assert "notebook" in table._repr_html_()


def test_long_text_is_wrapped_and_cleaned():
    lines = wrapped("word " * 50 + "\x07").splitlines()
    assert len(lines) > 1 and all(len(line) <= 100 for line in lines)
    assert "\x07" not in "".join(lines)


# --- the start of a notebook ----------------------------------------------------------------------


def test_start_writes_the_configuration_and_refuses_another(tmp_path, capsys):
    run, settings = start("smoke", tmp_path, 3, {"method.ppo_epochs": 1}, False)
    assert settings.config.method.ppo_epochs == 1
    assert load_profile(run.path).config.train.seed == 3
    assert "profile smoke, seed 3" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="another configuration"):
        start("smoke", tmp_path, 4, {}, False)


def test_start_without_a_reference_run_says_what_to_do(tmp_path):
    with pytest.raises(MissingRunFileError, match="reference_run=False"):
        start("t4", tmp_path, 1, {}, True)


def test_start_names_the_run_that_a_page_shows_whatever_the_settings(tmp_path, capsys):
    shown = "figures/reference_runs/preferences."
    start("cpu", tmp_path, 3, {}, True, shows="preferences")
    assert capsys.readouterr().out == f"Showing the finished runs in {shown}\n"
    start("smoke", tmp_path, 3, {}, False, shows="preferences")
    told = capsys.readouterr().out
    assert told.startswith("Running in") and told.endswith(f"finished runs are those in {shown}\n")
    with pytest.raises(MissingRunFileError, match="no reference run"):
        start("smoke", tmp_path, 3, {}, False, shows="nothing")


def test_start_keeps_bars_of_loading_off_the_page(tmp_path):
    from transformers.utils import logging

    logging.enable_progress_bar()
    start("smoke", tmp_path, 3, {}, False)
    assert not logging.is_progress_bar_enabled()


# --- a field and a button ------------------------------------------------------------------------


def test_where_nobody_watches_the_plain_answer_is_given(capsys):
    assert try_it(len, "four") == 4
    assert try_it(str.upper, "four") is None  # printed, so without quotation marks
    assert capsys.readouterr().out == "FOUR\n"


def test_in_a_live_notebook_the_button_answers_what_was_typed(monkeypatch):
    monkeypatch.setattr("rlhf_helpers.notebook.fields.in_live_notebook", lambda: True)
    asked = []
    shown = try_it(asked.append, "first", "Score")
    (field, press), place = shown.children[0].children, shown.children[1]
    assert (field.value, press.description) == ("first", "Score")
    field.value = "second"
    press.click()
    assert asked == ["first", "second"]
    assert type(place).__name__ == "Output"


# --- the reward model's errors --------------------------------------------------------------------

ROWS = [
    {"text": "a", "label": 1, "reward": 0.9, "judge": 0.2},
    {"text": "b", "label": 1, "reward": 0.1, "judge": 0.8},
    {"text": "c", "label": 0, "reward": 1.0, "judge": 0.1},
    {"text": "d", "label": 0, "reward": 0.45, "judge": 0.4},
    {"text": "e", "label": None, "reward": 0.7, "judge": 0.7},
]


def test_right_wrong_and_without_an_answer():
    assert [is_right(row) for row in ROWS] == [True, False, False, True, None]
    assert accuracy(ROWS) == 2 / 4
    assert accuracy(ROWS, "judge") == 3 / 4
    assert [row["text"] for row in surest_errors(ROWS, 5)] == ["c", "b"]


def test_reliability_by_hand():
    table = reliability_rows(ROWS[:4], n_bins=2)
    assert [row["texts"] for row in table] == [2, 2]
    assert table[0]["reward"] == pytest.approx((0.1 + 0.45) / 2)
    assert [row["positive"] for row in table] == [0.5, 0.5]
    assert reliability_rows(ROWS[:1], n_bins=2)[0]["reward"] is None


# --- cost tables ----------------------------------------------------------------------------------


def test_costs_come_from_the_reference_run_and_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_helpers.config.paths.repo_root", lambda: tmp_path)
    manifest = tmp_path / "figures" / "reference_runs" / "cpu" / "manifest.json"
    rows = [
        {"name": "04_ppo_run", "seconds": 245, "peak_rss_bytes": 1.26e9, "status": "executed"},
        {"name": "05_x", "seconds": 9, "peak_rss_bytes": 1e9, "status": "failed"},
    ]
    atomic_write_json(manifest, {"notebooks": rows})
    assert run_files.reference_run_dir("cpu").manifest == manifest
    path = tmp_path / "04_ppo_run.ipynb"
    text = f"# Title\n\n{notebook_costs.cost_table('05_x')}\n\nend"
    path.write_text(nbformat.writes(new_notebook(cells=[new_markdown_cell(text)])))
    assert "4:05" not in path.read_text()
    assert notebook_costs.rewrite_cost_table(path)
    source = nbformat.read(path, as_version=4).cells[0].source
    assert "| 4:05 | not measured | not measured |" in source
    assert "| 1.3 GB | not measured | not measured |" in source
    assert source.endswith("end")
    assert not notebook_costs.rewrite_cost_table(path)


# --- figures --------------------------------------------------------------------------------------


def test_the_clipping_plot_has_one_labelled_panel_for_each_sign():
    figure = clipping_plot([0.5, 1.0, 1.5], {1: [0.5, 1.0, 1.2], -1: [-0.8, -1.0, -1.5]}, 0.2)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert [title.split(":")[0] for title in titles] == ["Advantage +1", "Advantage −1"]
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes)


def smallest_text(figure) -> float:
    """The size in points of the smallest text that is drawn."""
    FigureCanvasAgg(figure).draw()
    texts = [t for t in figure.findobj(Text) if t.get_text() and t.get_visible()]
    return min(text.get_fontsize() for text in texts)


def test_what_is_folded_stands_behind_one_line_and_is_escaped():
    shown = Folded("More <here>", "a tree\n└── <b>", Table([{"n": 1}]))
    page = shown._repr_html_()
    assert page.startswith("<details><summary>More &lt;here&gt;</summary>")
    assert page.rstrip().endswith("</details>") and page.count("<table") == 1
    assert "a tree\n└── &lt;b&gt;</pre>" in page
    assert repr(shown) == "More <here>\n\na tree\n└── <b>\n\nn\n1"


def test_the_next_tokens_are_bars_in_order_with_their_probability():
    figure = next_token_plot("It was", [" a", " so"], [0.25, 0.0625])
    (ax,) = figure.axes
    assert [bar.get_width() for bar in ax.patches] == [0.25, 0.0625]
    heights = [bar.get_y() for bar in ax.patches]
    assert heights == sorted(heights, reverse=True)  # the likeliest on top
    assert [t.get_text() for t in ax.texts] == ["25.0 %", "6.2 %"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["' a'", "' so'"]
    assert smallest_text(figure) >= 11


def test_rank_and_layers_are_taken_from_their_rows():
    rank, layers = "model.delta_kwargs.lora_r", "model.num_layers_unfrozen"

    def row(panel, reward, half, **own):
        return {"panel": panel, "reward_before": 0.4, "reward_after": reward, rank: None,
                layers: None, "paired_difference_low": 0.3 - half,
                "paired_difference_high": 0.3 + half, **own}  # fmt: skip

    rows = [
        row("default", 0.8, 0.01), row("rank", 0.9, 0.02, **{rank: 32.0}),
        row("rank", 0.7, 0.03, **{rank: 1.0}), row("layers", 0.4, 0.0, **{layers: 0.0}),
        row("learning rate", 0.1, 0.0),
    ]  # fmt: skip
    figure = rank_and_layers_plot(rows, rank=16, layers=4)
    by_rank, by_layers = figure.axes
    assert [t.get_text() for t in by_rank.get_xticklabels()] == ["1", "16", "32"]
    assert list(by_rank.lines[0].get_ydata()) == [0.7, 0.8, 0.9]
    assert [t.get_text() for t in by_layers.get_xticklabels()] == ["0", "4"]
    assert list(by_layers.lines[0].get_ydata()) == [0.4, 0.8]
    assert by_rank.get_title(loc="left") == "Rank matters:\n0.70 to 0.90"
    assert by_layers.get_title(loc="left") == "With LoRA: 0.80 to 0.80,\nwithout: 0.40"
    bars = by_rank.collections[0].get_segments()
    assert [(low[1], high[1]) for low, high in bars] == [
        pytest.approx(pair) for pair in ((0.67, 0.73), (0.79, 0.81), (0.88, 0.92))
    ]
    assert smallest_text(figure) >= 11
