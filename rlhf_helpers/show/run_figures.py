"""Figures of whole run directories: one run at a glance, and several seeds side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_helpers.evaluation.before_after import POST_GROUP
from rlhf_helpers.runs.contents import (
    read_eval_samples,
    read_evaluation,
    read_metrics,
    read_samples,
)
from rlhf_helpers.runs.files import RunDir

from .figures import draw_histogram, finish_axes, series
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
    """A run at a glance, both halves of the prompts that the run was evaluated on (the post's).

    Left the mean reward of their samples on the way, a thin line a prompt where the run kept its
    texts; right the rewards of the first and the last of these samples.
    """
    run = run_dir if isinstance(run_dir, RunDir) else RunDir(run_dir, create=False)
    steps, means = series(read_metrics(run.require("metrics")), "reward/mean")
    before, after, courses = _evaluated(run)  # courses: prompt -> (steps, means)
    prompts = {row["prompt"] for row in before}
    figure = new_figure(height=3.6)
    way, rewards = figure.subplots(1, 2)
    for i, course in enumerate(courses.values()):
        label = "one prompt" if i == 0 else None
        way.plot(*course, ".-", color=GREY, linewidth=0.8, label=label)
    if courses:
        prompt = min(courses, key=lambda p: courses[p][1][-1])
        end = courses[prompt][0][-1], courses[prompt][1][-1]
        below = -40 if end[1] > 0.3 else 12  # points; a low line has no room below
        way.annotate(f"“{prompt}”", end, xytext=(0, below), textcoords="offset points",
                     ha="right", fontsize=8.5)  # fmt: skip
    way.plot(steps, means, "o-", color=BLUE, markersize=5, label="mean")
    high = sum(own[-1] > 0.9 for _, own in courses.values())
    title = f"{high} of {len(prompts)} prompts end above 0.9" if courses else "Mean on the way"
    way.set(title=title, xlabel="optimizer step", ylabel="mean reward: P(positive)",
            ylim=(0, 1.04), yticks=np.linspace(0, 1, 6))  # fmt: skip
    finish_axes(way, True, legend="upper left")
    draw_histogram(rewards, before, after)
    rewards.set_title(rewards.get_title(loc="left").replace("Mean reward", "Each text: mean"))
    figure.suptitle(
        f"The blog post's {len(prompts)} prompts, {len(before) // len(prompts)} texts each, "
        "in both halves",
        fontsize=10,
    )
    return figure


def _evaluated(run: RunDir) -> tuple[list[dict], list[dict], dict[str, tuple[list, list]]]:
    """Samples of the evaluation prompts before and after; steps and means of each prompt."""
    if not run.eval_samples.exists():  # a run that kept only its first and its last texts
        sides = [read_samples(run.require(f"{name}_samples")) for name in ("baseline", "after")]
        before, after = ([row for row in side if row["group"] == POST_GROUP] for side in sides)
        return before, after, {}
    rows = [{"group": POST_GROUP, **row} for row in read_eval_samples(run.eval_samples)]
    by_step = {step: [r for r in rows if r["step"] == step] for step in {r["step"] for r in rows}}
    steps = sorted(by_step)
    courses = {}
    for prompt in sorted({row["prompt"] for row in rows}):
        own = [[r["reward"] for r in by_step[s] if r["prompt"] == prompt] for s in steps]
        courses[prompt] = steps, [float(np.mean(rewards)) for rewards in own]
    return by_step[steps[0]], by_step[steps[-1]], courses


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
