"""The figures of the PPO lesson draw what they are given."""

import numpy as np
import pytest

from rlhf_helpers.show.ppo_figures import practice_plot, rounds_plot


def test_every_practice_run_is_a_line_and_their_mean_stands_over_them():
    runs = {"no baseline": [[0.6, 0.5, 0.9], [0.6, 0.7, 0.5]], "baseline": [[0.6, 0.8, 0.9]]}
    figure = practice_plot(runs, best=0.9)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["No baseline", "Baseline"]
    first, second = (
        [list(line.get_ydata()) for line in ax.get_lines()] for ax in figure.axes
    )
    assert first[:2] == runs["no baseline"]
    assert first[2] == pytest.approx([0.6, 0.6, 0.7])
    assert first[3] == [0.9, 0.9]
    assert second[:1] == runs["baseline"]
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["mean of 2 runs"]


def test_rounds_are_counted_from_one_and_kl_begins_at_zero():
    course = [{"reward": 0.4, "KL": 0.0}, {"reward": 0.5, "KL": 1.5}, {"reward": 0.7, "KL": 4.0}]
    reward, kl = rounds_plot(course).axes
    assert list(reward.get_lines()[0].get_xdata()) == [1, 2, 3]
    assert list(reward.get_lines()[0].get_ydata()) == [0.4, 0.5, 0.7]
    assert list(kl.get_lines()[0].get_ydata()) == [0.0, 1.5, 4.0]
    assert reward.get_ylim() == (0, 1) and kl.get_ylim()[0] <= 0
    assert all(np.equal(np.mod(ax.get_xticks(), 1), 0).all() for ax in (reward, kl))
    assert "nats" in kl.get_ylabel()
