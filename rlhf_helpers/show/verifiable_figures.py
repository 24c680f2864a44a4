"""Figures and a table of notebook 07: a reward that can be checked. From files; imports no torch.

`evaluation` is a reference run's evaluation.json, `metrics` the lines of its metrics.jsonl.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from .plot_style import BEFORE, BLUE, GREEN, GREY, PURPLE, RED, new_figure, projected
from .tables import Table

METHODS = {"rloo": ("RLOO", BLUE), "grpo": ("GRPO", GREEN), "ppo": ("PPO", RED)}
SLOPPY = "#8C6D31"  # no method's colour
LARGE_K = 8  # from here on the curves of pass@k lie close together


def method_of(run: str) -> str | None:
    """The method of a run with the strict verifier, such as rloo-1000; None for other runs."""
    method, _, seed = run.partition("-")
    return method if method in METHODS and seed.isdigit() else None


def course_of(metrics: Sequence[Mapping[str, Any]], run: str, name: str) -> tuple[list, list]:
    """Steps and values of one field of a run, where it was measured."""
    lines = [line for line in metrics if line["run"] == run and line.get(name) is not None]
    return [line["step"] for line in lines], [line[name] for line in lines]


@projected
def learning_plot(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Right answers to held-out problems against the step: a line a run, a colour a method."""
    figure = new_figure(height=3.4)
    ax = figure.subplots()
    named = set()
    for run in dict.fromkeys(line["run"] for line in metrics):
        method = method_of(run)
        if method is None:
            continue
        label, colour = METHODS[method]
        ax.plot(*course_of(metrics, run, "metrics/strict"), color=colour, linewidth=1.4,
                label=None if label in named else label)
        named.add(label)
    ax.set(title="Right answers to held-out problems", xlabel="optimizer step",
           ylabel="share right, one answer each", ylim=(0, 1), xlim=(0, None))
    ax.legend(loc="lower right")
    return figure


@projected
def pass_at_k_plot(evaluation: Mapping[str, Any], runs: Sequence[str]) -> Figure:
    """pass@k against k before training, and after for each of the named runs; large k once more."""
    figure = new_figure(height=3.6)
    whole, end = figure.subplots(1, 2)
    curves = [("before", evaluation["before"], BEFORE)]
    for run in runs:
        label, colour = METHODS[method_of(run) or "rloo"]
        curves.append((f"after {label}", evaluation["runs"][run], colour))
    for ax, smallest in ((whole, 1), (end, LARGE_K)):
        for label, found, colour in curves:
            points = {int(k): x for k, x in found["pass_at_k"].items() if int(k) >= smallest}
            means, lows, highs = zip(*points.values(), strict=True)
            ax.plot(list(points), means, "o-", color=colour, label=label, markersize=4)
            ax.fill_between(list(points), lows, highs, color=colour, alpha=0.15, linewidth=0)
        ax.set_xscale("log", base=2)
        ax.set_xticks(list(points), [str(k) for k in points])
        ax.minorticks_off()
        ax.set(xlabel="k, answers to each problem", ylim=(None, 1.0))
    whole.set(title="At least one of k is right", ylabel="pass@k")
    whole.legend(loc="lower right")
    end.set_title(f"The same from k = {LARGE_K} on")
    return figure


@projected
def steps_plot(evaluation: Mapping[str, Any]) -> Figure:
    """Of sums of three terms: how often running totals are shown; right with and without.

    A dot a run of equal budget paid by the strict verifier, in a column for each method.
    """
    columns = {"before": [evaluation["before"]]}
    for name, run in evaluation["runs"].items():
        if method_of(name):
            columns.setdefault(METHODS[method_of(name)][0], []).append(run)
    figure = new_figure(height=3.2)
    left, right = figure.subplots(1, 2, sharey=True)
    panels = (
        (left, "steps", 0, "s", "black", None),
        (right, "right_with_steps", -0.1, "o", PURPLE, "with"),
        (right, "right_without_steps", 0.1, "D", GREY, "without"),
    )
    for ax, field, aside, marker, colour, label in panels:
        dots = [(x + aside, run[field]) for x, runs in enumerate(columns.values()) for run in runs]
        ax.plot(*zip(*dots, strict=True), marker, color=colour, label=label, alpha=0.6)
    for ax in (left, right):
        ax.set_xticks(range(len(columns)), list(columns))
        ax.set(ylim=(0, 1), xlim=(-0.5, len(columns) - 0.5))
    left.set(title="Running totals shown", ylabel="share, sums of three terms")
    right.set_title("Right, with one and without")
    right.legend(loc="lower right", ncols=2)
    return figure


def right_steps_table(metrics: Sequence[Mapping[str, Any]], answers: int = 256) -> Table:
    """Of right answers that show a step: how many have every step right, such as 82 of 114.

    A line before training and one for the end of each kind of run, a column for each seed; runs
    paid by the sloppy verifier are left out. `answers` is how many an evaluation on the way has.
    """
    lines: dict[str, dict[str, str]] = {"before": {}}
    for run in dict.fromkeys(line["run"] for line in metrics):
        kind, _, seed = run.rpartition("-")
        held = course_of(metrics, run, "metrics/steps_hold")[1]
        of = course_of(metrics, run, "metrics/steps_and_right")[1]
        if "sloppy" in kind or not held:
            continue
        counts = [f"{round(answers * held[i])} of {round(answers * of[i])}" for i in (0, -1)]
        lines["before"].setdefault(f"seed {seed}", counts[0])
        lines.setdefault(kind, {})[f"seed {seed}"] = counts[1]
    seeds = list(lines["before"])
    return Table([{"right steps": kind, **{seed: line.get(seed, "") for seed in seeds}}
                  for kind, line in lines.items()])  # fmt: skip


@projected
def fooled_plot(metrics: Sequence[Mapping[str, Any]], sloppy: str, strict: str) -> Figure:
    """What the sloppy verifier accepts and the strict one does not, in two runs.

    `sloppy` and `strict` are runs that were paid by the one and by the other.
    """
    figure = new_figure(height=3.2)
    ax = figure.subplots()
    for run, colour, label in ((sloppy, SLOPPY, "paid by the sloppy verifier"),
                               (strict, BLUE, "paid by the strict one")):  # fmt: skip
        steps, accepted = course_of(metrics, run, "metrics/sloppy")
        right = course_of(metrics, run, "metrics/strict")[1]
        wrong = [100 * (a - b) for a, b in zip(accepted, right, strict=True)]
        ax.plot(steps, wrong, "o-", color=colour, label=label, markersize=4)
    ax.set(title="Accepted by the sloppy verifier, and wrong", xlabel="optimizer step",
           ylabel="of 100 answers", ylim=(0, None), xlim=(0, None))  # fmt: skip
    ax.legend(loc="upper left")
    return figure
