"""Figures of whole run directories: one run at a glance, and several seeds side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_helpers.runs.contents import read_evaluation, read_metrics, read_samples
from rlhf_helpers.runs.files import RunDir

from .figures import draw_histogram, draw_kl, draw_reward, finish_axes, series
from .plot_style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SEED_STYLES,
    new_figure,
    styled,
)

SEED_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)


@styled
def headline_figure(run_dir: str | Path | RunDir) -> Figure:
    """A run at a glance: reward and KL on the way, rewards before and after."""
    run = run_dir if isinstance(run_dir, RunDir) else RunDir(run_dir, create=False)
    metrics = read_metrics(run.require("metrics"))
    before = read_samples(run.require("baseline_samples"))
    after = read_samples(run.require("after_samples"))
    change = read_evaluation(run.require("evaluation"))["paired_difference"]
    figure = new_figure(height=3.9)
    panels = figure.subplot_mosaic([["reward", "rewards"], ["kl", "rewards"]])
    draw_reward(panels["reward"], metrics)
    panels["reward"].sharex(panels["kl"])
    panels["reward"].tick_params(labelbottom=False)
    draw_kl(panels["kl"], metrics)
    panels["kl"].set_xlabel("optimizer step")
    ax = panels["rewards"]
    draw_histogram(ax, before, after)
    interval = f"{change['mean']:+.2f} ({change['low']:+.2f} to {change['high']:+.2f})"
    ax.set_title(f"{ax.get_title(loc='left')}\nchange {interval}")
    ax.set_xlabel("reward of held-out samples: P(positive)")
    return figure


@styled
def seeds_figure(run_dirs: Sequence[str | Path]) -> Figure:
    """Several seeds of one configuration: reward and KL of each, rewards and judge at the end."""
    runs = [RunDir(path, create=False) for path in run_dirs]
    evaluations = [read_evaluation(run.require("evaluation")) for run in runs]
    figure = new_figure(height=5.2)
    panels = figure.subplot_mosaic([["reward", "kl"], ["end", "end"]])
    for i, (run, evaluation) in enumerate(zip(runs, evaluations, strict=True)):
        metrics = read_metrics(run.require("metrics"))
        look = {
            "color": SEED_COLOURS[i % len(SEED_COLOURS)],
            "linestyle": SEED_STYLES[i % len(SEED_STYLES)],
            "label": f"seed {evaluation['seed']}",
            "linewidth": 1.4,
        }
        panels["reward"].plot(*series(metrics, "exp_scores/mean"), **look)
        panels["kl"].plot(*series(metrics, "objective/kl"), **look)
    finals = [evaluation["reward_after"] for evaluation in evaluations]
    panels["reward"].set(
        title="Mean reward of rollouts", ylabel="P(positive)", ylim=(0, 1), xlabel="optimizer step"
    )
    panels["kl"].set(
        title="KL to the reference", ylabel="KL (nats per sample)", xlabel="optimizer step"
    )
    for name in ("reward", "kl"):
        finish_axes(panels[name], True)
    _draw_ends(panels["end"], evaluations)
    panels["end"].set_title(
        f"Held-out reward after {len(runs)} seeds: {min(finals):.2f} to {max(finals):.2f}, "
        f"mean {np.mean(finals):.2f}"
    )
    return figure


def _draw_ends(ax: Axes, evaluations: Sequence[Mapping]) -> None:
    """One row for each run: reward and judge, before to after, with the change's interval."""
    rows = np.arange(len(evaluations))
    for field, difference, marker, shift, colour in (
        ("reward", "paired_difference", "o", -0.12, BLUE),
        ("judge", "judge_difference", "s", 0.12, GREEN),
    ):
        own = [e for e in evaluations if e.get(difference)]
        if len(own) < len(evaluations):
            continue
        before = np.array([e[f"{field}_before"] for e in own])
        after = np.array([e[f"{field}_after"] for e in own])
        changes = [[e[difference][bound] for e in own] for bound in ("mean", "low", "high")]
        mean, low, high = np.array(changes)
        ax.hlines(rows + shift, before, after, color=colour, linewidth=1)
        ax.plot(
            before, rows + shift, marker, color=colour, fillstyle="none", label=f"{field} before"
        )
        ax.errorbar(
            after,
            rows + shift,
            xerr=[mean - low, high - mean],
            fmt=marker,
            color=colour,
            capsize=3,
            label=f"{field} after",
        )
    ax.set(
        xlim=(0, 1),
        xlabel="mean P(positive); bars: 95 % interval of the paired change",
        ylim=(len(rows) - 0.5, -0.5),
    )
    ax.set_yticks(rows, [f"seed {e['seed']}" for e in evaluations])
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=4)


@styled
def semantics_figure(
    trlx: Sequence[str | Path], corrected: Sequence[str | Path]
) -> Figure:
    """Both semantics, a line a seed: reward and KL coefficient on the way, then the ends.

    KL on the way is not drawn: under `trlx` it is measured on re-tokenised text. At the end both
    are measured alike, on held-out samples.
    """
    figure = new_figure(height=5.4)
    panels = figure.subplot_mosaic([["reward", "beta"], ["end", "varied"]])
    kinds = (("trlx", ORANGE, "o", trlx), ("corrected", BLUE, "s", corrected))
    for row, (name, colour, marker, paths) in enumerate(kinds):
        runs = [RunDir(path, create=False) for path in paths]
        for i, run in enumerate(runs):
            metrics = read_metrics(run.require("metrics"))
            look = {"color": colour, "linewidth": 1.3, "label": name if i == 0 else None}
            panels["reward"].plot(*series(metrics, "exp_scores/mean"), **look)
            panels["beta"].plot(*series(metrics, "kl_ctl_value"), **look)
        ends = [read_evaluation(run.require("evaluation")) for run in runs]
        _draw_reward_against_kl(panels["end"], ends, name, colour, marker)
        for when, fill in (("before", "none"), ("after", "full")):
            values = [e[f"distinct_2_{when}"] for e in ends]
            panels["varied"].plot(values, [row] * len(values), marker, color=colour,
                                  fillstyle=fill, label=f"{name} {when}")  # fmt: skip
    panels["reward"].set(title="Mean reward of rollouts", ylabel="P(positive)", ylim=(0, 1),
                         xlabel="optimizer step")
    panels["beta"].set(title="KL coefficient β", xlabel="optimizer step")
    furthest = panels["end"].get_xlim()[1]
    panels["end"].set(title="Held-out reward against its price", xlim=(0, 1.1 * furthest),
                      ylim=(0.8, 1), xlabel="KL (nats per sample)", ylabel="P(positive)")
    panels["varied"].set(title="Variety: distinct-2, a mark a seed", xlim=(0, 1), ylim=(1.5, -0.5),
                         xlabel="distinct word pairs / all (hollow: before)")
    panels["varied"].set_yticks([0, 1], ["trlx", "corrected"])
    for name in ("reward", "beta", "end"):
        finish_axes(panels[name], True)
    return figure


def _draw_reward_against_kl(
    ax: Axes, evaluations: Sequence[Mapping], name: str, colour: str, marker: str
) -> None:
    """A point a run, with the 95 % interval of its reward's paired change."""
    kl = [e["kl_per_sequence"] for e in evaluations]
    reward = [e["reward_after"] for e in evaluations]
    change = np.array([[e["paired_difference"][k] for k in ("mean", "low", "high")]
                       for e in evaluations]).T  # fmt: skip
    spread = [change[0] - change[1], change[2] - change[0]]
    ax.errorbar(kl, reward, yerr=spread, fmt=marker, color=colour, capsize=3, linewidth=1,
                label=name)  # fmt: skip
