"""What the notebooks call: tables, start, reward checks, cost tables."""


import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook

from rlhf_helpers.config.trl_config import ConfigError, load_profile
from rlhf_helpers.notebook import costs as notebook_costs
from rlhf_helpers.notebook.opening import start
from rlhf_helpers.rewards.check import accuracy, is_right, reliability_rows, surest_errors
from rlhf_helpers.runs import files as run_files
from rlhf_helpers.runs.files import MissingRunFileError, atomic_write_json
from rlhf_helpers.show.lesson_figures import clipping_plot
from rlhf_helpers.show.tables import Table, wrapped

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
    monkeypatch.setattr("rlhf_helpers.config.trl_config.repo_root", lambda: tmp_path)
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
    assert [title.split(":")[0] for title in titles] == ["Advantage +1", "Advantage -1"]
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes)
