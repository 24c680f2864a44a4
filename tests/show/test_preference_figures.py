"""The figures of the lesson on preferences draw what the files say."""

import pytest

from rlhf_helpers.config.reading import UnreadableFileError
from rlhf_helpers.show.preference_figures import (
    accuracy_plot,
    parting_plot,
    price_plot,
    read_best_of_n,
    read_courses,
)

HEADER = "name,kind,pairs,seed,step,n,kl,proxy,gold_name,gold,sentiment,judge\n"
LINES = """\
"PPO, 64",ppo-learned,64,1,40,8,3.5,1.25,sentiment,0.5,0.5,0.4
"PPO, 64",ppo-learned,64,1,0,8,-0.001,0.1,sentiment,0.45,0.45,0.5
"PPO, 64",ppo-learned,64,2,40,8,4.5,1.5,sentiment,0.6,0.6,0.4
"PPO, 4,096",ppo-learned,4096,1,40,8,3,2,sentiment,0.7,0.7,0.7
DPO,dpo,4096,1,120,8,8,,sentiment,0.75,0.75,0.7
"""


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "overoptimisation.csv"
    path.write_text(HEADER + LINES)
    return read_courses(path)


def test_a_file_of_courses_is_read_and_another_refused(rows, tmp_path):
    assert rows[0]["kl"] == 3.5 and rows[4]["proxy"] is None and rows[1]["step"] == 0
    (tmp_path / "other.csv").write_text(HEADER + LINES.replace("3.5", "far"))
    with pytest.raises(UnreadableFileError):
        read_courses(tmp_path / "other.csv")


def test_each_seed_is_a_line_in_order_of_steps_in_both_panels(rows):
    proxy, gold = parting_plot(rows, {"PPO, 64": "few", "PPO, 4,096": "many"}, "name").axes
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in proxy.get_lines()]
    assert lines == [([0, 3.5], [0.1, 1.25]), ([4.5], [1.5]), ([3], [2])]
    assert [list(line.get_ydata()) for line in gold.get_lines()] == [[0.45, 0.5], [0.6], [0.7]]
    labels = [line.get_label() for line in proxy.get_lines()]
    assert labels[0] == "few" and labels[2] == "many" and labels[1].startswith("_")
    colours = [line.get_color() for line in gold.get_lines()]
    assert colours[0] == colours[1] != colours[2]
    assert gold.get_ylabel() == "gold: P(positive)"


def test_the_second_gold_is_named_with_its_unit(rows):
    for row in rows:
        row["gold_name"] = "sentiment and fluency"
    _, gold = parting_plot(rows, {"PPO, 64": "few"}, "name").axes
    assert gold.get_ylabel() == "gold: standard deviations"


def test_best_of_n_is_read_and_its_lines_go_from_kl_to_kl(tmp_path):
    path = tmp_path / "best_of_n.csv"
    path.write_text(
        "pairs,seed,n,kl,proxy,gold_name,gold,pool\n"
        "64,1,2,0.19,0.4,sentiment,0.5,90\n64,1,1,0,0,sentiment,0.45,90\n"
    )
    proxy, gold = parting_plot(read_best_of_n(path), {64: "few"}).axes
    (line,) = proxy.get_lines()
    assert list(line.get_xdata()) == [0, 0.19] and list(line.get_ydata()) == [0, 0.4]
    assert list(gold.get_lines()[0].get_ydata()) == [0.45, 0.5]


def test_a_band_shows_the_interval_of_gold_and_the_legend_whose_line_is_whose(tmp_path):
    path = tmp_path / "best_of_n.csv"
    path.write_text(
        "pairs,seed,n,kl,proxy,gold_name,gold,gold_low,gold_high\n"
        "64,7,1,0,0,sentiment,0.45,0.4,0.5\n64,7,2,0.19,0.4,sentiment,0.5,0.41,0.7\n"
        "64,8,1,0,0,sentiment,0.45,0.4,0.5\n"
    )
    figure = parting_plot(read_best_of_n(path), {64: "few"})
    proxy, gold = figure.axes
    assert not proxy.collections
    corners = {tuple(round(x, 3) for x in corner)
               for corner in gold.collections[0].get_paths()[0].vertices}  # fmt: skip
    assert corners == {(0, 0.4), (0, 0.5), (0.19, 0.41), (0.19, 0.7)}
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["few", "seed 7", "seed 8"]
    shown = [line.get_linestyle() for line in legend.get_lines()[1:]]
    assert shown == [line.get_linestyle() for line in gold.get_lines()] and shown[0] != shown[1]


def test_the_price_is_a_mark_for_each_seed_in_the_colour_of_its_pairs(rows):
    names = {"PPO, 64": "few", "PPO, 4,096": "many", "DPO": "no PPO", "untuned": "before"}
    untuned = {"name": "untuned", "kl": 0.0, "gold": 0.4}
    (ax,) = price_plot([rows[0], *rows[2:], untuned], names).axes
    marks = [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.get_lines()]
    assert marks == [([3.5, 4.5], [0.5, 0.6]), ([3], [0.7]), ([8], [0.75]), ([0], [0.4])]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(names.values())
    few, many, dpo, before = (line.get_color() for line in ax.get_lines())
    assert many == dpo and len({few, many, before}) == 3  # DPO learned from as many pairs
    (line,) = parting_plot(rows[:2], {"PPO, 64": "few"}, "name").axes[1].get_lines()
    assert line.get_color() == few
    assert len({line.get_marker() for line in ax.get_lines()}) == 4


def test_accuracy_has_a_mark_for_each_model_and_a_line_through_their_means():
    models = [{"pairs": n, "heldout": {"accuracy": a}}
              for n, a in ((64, 0.5), (64, 0.6), (1024, 0.7))]  # fmt: skip
    (ax,) = accuracy_plot(models, ceiling=0.82).axes
    marks, means, ceiling, coin = (list(line.get_ydata()) for line in ax.get_lines())
    assert marks == [0.5, 0.6, 0.7] and means == pytest.approx([0.55, 0.7])
    assert ceiling == [0.82, 0.82] and coin == [0.5, 0.5]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["64", "1,024"]
