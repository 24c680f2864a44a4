"""Figures that explain PPO by itself, drawn from a handful of numbers. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from .plot_style import AFTER, GREY, RED, new_figure, styled


@styled
def clipping_plot(
    ratios: Sequence[float], objectives: Mapping[int, Sequence[float]], cliprange: float
) -> Figure:
    """PPO's objective of one token against the ratio pi / pi_old.

    `objectives` maps the advantage (+1 and -1) to the objective at each ratio.
    """
    figure = new_figure(height=2.9)
    axes = figure.subplots(1, 2, sharey=False)
    words = {1: "Advantage +1: make it likelier", -1: "Advantage -1: make it less likely"}
    for ax, (advantage, values) in zip(axes, sorted(objectives.items(), reverse=True), strict=True):
        ax.axvspan(1 - cliprange, 1 + cliprange, color=GREY, alpha=0.15)
        ax.plot(ratios, [advantage * r for r in ratios], color=GREY, linestyle="--",
                label="ratio x advantage")
        ax.plot(ratios, values, color=AFTER if advantage > 0 else RED, label="clipped objective")
        ax.plot(1, advantage, "ko", markersize=5, label="start: ratio 1")
        ax.set(title=words[advantage], xlabel="ratio: new / old probability",
               ylabel="objective (higher is better)")
        ax.legend(loc="best")
    return figure
