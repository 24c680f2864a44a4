"""Figures that explain, drawn from a handful of numbers. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .plot_style import AFTER, BLUE, GREY, RED, new_figure, projected
from .study_figures import LOOKS, groups_of, kl_of


@projected
def clipping_plot(
    ratios: Sequence[float], objectives: Mapping[int, Sequence[float]], cliprange: float
) -> Figure:
    """PPO's objective of one token against the ratio pi / pi_old.

    `objectives` maps the advantage (+1 and -1) to the objective at each ratio.
    """
    figure = new_figure(height=3.3)
    axes = figure.subplots(1, 2, sharey=False)
    words = {1: "Advantage +1: likelier", -1: "Advantage −1: less likely"}
    for ax, (advantage, values) in zip(axes, sorted(objectives.items(), reverse=True), strict=True):
        ax.axvspan(1 - cliprange, 1 + cliprange, color=GREY, alpha=0.15)
        ax.plot(ratios, [advantage * r for r in ratios], color=GREY, linestyle="--",
                label="ratio × advantage")
        ax.plot(ratios, values, color=AFTER if advantage > 0 else RED, label="clipped objective")
        ax.plot(1, advantage, "ko", markersize=5, label="start: ratio 1")
        ax.set(title=words[advantage], xlabel="ratio: new / old probability",
               ylabel="objective (higher is better)")
        ax.legend(loc="best")
    return figure


@projected
def next_token_plot(text: str, words: Sequence[str], probabilities: Sequence[float]) -> Figure:
    """The likeliest next tokens after `text`, the likeliest on top, each with its probability."""
    figure = new_figure(height=0.36 * len(words) + 0.9)
    ax = figure.subplots()
    places = range(len(words), 0, -1)
    bars = ax.barh(places, probabilities, color=BLUE, height=0.7)
    ax.bar_label(bars, [f"{100 * p:.1f} %" for p in probabilities], padding=4)
    ax.set_yticks(places, [repr(word) for word in words])
    ax.set(title=f"After “{text}”: the {len(words)} likeliest tokens", xlabel="probability",
           xlim=(0, 1.15 * max(probabilities)))  # fmt: skip
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    return figure


@projected
def rank_and_layers_plot(rows: Sequence[Mapping], rank: int, layers: int) -> Figure:
    """Reward after training against LoRA's rank, and against the number of layers with LoRA.

    `rows`: of figures/study/ablations/table.csv; `rank` and `layers` are the study's default, which
    its row named "default" in column `panel` leaves out. Bars: 95 % interval over prompts.
    """
    figure = new_figure(height=3.7)
    axes = figure.subplots(1, 2, sharey=True)
    choices = (
        ("rank", "model.delta_kwargs.lora_r", rank, f"rank r, with {layers} layers"),
        ("layers", "model.num_layers_unfrozen", layers, f"layers with LoRA, at rank {rank}"),
    )
    for ax, (panel, field, default, label) in zip(axes, choices, strict=True):
        own = [row for row in rows if row["panel"] in (panel, "default")]
        points = sorted(
            (int(default if row[field] is None else row[field]), row["reward_after"],
             (row["paired_difference_high"] - row["paired_difference_low"]) / 2)
            for row in own
        )  # fmt: skip
        values, rewards, halves = zip(*points, strict=True)
        ax.errorbar(range(len(values)), rewards, yerr=halves, fmt="o-", color=BLUE, capsize=3)
        ax.axhline(rows[0]["reward_before"], color=GREY, linestyle="--")
        ax.set_xticks(range(len(values)), [str(value) for value in values])
        ax.set(title=_range_in_words([point[:2] for point in points]), xlabel=label,
               ylim=(0, 1.05), xlim=(-0.4, len(values) - 0.6))
    axes[0].set_ylabel("reward after training")
    axes[0].annotate("reward before training", (0, rows[0]["reward_before"]), xytext=(0, -5),
                     color="#5a5a5a", textcoords="offset points", va="top")  # fmt: skip
    axes[0].annotate("bars: 95 % interval\nover the prompts", (0, 0.05), color="#5a5a5a")
    return figure


def _range_in_words(points: Sequence[tuple[int, float]]) -> str:
    """A title: from which reward to which the choices lead, and the reward without LoRA.

    `points`: the choice (a rank, a number of layers; 0 is without LoRA) and its reward.
    """
    rewards = [reward for choice, reward in points if choice > 0]
    without = [reward for choice, reward in points if choice == 0]
    low, high = min(rewards), max(rewards)
    if without:
        return f"With LoRA: {low:.2f} to {high:.2f},\nwithout: {without[0]:.2f}"
    return f"Rank {'hardly ' * (high - low < 0.1)}matters:\n{low:.2f} to {high:.2f}"


# What notebook 05 shows of the frontier, and on which side each name stands; the rest is in
# docs/study.md.
FEW = {
    "PPO, β 0.1": (1, -1), "PPO, β 0.01": (1, -1), "PPO, β 0": (-1, 1), "RLOO, β 0.01": (-1, 1),
    "best of 64": (-1, 1),
}  # fmt: skip


@projected
def few_points_figure(rows: Sequence[Mapping]) -> Figure:
    """Five configurations of the frontier, each at the mean of its seeds, PPO's joined."""
    figure = new_figure(height=4.2)
    ax = figure.subplots()
    rows = [{**row, "kl": kl_of(row)} for row in rows if row["name"] in FEW]
    places = {g.name: (g.mean("kl"), g.mean("reward_after"), g.kind) for g in groups_of(rows)}
    before = float(np.mean([row["reward_before"] for row in rows]))
    line = [(0.0, before), *(places[name][:2] for name in FEW if name.startswith("PPO"))]
    ax.plot(*zip(*line, strict=True), color=BLUE, linewidth=1)
    ax.plot(0, before, "*", color="black", markersize=12, clip_on=False, zorder=4)
    ax.annotate("untuned", (0, before), xytext=(10, -4), textcoords="offset points")
    for name, (x, y, kind) in places.items():
        colour, marker, _ = LOOKS[kind]
        marker = "o" if marker == "." else marker
        ax.plot(x, y, marker, color=colour, markersize=9)
        side, up = FEW[name]
        ax.annotate(name, (x, y), xytext=(7 * side, 7 * up), textcoords="offset points",
                    ha={1: "left", -1: "right"}[side], va={1: "bottom", -1: "top"}[up])  # fmt: skip
    ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    ax.set(title="What reward costs: left is cheaper", xticks=[0, 1, 2, 5, 10, 20, 40],
           xlabel="KL to the untuned model (nats a text, square-root scale)",
           ylabel="held-out reward", ylim=(0.4, 1.05),
           xlim=(0, 1.25 * max(row["kl"] for row in rows)))  # fmt: skip
    return figure
