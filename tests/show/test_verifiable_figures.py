"""The figures of notebook 07 draw what the files hold."""

import pytest

from rlhf_helpers.show.verifiable_figures import (
    fooled_plot,
    learning_plot,
    method_of,
    pass_at_k_plot,
    right_steps_table,
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
    line("rloo-long-1000", 0, 0.4, sloppy=0.4),
    line("rloo-long-1000", 5, 0.7, sloppy=0.71),
]
CURVE = {"1": [0.4, 0.35, 0.45], "8": [0.6, 0.55, 0.65], "16": [0.7, 0.65, 0.75]}
TUNED = {"1": [0.5, 0.45, 0.55], "8": [0.6, 0.5, 0.65], "16": [0.6, 0.55, 0.65]}


def row(curve, steps, right_with, right_without):
    return {"pass_at_k": curve, "steps": steps, "right_with_steps": right_with,
            "right_without_steps": right_without}  # fmt: skip


EVALUATION = {
    "before": row(CURVE, 0.3, 0.7, 0.2),
    "runs": {
        "rloo-1000": row(TUNED, 0.9, 0.75, 0.4), "rloo-sloppy-1000": row(TUNED, 1.0, 0.1, 0.1),
        "ppo-1000": row(TUNED, 0.8, 0.6, 0.5), "rloo-1001": row(TUNED, 0.95, 0.8, 0.45),
        "rloo-long-1000": row(TUNED, 0.99, 0.2, 0.2),
    },
}  # fmt: skip


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


def test_pass_at_k_before_and_after_and_large_k_once_more():
    whole, end = pass_at_k_plot(EVALUATION, ["rloo-1000"]).axes
    assert drawn(whole) == [([1, 8, 16], [0.4, 0.6, 0.7]), ([1, 8, 16], [0.5, 0.6, 0.6])]
    assert drawn(end) == [([8, 16], [0.6, 0.7]), ([8, 16], [0.6, 0.6])]
    assert legend(whole) == ["before", "after RLOO"]
    low, high = end.get_ylim()
    assert 0.4 < low < 0.5 and high == 1  # the lowest interval begins at 0.5


def test_running_totals_of_each_run_of_equal_budget():
    left, right = steps_plot(EVALUATION).axes
    assert drawn(left) == [([0, 1, 1, 2], [0.3, 0.9, 0.95, 0.8])]
    assert [t.get_text() for t in left.get_xticklabels()] == ["before", "RLOO", "PPO"]
    (at, with_totals), (_, without) = drawn(right)
    assert at == pytest.approx([-0.1, 0.9, 0.9, 1.9])
    assert (with_totals, without) == ([0.7, 0.75, 0.8, 0.6], [0.2, 0.4, 0.45, 0.5])
    assert legend(right) == ["with", "without"]


def test_accepted_and_wrong_in_answers_of_a_hundred():
    (ax,) = fooled_plot(METRICS, "rloo-sloppy-1000", "rloo-long-1000").axes
    (steps, sloppy), (_, strict) = drawn(ax)
    assert steps == [0, 5, 9] and sloppy == pytest.approx([5, 10, 40])
    assert strict == pytest.approx([0, 1])
    assert legend(ax) == ["paid by the sloppy verifier", "paid by the strict one"]


def test_right_running_totals_are_counted_by_kind_and_seed():
    shares = {"a-1": (0.5, 0.25, 0.75, 0.5), "a-2": (0.75, 0.75, 1.0, 0.5),
              "b-1": (0.25, 0.25, 0.5, 0.0), "a-sloppy-1": (1.0, 1.0, 1.0, 1.0)}  # fmt: skip
    metrics = [{"run": "a-1", "step": 0, "rollout/length": 4.0}]
    for run, (of, held, of_after, held_after) in shares.items():
        metrics += [line(run, 0, steps_and_right=of, steps_hold=held),
                    line(run, 5, steps_and_right=0.1, steps_hold=0.1),
                    line(run, 9, steps_and_right=of_after, steps_hold=held_after)]  # fmt: skip
    table = right_steps_table(metrics, answers=8)
    assert table.titles == ["right steps", "seed 1", "seed 2"]
    assert table.cells == [["before", "2 of 4", "6 of 6"], ["a", "4 of 6", "4 of 8"],
                           ["b", "0 of 4", ""]]  # fmt: skip
