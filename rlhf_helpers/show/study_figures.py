"""A study's table -> figures: what reward costs, who confirms it, what each choice does.

Reads table.csv files (study.py writes them) and knows nothing of how rows came about. A group is
all rows of one name: one configuration, one row a seed. Where a group has several seeds, each is
a small mark and the group's mean a large one, with a bar from the lowest to the highest seed; where
it has one, the bar is the 95 % interval over prompts.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from rlhf_helpers.config.reading import NUMBER, TEXT, Record, check_fields, read_text, unreadable
from rlhf_helpers.evaluation.verdict import GAMED_JUDGE_GAIN
from rlhf_helpers.runs.contents import read_metrics

from .figures import series
from .plot_style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    new_figure,
    styled,
)

LOOKS = {
    "ppo": (BLUE, "o", "PPO"),
    "ppo-corrected": ("#56B4E9", "s", "PPO corrected"),
    "rloo": (GREEN, "^", "RLOO"),
    "grpo": (PURPLE, "D", "GRPO"),
    "best-of-n": (GREY, ".", "best of n"),
    "sft": (ORANGE, "P", "SFT on positive reviews"),
    "positive-prompt": (RED, "X", "positive prompt"),
    "dpo": ("#000000", "v", "DPO"),
    "ppo-learned": (BLUE, "h", "PPO against a reward model"),
}
SEEDS_NOTE = "(3): seeds, small marks; bars: their range, or for one seed the 95 % interval"
TEXT_COLUMNS = ("name", "kind", "panel", "verdict", "prefix")
# What the pictures and the tables of docs/study.md need of a row.
STUDY_ROW = {
    **dict.fromkeys(("name", "kind", "panel", "verdict"), TEXT),
    **{f"{name}_{when}": NUMBER for when in ("before", "after")
       for name in ("reward", "judge", "distinct_2", "self_bleu", "perplexity", "length_tokens")},
    **{f"{name}_{bound}": NUMBER for bound in ("mean", "low", "high")
       for name in ("paired_difference", "judge_difference")},
    "cpu_seconds": NUMBER, "kl_per_sequence?": NUMBER, "kl_analytic?": NUMBER,
    "trained_parameters?": NUMBER,
}  # fmt: skip


def read_table(path: str | Path, fields: Mapping[str, Any] | None = None) -> list[dict]:
    """The rows of a table.csv, numbers as numbers, empty cells as None.

    Raises UnreadableFileError where it is no table, or its `fields` are not what they should be.
    """
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        table = [Record({k: _value(k, v) for k, v in row.items() if k}) for row in rows]
    except csv.Error as error:
        raise unreadable(path, f"it is no table ({error})") from None
    for row in table:
        row.path = path
    return [check_fields(row, fields or {}, path) for row in table]


def read_study_table(path: str | Path) -> list[dict]:
    """The finished rows of a study."""
    return read_table(path, STUDY_ROW)


def read_course(path: str | Path) -> list[dict]:
    """judge_course.csv of a run."""
    return read_table(path, {"step": NUMBER, "reward": NUMBER, "judge": NUMBER})


def _value(name: str, text: str | None) -> float | str | None:
    if text in ("", None):
        return None
    if name in TEXT_COLUMNS:
        return text
    try:
        return float(text)
    except ValueError:
        return text


@dataclass
class Group:
    """All rows of one configuration."""

    name: str
    kind: str
    rows: list[dict]

    def mean(self, column: str) -> float:
        """Mean over seeds."""
        return float(np.mean([row[column] for row in self.rows]))

    def bounds(self, column: str, difference: str) -> tuple[float, float]:
        """Lowest and highest seed; for one seed, the interval over prompts."""
        values = [row[column] for row in self.rows]
        if len(values) > 1:
            return min(values), max(values)
        row = self.rows[0]
        mean = row[f"{difference}_mean"]
        return (
            values[0] + row[f"{difference}_low"] - mean,
            values[0] + row[f"{difference}_high"] - mean,
        )

    @property
    def label(self) -> str:
        """The name, and how many seeds stand behind it."""
        n = len(self.rows)
        return self.name if n > 1 else f"{self.name} (one seed)"


def groups_of(rows: Sequence[Mapping]) -> list[Group]:
    """Rows gathered by name, in order of first appearance."""
    groups: dict[str, Group] = {}
    for row in rows:
        group = groups.setdefault(row["name"], Group(row["name"], row["kind"], []))
        group.rows.append(dict(row))
    return list(groups.values())


def kl_of(row: Mapping) -> float:
    """KL to the reference in nats per sample: k1 as measured, or best-of-n's formula."""
    return row["kl_analytic"] if row.get("kl_analytic") is not None else row["kl_per_sequence"]


# --- the frontier --------------------------------------------------------------------------


@styled
def frontier_figure(rows: Sequence[Mapping]) -> Figure:
    """Reward after against KL: how far each method has to go from the reference for its reward."""
    figure = new_figure(height=5.2)
    ax = figure.subplots()
    rows = [{**row, "kl": kl_of(row)} for row in rows]
    groups = groups_of(rows)
    before = np.mean([row["reward_before"] for row in rows])
    ax.plot(0, before, "*", color="black", markersize=11, clip_on=False, zorder=4)
    ax.annotate("before", (0, before), xytext=(8, -4), textcoords="offset points")
    best = sorted((g for g in groups if g.kind == "best-of-n"), key=lambda g: g.mean("kl"))
    points: list = []
    lines: list = []
    if best:
        xs, ys = (
            [0.0, *(g.mean("kl") for g in best)],
            [before, *(g.mean("reward_after") for g in best)],
        )
        ax.plot(xs, ys, ".-", color=GREY, linewidth=1.3, markersize=7)
        lines.append((xs, ys))
        points += [(xs[i], ys[i], best[i - 1].name, GREY) for i in (1, len(best))]
    for group in groups:
        if group.kind == "best-of-n":
            continue
        colour, marker, _ = LOOKS[group.kind]
        x, y, interval = _draw_group(ax, group, "kl", "reward_after", "paired_difference")
        if len(group.rows) > 1:
            seeds = [r["kl"] for r in group.rows], [r["reward_after"] for r in group.rows]
            ax.plot(*seeds, marker, color=colour, markersize=3.5, alpha=0.6)
            lines += [([x, x], [y, y]) for x, y in zip(*seeds, strict=True)]  # names keep clear
        points.append((x, y, _seeds_label(group), colour))
        lines.append(([x, x], interval))
    ax.set_title("What reward costs: held-out reward against KL\n")
    _note_seeds(ax)
    # Reward grows about with the square root of KL (Gao et al. 2023), which spreads the small ones.
    ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    ax.set(xlabel="KL to the reference (nats per sample, square-root scale)",
           ylabel="mean reward of held-out samples", xticks=[0, 1, 2, 5, 10, 20, 40, 60],
           xlim=(0, 1.25 * max(row["kl"] for row in rows)))  # fmt: skip
    ax.margins(y=0.08)
    label_points(ax, points, lines)
    return figure


def _draw_group(
    ax: Axes, group: Group, x_name: str, y_name: str, interval_name: str
) -> tuple[float, float, list[float]]:
    """The mark of a configuration with its bar; where it lies, and the bar's ends."""
    colour, marker, _ = LOOKS[group.kind]
    x, y = group.mean(x_name), group.mean(y_name)
    low, high = group.bounds(y_name, interval_name)
    ax.errorbar(x, y, yerr=_around(y, low, high), fmt=marker, color=colour, markersize=7,
                capsize=2, linewidth=1)  # fmt: skip
    return x, y, [low, high]


def _note_seeds(ax: Axes) -> None:
    note = ax.text(0, 1.015, SEEDS_NOTE, transform=ax.transAxes, fontsize=8, color=GREY)
    note.set_in_layout(False)


def _around(y: float, low: float, high: float) -> list[list[float]]:
    """The bar from low to high, as matplotlib wants it; rounding makes no length negative."""
    return [[max(0.0, y - low)], [max(0.0, high - y)]]


def _seeds_label(group: Group) -> str:
    n = len(group.rows)
    return group.name + (f" ({n})" if n > 1 else "")


# Where a label may stand round its point: to the right or left (1, -1), above or below.
PLACES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
DISTANCES = (7, 16, 28, 42)  # from the point, in points


def label_points(
    ax: Axes,
    points: Sequence[tuple[float, float, str, str]],
    lines: Sequence[tuple[Sequence[float], Sequence[float]]] = (),
) -> None:
    """Write each point's name beside it, where it covers no other name, point, line or frame.

    `points`: x, y, name and colour; `lines`: xs and ys of what else to keep clear of. Tries eight
    places round the point at four distances and takes the one that covers least.
    """
    ax.figure.draw_without_rendering()  # settles where the axes lie
    marks = _in_pixels(ax, [p[:2] for p in points], lines)
    taken = [text.get_window_extent() for text in ax.texts]
    for x, y, text, colour in sorted(points, key=lambda p: -p[1]):
        width, height = _text_size(ax, text)
        here = ax.transData.transform((x, y))
        choices = [
            (_cost(box, ax.bbox, marks, taken) + distance, box, place, distance)
            for distance in DISTANCES
            for place in PLACES
            for box in [_box_at(here, place, distance * ax.figure.dpi / 72, width, height)]
        ]
        _, box, (across, up), distance = min(choices, key=lambda choice: choice[0])
        taken.append(box)
        note = ax.annotate(
            text, (x, y), xytext=(across * distance, up * distance), textcoords="offset points",
            color=colour, fontsize=8, ha={1: "left", -1: "right", 0: "center"}[across],
            va={1: "bottom", -1: "top", 0: "center"}[up],
            arrowprops=dict(arrowstyle="-", color=colour, linewidth=0.5, shrinkB=4)
            if distance > 10 else None, zorder=5,
        )  # fmt: skip
        note.set_in_layout(False)  # or the axes would shrink to make room for it


def _in_pixels(ax: Axes, points: Sequence[tuple[float, float]], lines: Sequence) -> np.ndarray:
    """Points, and lines as sixty points each, on the canvas: [n, 2]."""
    along = []
    for xs, ys in lines:
        steps, places = np.linspace(0, len(xs) - 1, 60), np.arange(len(xs))
        along.append(np.column_stack([np.interp(steps, places, xs), np.interp(steps, places, ys)]))
    return ax.transData.transform(np.concatenate([np.array(points), *along]))


def _text_size(ax: Axes, text: str) -> tuple[float, float]:
    probe = ax.text(0, 0, text, fontsize=8)
    box = probe.get_window_extent()
    probe.remove()
    return box.width, box.height


def _box_at(here, place: tuple[int, int], distance: float, width: float, height: float) -> Bbox:
    """The box of a label whose near edge (or middle, where place is 0) lies `distance` away."""
    shift = {1: 0.0, 0: -0.5, -1: -1.0}
    left = here[0] + place[0] * distance + shift[place[0]] * width
    bottom = here[1] + place[1] * distance + shift[place[1]] * height
    return Bbox.from_bounds(left, bottom, width, height).padded(1)


def _cost(box: Bbox, frame: Bbox, marks: np.ndarray, taken: Sequence[Bbox]) -> float:
    """How much a label there would cover: other labels' pixels, marks, the frame."""
    wide = box.padded(3)
    inside = (marks > (wide.x0, wide.y0)).all(axis=1) & (marks < (wide.x1, wide.y1)).all(axis=1)
    fits = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    overlaps = sum(_overlap(box, other) for other in taken)
    return overlaps + 200 * inside.sum() + (0 if fits else 5000)


def _overlap(a: Bbox, b: Bbox) -> float:
    """Area that two boxes share, in pixels."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(0.0, width) * max(0.0, height)


# --- proxy and judge -----------------------------------------------------------------------


@styled
def judge_figure(rows: Sequence[Mapping]) -> Figure:
    """The judge's gain against the reward's: where they part, the reward is being gamed."""
    figure = new_figure(height=4.8)
    ax = figure.subplots()
    groups = groups_of(rows)
    gains = [row["paired_difference_mean"] for row in rows]
    top = max(*gains, 0.1) * 1.15
    ax.plot([0, top], [0, top], "--", color=GREY, linewidth=1)
    ax.annotate("the judge sees all of it", (top * 0.6, top * 0.6), xytext=(-6, 0),
                textcoords="offset points", color=GREY, fontsize=8, ha="right")  # fmt: skip
    ax.fill_between([0, top], 0, [0, GAMED_JUDGE_GAIN * top], color=RED, alpha=0.12, linewidth=0)
    ax.annotate("gamed: the judge sees less than a quarter", (top * 0.98, 0.02 * top), color=RED,
                fontsize=8, ha="right")  # fmt: skip
    points: list = []
    lines: list = [([0, top], [0, top])]
    best = [g for g in groups if g.kind == "best-of-n"]
    if best:
        xs = [0.0, *(g.mean("paired_difference_mean") for g in best)]
        ys = [0.0, *(g.mean("judge_difference_mean") for g in best)]
        ax.plot(xs, ys, ".-", color=GREY, linewidth=1.3)
        lines.append((xs, ys))
        points.append((xs[-1], ys[-1], best[-1].name, GREY))
    for group in groups:
        if group.kind == "best-of-n":
            continue
        colour = LOOKS[group.kind][0]
        x, y, interval = _draw_group(
            ax, group, "paired_difference_mean", "judge_difference_mean", "judge_difference"
        )
        name = _seeds_label(group)
        gamed = sum(row["verdict"] == "gamed" for row in group.rows)
        if gamed:
            name += ": gamed" if gamed == len(group.rows) else f": {gamed} gamed"
            if y >= GAMED_JUDGE_GAIN * x:  # the judge went along; the untuned model did not
                times = group.mean("perplexity_after") / group.mean("perplexity_before")
                name += f", perplexity × {times:.1f}"
        points.append((x, y, name, colour))
        lines.append(([x, x], interval))
    _note_seeds(ax)
    ax.set(
        xlabel="gain of the reward that was trained on",
        ylabel="gain of the independent judge",
        title="Does the judge confirm it?\n",
        ylim=(min(0.0, *(p[1] for p in points)) - 0.03, None),
    )
    label_points(ax, points, lines)
    return figure


# --- ablations -----------------------------------------------------------------------------


@styled
def ablation_figure(panels: Mapping[str, Sequence[Mapping]]) -> Figure:
    """For each choice (a panel's name -> its rows): reward and judge, KL, time of a run."""
    figure = new_figure(height=5.6)
    axes = figure.subplots(3, len(panels), sharey="row", sharex="col", squeeze=False)
    for column, (title, rows) in zip(axes.T, panels.items(), strict=True):
        groups = groups_of(rows)
        places = np.arange(len(groups))
        for field, difference, marker, colour in (
            ("reward_after", "paired_difference", "o", BLUE),
            ("judge_after", "judge_difference", "s", GREEN),
        ):
            means = np.array([g.mean(field) for g in groups])
            bounds = np.array([g.bounds(field, difference) for g in groups]).T
            column[0].errorbar(places, means, yerr=np.abs(bounds - means), fmt=f"{marker}-",
                               color=colour, capsize=2, markersize=4, linewidth=1,
                               label=field.split("_")[0])  # fmt: skip
        column[1].plot(places, [g.mean("kl_per_sequence") for g in groups], "o-", color=RED,
                       markersize=4, linewidth=1)  # fmt: skip
        column[2].bar(places, [g.mean("cpu_seconds") for g in groups], color=GREY, width=0.6)
        seeds = {len(g.rows) for g in groups}
        said = "one seed" if seeds == {1} else f"{min(seeds)} to {max(seeds)} seeds"
        column[0].set_title(f"{title}\n({said})")
        column[2].set_xticks(places, [_short(g.name) for g in groups], rotation=90, fontsize=8)
    axes[0, 0].set(ylabel="P(positive)", ylim=(0, 1))
    axes[1, 0].set(ylabel="KL (nats/sample)")
    axes[2, 0].set(ylabel="CPU seconds")
    axes[0, 0].legend(loc="lower right")
    return figure


def _short(name: str) -> str:
    """A row's name where its panel's title says the rest."""
    for word in ("rank ", "rate ", "PPO, β ", " layers", " layer", " alone"):
        name = name.replace(word, "")
    return {"all 6": "all", "value head": "none"}.get(name, name)


# --- seeds of one configuration ---------------------------------------------------------------


@styled
def course_figure(run_dirs: Sequence[str | Path]) -> Figure:
    """Reward, KL and judge against the step: every run thin, the mean thick, the spread shaded.

    The band is one standard deviation of the runs to each side.
    """
    figure = new_figure(height=3.4)
    axes = figure.subplots(1, 3)
    runs = [Path(path) for path in run_dirs]
    metrics = [read_metrics(path / "metrics.jsonl") for path in runs]
    rollouts = [series(m, "exp_scores/mean") for m in metrics]
    kls = [series(m, "objective/kl") for m in metrics]
    _draw_spread(axes[0], rollouts, BLUE, "")
    _draw_spread(axes[1], kls, RED, "")
    courses = [read_course(path / "judge_course.csv") for path in runs]
    for field, colour in (("reward", BLUE), ("judge", GREEN)):
        lines = [([r["step"] for r in c], [r[field] for r in c]) for c in courses]
        _draw_spread(axes[2], lines, colour, field)
    axes[0].set(title="Reward of rollouts", ylabel="P(positive)", ylim=(0, 1))
    axes[1].set(title="KL to the reference", ylabel="nats per sample")
    axes[2].set(title="The post's prompts", ylabel="P(positive)", ylim=(0, 1))
    axes[2].legend(loc="lower right")
    for ax in axes:
        ax.set_xlabel("optimizer step")
    figure.suptitle(f"{len(runs)} seeds of the default run: mean, spread, and each run",
                    fontsize=10)  # fmt: skip
    return figure


def _draw_spread(ax: Axes, lines: Sequence[tuple[list, list]], colour: str, label: str) -> None:
    """Lines that share their steps: each, their mean, and a standard deviation round it."""
    steps = sorted(set.intersection(*(set(xs) for xs, _ in lines)))
    values = np.array([[dict(zip(xs, ys, strict=True))[s] for s in steps] for xs, ys in lines])
    mean = values.mean(axis=0)
    spread = values.std(axis=0, ddof=1) if len(lines) > 1 else np.zeros_like(mean)
    for row in values:
        ax.plot(steps, row, color=colour, linewidth=0.5, alpha=0.6)
    ax.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
    ax.plot(steps, mean, color=colour, linewidth=2, label=label or None)
