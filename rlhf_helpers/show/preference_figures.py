"""Figures of the lesson on preferences, from the committed files. No torch.

`rows` are the lines of overoptimisation.csv, `models` those of reward_model.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rlhf_helpers.config.reading import NUMBER, TEXT

from .plot_style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SEED_STYLES,
    new_figure,
    projected,
)
from .study_figures import read_table

COURSE = {
    **dict.fromkeys(("name", "kind", "gold_name"), TEXT),
    **dict.fromkeys(("pairs", "seed", "n", "kl", "gold", "sentiment", "judge"), NUMBER),
    "step?": NUMBER, "proxy?": NUMBER,
}  # fmt: skip

PAIR_COLOURS = {16: RED, 64: PURPLE, 256: ORANGE, 1024: BLUE, 4096: GREEN}


def read_courses(path: str | Path) -> list[dict[str, Any]]:
    """The lines of overoptimisation.csv; UnreadableFileError where it is no such file."""
    return read_table(path, COURSE)


def read_best_of_n(path: str | Path) -> list[dict[str, Any]]:
    """The lines of best_of_n.csv; UnreadableFileError where it is no such file."""
    fields = ("pairs", "seed", "n", "kl", "proxy", "gold", "gold_low?", "gold_high?")
    return read_table(path, {**dict.fromkeys(fields, NUMBER), "gold_name": TEXT})


@projected
def accuracy_plot(models: Sequence[Mapping[str, Any]], ceiling: float) -> Figure:
    """Accuracy on held-out pairs against the number of pairs: a mark each model, a line of means.

    `models` have `pairs` and `heldout`; `ceiling` is what one who knows gold is right on.
    """
    figure = new_figure(height=3.4)
    ax = figure.subplots()
    pairs = np.array([model["pairs"] for model in models])
    found = np.array([model["heldout"]["accuracy"] for model in models])
    sizes = np.unique(pairs)
    ax.plot(pairs, found, "o", color=BLUE, markersize=5, alpha=0.55, label="one reward model")
    ax.plot(sizes, [found[pairs == n].mean() for n in sizes], "-", color=BLUE, label="their mean")
    ax.axhline(ceiling, color="black", linestyle="--", label="ceiling: who knows gold")
    ax.axhline(0.5, color=GREY, linestyle=":", label="a coin")
    ax.set_xscale("log", base=2)
    ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
    ax.minorticks_off()
    ax.set(title="How often the reward model agrees with new answers", xlabel="pairs learned from",
           ylabel="accuracy", ylim=(0.48, max(0.9, ceiling + 0.02)))  # fmt: skip
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


@projected
def parting_plot(
    rows: Sequence[Mapping[str, Any]], labels: Mapping[Any, str], by: str = "pairs"
) -> Figure:
    """Proxy and gold against KL: a line for each seed of each group of rows.

    `labels` maps a value of the field `by` to what the legend calls its group. A line goes from
    step to step where rows have one (PPO), else from KL to KL (best of n). Where rows have
    gold_low and gold_high, a band shows them. The colour says from how many pairs a group's reward
    models learned.
    """
    figure = new_figure(height=3.8)
    proxy, gold = figure.subplots(1, 2)
    for value, label in labels.items():
        own = [row for row in rows if row[by] == value]
        colour = PAIR_COLOURS.get(own[0]["pairs"], "black")
        for i, seed in enumerate(sorted({row["seed"] for row in own})):
            course = sorted((r for r in own if r["seed"] == seed), key=_place)
            kl = [max(row["kl"], 0.0) for row in course]
            looks = {"color": colour, "marker": ".", "linestyle": SEED_STYLES[i % 4]}
            for ax, field in ((proxy, "proxy"), (gold, "gold")):
                ax.plot(kl, [row[field] for row in course], **looks, label=None if i else label)
            if all(row.get("gold_low") is not None for row in course):
                bounds = ([row[f"gold_{end}"] for row in course] for end in ("low", "high"))
                gold.fill_between(kl, *bounds, color=colour, alpha=0.13, linewidth=0)
    unit = "P(positive)" if rows[0]["gold_name"] == "sentiment" else "standard deviations"
    proxy.set(title="What the reward model says", ylabel="proxy (standard deviations)")
    gold.set(title="What was wanted", ylabel=f"gold: {unit}")
    for ax in (proxy, gold):
        ax.set_xlabel("KL to the reference (nats)")
        ax.set_xlim(left=0)
    seeds = sorted({row["seed"] for row in rows if row[by] in labels})
    handles = [*proxy.get_legend_handles_labels()[0], *map(_seed_handle, range(len(seeds)), seeds)]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, columnspacing=1.2)
    return figure


def _seed_handle(i: int, seed: float) -> Line2D:
    return Line2D([], [], color=GREY, linestyle=SEED_STYLES[i % 4], label=f"seed {seed:.0f}")


def _place(row: Mapping[str, Any]) -> float:
    step = row.get("step")
    return row["kl"] if step is None else step


@projected
def price_plot(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> Figure:
    """Gold against KL at the end: a mark for each of the named rows, which have kl and gold.

    `names` maps a row's name in the file to what the legend calls it. Each name has its marker; the
    colour says from how many pairs a row learned (black: from none).
    """
    figure = new_figure(height=3.6)
    ax = figure.subplots()
    for (name, label), marker in zip(names.items(), "osvD^", strict=False):
        own = [row for row in rows if row["name"] == name]
        kl, gold = ([row[field] for row in own] for field in ("kl", "gold"))
        colour = PAIR_COLOURS.get(own[0].get("pairs"), "black")
        ax.plot(kl, gold, marker, color=colour, markersize=7, label=label, clip_on=False)
    ax.set(title="How far each policy went, and gold of its texts",
           xlabel="KL to the reference (nats per text)",
           ylabel="gold of held-out texts: P(positive)")  # fmt: skip
    ax.set_xlim(left=0)
    ax.margins(y=0.15)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
