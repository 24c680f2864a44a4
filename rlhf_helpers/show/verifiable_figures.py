"""Figures of notebook 07: a reward that can be checked. From files; imports no torch.

`evaluation` is a reference run's evaluation.json, `metrics` the lines of its metrics.jsonl.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from .plot_style import AFTER, BEFORE, BLUE, GREEN, GREY, ORANGE, RED, new_figure, projected

METHODS = {"rloo": ("RLOO", BLUE), "grpo": ("GRPO", GREEN), "ppo": ("PPO", RED)}


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
    """pass@k against k before training, and after for each of the named runs."""
    figure = new_figure(height=3.6)
    ax = figure.subplots()
    curves = [("before", evaluation["before"], BEFORE)]
    for run in runs:
        label, colour = METHODS[method_of(run) or "rloo"]
        curves.append((f"after {label}", evaluation["runs"][run], colour))
    for label, found, colour in curves:
        ks = [int(k) for k in found["pass_at_k"]]
        means, lows, highs = zip(*found["pass_at_k"].values(), strict=True)
        ax.plot(ks, means, "o-", color=colour, label=label, markersize=4)
        ax.fill_between(ks, lows, highs, color=colour, alpha=0.15, linewidth=0)
    ax.set_xscale("log", base=2)
    ax.set_xticks(ks, [str(k) for k in ks])
    ax.minorticks_off()
    ax.set(title="At least one of k answers is right", xlabel="k, answers to each problem",
           ylabel="pass@k", ylim=(None, 1.0))  # fmt: skip
    ax.legend(loc="lower right")
    return figure


@projected
def steps_plot(metrics: Sequence[Mapping[str, Any]], run: str) -> Figure:
    """How often a run's answers show running totals, and how right they are, with and without."""
    figure = new_figure(height=3.2)
    left, right = figure.subplots(1, 2)
    left.plot(*course_of(metrics, run, "metrics/steps"), color=BLUE)
    left.set(title="Running totals shown", ylabel="share of the answers")
    at, shown = course_of(metrics, run, "metrics/steps")
    strict = course_of(metrics, run, "metrics/strict")[1]
    both = course_of(metrics, run, "metrics/steps_and_right")[1]
    with_steps = [b / s if s else float("nan") for b, s in zip(both, shown, strict=True)]
    without = [(r - b) / (1 - s) if s < 1 else float("nan")
               for r, b, s in zip(strict, both, shown, strict=True)]  # fmt: skip
    right.plot(at, with_steps, color=GREEN, label="with")
    right.plot(at, without, color=ORANGE, label="without")
    right.set(title="Right, with and without")
    right.legend(loc="lower right")
    for ax in (left, right):
        ax.set(ylim=(0, 1), xlim=(0, None), xlabel="optimizer step")
    return figure


@projected
def fooled_plot(metrics: Sequence[Mapping[str, Any]], run: str) -> Figure:
    """What the sloppy verifier paid, what was right, and the length of the answers."""
    figure = new_figure(height=3.3)
    left, right = figure.subplots(1, 2)
    left.plot(*course_of(metrics, run, "metrics/sloppy"), color=ORANGE, label="sloppy: paid for")
    left.plot(*course_of(metrics, run, "metrics/strict"), color=AFTER, label="strict: right")
    left.set(title="Two verifiers", ylabel="share of the answers", ylim=(0, 1))
    left.legend(loc="lower right")
    right.plot(*course_of(metrics, run, "metrics/characters"), color=GREY)
    right.set(title="Length of an answer", ylabel="characters", ylim=(0, None))
    for ax in (left, right):
        ax.set(xlim=(0, None), xlabel="optimizer step")
    return figure
