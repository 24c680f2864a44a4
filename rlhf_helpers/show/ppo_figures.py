"""Figures of the PPO lesson: many small runs side by side, and the rounds of one. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .plot_style import AFTER, GREY, ORANGE, RED, new_figure, projected


@projected
def practice_plot(courses: Mapping[str, Sequence[Sequence[float]]], best: float) -> Figure:
    """Expected reward against the step: a panel for each name, a thin line for each of its runs.

    `courses` maps a name to its runs, all of one length; `best` is the largest possible reward.
    """
    figure = new_figure(height=3.2)
    panels = figure.subplots(1, len(courses), sharey=True, squeeze=False)[0]
    for ax, (name, runs), colour in zip(panels, courses.items(), (ORANGE, AFTER), strict=False):
        values = np.array(runs)
        ax.plot(values.T, color=colour, linewidth=0.7, alpha=0.45)
        ax.plot(values.mean(axis=0), color="black", linewidth=2, label=f"mean of {len(runs)} runs")
        ax.axhline(best, color=GREY, linestyle="--")
        ax.set(title=name.capitalize(), xlabel="draws", xlim=(0, values.shape[1]))
        ax.legend(loc="lower right")
    panels[0].set_ylabel("expected reward J")
    return figure


@projected
def rounds_plot(course: Sequence[Mapping[str, float]]) -> Figure:
    """Mean reward and KL to the reference of each round's texts, `reward` and `KL` in `course`."""
    figure = new_figure(height=3.0)
    left, right = figure.subplots(1, 2)
    rounds = range(1, len(course) + 1)
    for ax, name, colour in ((left, "reward", AFTER), (right, "KL", RED)):
        ax.plot(rounds, [row[name] for row in course], "o-", color=colour, markersize=4)
        ax.set(xlabel="round", xlim=(0.5, len(course) + 0.5))
        ax.xaxis.get_major_locator().set_params(integer=True)
    left.set(title="Mean reward of the texts", ylabel="P(positive)", ylim=(0, 1))
    right.set(title="Distance to the reference", ylabel="KL (nats per text)")
    right.set_ylim(bottom=min(0.0, right.get_ylim()[0]))
    return figure
