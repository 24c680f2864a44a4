"""The figures of notebook 07 draw what the files hold."""

import math

import pytest

from rlhf_helpers.show.verifiable_figures import (
    fooled_plot,
    learning_plot,
    method_of,
    pass_at_k_plot,
    steps_plot,
)


def line(run, step, strict=None, **more):
    return {"run": run, "step": step, "metrics/strict": strict,
            **{f"metrics/{k}": v for k, v in more.items()}}  # fmt: skip


METRICS = [
    line("rloo-1000", 0, 0.4, steps=0.2, steps_and_right=0.1, sloppy=0.5, characters=4.0),
    {"run": "rloo-1000", "step": 1, "rollout/length": 5.0},
    line("rloo-1000", 10, 0.8, steps=1.0, steps_and_right=0.8, sloppy=0.9, characters=6.0),
    line("rloo-1001", 0, 0.3),
    line("ppo-1000", 0, 0.35),
    line("rloo-sloppy-1000", 0, 0.4, sloppy=0.45, characters=3.0),
    line("rloo-sloppy-1000", 5, 0.7, sloppy=0.8, characters=5.0),
    line("rloo-sloppy-1000", 9, 0.5, sloppy=0.9, characters=9.0),
]
CURVE = {"1": [0.4, 0.35, 0.45], "2": [0.6, 0.55, 0.65]}
EVALUATION = {"before": {"pass_at_k": CURVE}, "runs": {"rloo-1000": {"pass_at_k": CURVE}}}


def drawn(ax):
    return [(list(x.get_xdata()), list(x.get_ydata())) for x in ax.get_lines()]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_methods_of_runs():
    assert method_of("rloo-1000") == "rloo" and method_of("ppo-7") == "ppo"
    assert method_of("rloo-sloppy-1000") is None and method_of("before") is None


def test_each_strict_run_is_a_line_and_each_method_has_one_name():
    (ax,) = learning_plot(METRICS).axes
    assert drawn(ax) == [([0, 10], [0.4, 0.8]), ([0], [0.3]), ([0], [0.35])]
    assert legend(ax) == ["RLOO", "PPO"]


def test_pass_at_k_before_and_after():
    (ax,) = pass_at_k_plot(EVALUATION, ["rloo-1000"]).axes
    assert drawn(ax) == [([1, 2], [0.4, 0.6])] * 2
    assert legend(ax) == ["before", "after RLOO"]


def test_steps_with_and_without():
    left, right = steps_plot(METRICS, "rloo-1000").axes
    assert drawn(left) == [([0, 10], [0.2, 1.0])]
    (_, shown), (_, without) = drawn(right)
    assert shown == pytest.approx([0.5, 0.8])
    assert without[0] == pytest.approx(0.3 / 0.8) and math.isnan(without[1])


def test_two_verifiers_and_the_length():
    left, right = fooled_plot(METRICS, "rloo-sloppy-1000").axes
    assert drawn(left) == [([0, 5, 9], [0.45, 0.8, 0.9]), ([0, 5, 9], [0.4, 0.7, 0.5])]
    assert drawn(right) == [([0, 5, 9], [3.0, 5.0, 9.0])]
