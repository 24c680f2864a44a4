"""Files of a run directory -> matplotlib figures. Knows no model and imports no torch.

Each function takes what was read from a file (metrics.jsonl, *_samples.jsonl,
evaluation.json) and returns a figure that a notebook shows by itself, drawn to be read
700 pixels wide. Titles state what is seen, axes carry units, and the colours (Okabe and
Ito's) stay apart for colour-blind eyes; line styles and markers repeat the difference.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rlhf_helpers.evaluation.before_after import (
    HEADLINE_GROUP,
    Interval,
    pair_samples,
    paired_bootstrap,
)
from rlhf_helpers.progress import in_live_notebook

from .plot_style import (
    AFTER,
    BEFORE,
    GREY,
    PARTS,
    RED,
    new_figure,
    projected,
    save_figure,
    styled,
)
from .samples_table import SamplesTable, samples_table_html

__all__ = [
    "LiveCurves",
    "SamplesTable",
    "memory_bar",
    "paired_change_plot",
    "reward_curve",
    "reward_histogram",
    "samples_table_html",
    "save_figure",
    "series",
    "training_curves",
]


REWARD_BINS = 20
SEEN = 0.01  # the share of a bar from which on a part of it can be seen
PLENTY = 3  # from so many times the needed memory on, the rest is not drawn

Metrics = Sequence[Mapping]
Samples = Sequence[Mapping]


def series(metrics: Metrics, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of the lines that hold the metric `name`."""
    rows = [(row["step"], row[name]) for row in metrics if row.get(name) is not None]
    return [step for step, _ in rows], [value for _, value in rows]


# --- the course of a run --------------------------------------------------------------------


@projected
def training_curves(metrics: Metrics) -> Figure:
    """Reward, KL, both losses, clip fraction and approximate KL against the step."""
    figure = new_figure(height=7.6)
    axes = figure.subplots(3, 2, sharex=True)
    draw_reward(axes[0, 0], metrics)
    draw_kl(axes[0, 1], metrics)
    _draw_noisy(axes[1, 0], metrics, "losses/policy_loss", "Policy loss (clipped)", "loss")
    _draw_noisy(axes[1, 1], metrics, "losses/value_loss", "Value loss", "loss (reward²)")
    _draw_noisy(axes[2, 0], metrics, "policy/clipfrac", "Tokens clipped", "share of tokens")
    axes[2, 0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    _draw_noisy(axes[2, 1], metrics, "policy/approx_kl", "Change by the updates", "KL (nats/token)")
    for ax in axes[2]:
        ax.set_xlabel("optimizer step")
    return figure


@projected
def reward_curve(metrics: Metrics) -> Figure:
    """Mean reward of rollouts and of the evaluation prompts against the step."""
    figure = new_figure(height=3.2)
    ax = figure.subplots()
    draw_reward(ax, metrics)
    ax.set_xlabel("optimizer step")
    return figure


def draw_reward(ax: Axes, metrics: Metrics) -> None:
    steps, rollouts = series(metrics, "exp_scores/mean")
    eval_steps, evaluated = series(metrics, "reward/mean")
    ax.plot(steps, rollouts, _marker(rollouts), color=GREY, linewidth=1.2, markersize=4,
            label="rollouts (training prompts)")
    ax.plot(eval_steps, evaluated, "o-", color=AFTER, markersize=4, label="evaluation prompts")
    told = evaluated or rollouts
    title = "Mean reward"
    if len(told) > 1:
        whose = "Evaluation prompts" if evaluated else "Rollouts"
        title = f"{whose}: {told[0]:.2f} to {told[-1]:.2f}"
    ax.set(title=title, ylabel="mean reward", ylim=(0, 1))
    finish_axes(ax, bool(told), legend="lower right")


def draw_kl(ax: Axes, metrics: Metrics) -> None:
    """Per-sequence KL where it was logged, else the square of trlX's policy/sqrt_kl."""
    steps, kl = series(metrics, "objective/kl")
    unit = "nats per sample"
    if not kl:
        steps, roots = series(metrics, "policy/sqrt_kl")
        kl, unit = [root**2 for root in roots], "nats, trlX's mean"
    ax.plot(steps, kl, _marker(kl), color=RED, markersize=4)
    title = "KL" + (f": {kl[-1]:.2g} nats at the end" if kl else " to the reference")
    ax.set(title=title, ylabel=f"KL ({unit})")
    finish_axes(ax, bool(kl), legend=None)


def _draw_noisy(ax: Axes, metrics: Metrics, name: str, title: str, label: str) -> None:
    """Every value of a metric in grey and its running mean over it.

    The mean is over one iteration: the epochs over the same rollouts repeat a pattern, and a window
    of another length would leave its teeth in the curve.
    """
    steps, values = series(metrics, name)
    window = _steps_an_iteration(metrics)
    if not 1 < window <= len(values):
        window = max(1, len(values) // 30)
    ax.plot(steps, values, _marker(values), color=GREY, alpha=0.45, linewidth=0.8, markersize=4,
            label="each step")
    smooth = np.convolve(values, np.ones(window) / window, "valid") if values else []
    ax.plot(steps[window - 1 :], smooth, color=AFTER, label=f"mean of {window} steps")
    ax.set(title=title, ylabel=label)
    finish_axes(ax, bool(values), legend="best" if window > 1 else None)


def _steps_an_iteration(metrics: Metrics) -> int:
    """Optimizer steps between the first two times that rollouts were made; 0 where there is one."""
    made, _ = series(metrics, "exp_scores/mean")
    return made[1] - made[0] if len(made) > 1 else 0


def _marker(values: Sequence[float]) -> str:
    """A line format with dots where there are so few values that a line may not show."""
    return "o-" if len(values) < 10 else "-"


def finish_axes(ax: Axes, has_data: bool, legend: str | None = "best") -> None:
    """Whole steps on the axis, a legend, or a word where there is nothing to draw yet."""
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if not has_data:
        ax.text(0.5, 0.5, "no values yet", transform=ax.transAxes, ha="center", color=GREY)
    elif legend:
        ax.legend(loc=legend)


class LiveCurves:
    """A callback for `train(callback=...)` that redraws the curves while a notebook watches.

    Draws at most every `every_seconds`, and so seldom that drawing takes under a
    twentieth of the time. Where nobody watches (papermill, a script) it only gathers.
    """

    def __init__(
        self,
        every_seconds: float = 3.0,
        draw: Callable[[Metrics], Figure] | None = None,
        live: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`draw`: metrics -> figure (training_curves); `live`: None asks where it runs."""
        self.metrics: list[Mapping] = []
        self.live = in_live_notebook() if live is None else live
        self._every_seconds, self._clock = every_seconds, clock
        self._draw = draw or training_curves
        self._handle = None
        self._next = clock() + every_seconds

    def __call__(self, metrics: Mapping) -> None:
        """One line of metrics.jsonl; redraws when it is time."""
        self.metrics.append(dict(metrics))
        if self.live and self._clock() >= self._next:
            self.redraw()

    def redraw(self) -> None:
        """Show the curves now, in the place where they stood; once more after the run."""
        if not self.live or not self.metrics:
            return
        from IPython.display import display

        started = self._clock()
        figure = self._draw(self.metrics)
        if self._handle is None:
            self._handle = display(figure, display_id=True)
        else:
            self._handle.update(figure)
        now = self._clock()
        self._next = now + max(self._every_seconds, 20 * (now - started))


# --- before and after -----------------------------------------------------------------------


@projected
def reward_histogram(before: Samples, after: Samples | None = None) -> Figure:
    """How the reward of the held-out samples is distributed, before and (where given) after."""
    figure = new_figure(height=3.2)
    draw_histogram(figure.subplots(), before, after)
    return figure


def draw_histogram(ax: Axes, before: Samples, after: Samples | None) -> None:
    sides = [("before", _rewards(before), GREY if after is None else BEFORE, "--")]
    if after is not None:
        sides.append(("after", _rewards(after), AFTER, "-"))
    highest = 0.0
    for name, rewards, colour, line in sides:
        bins = {"bins": REWARD_BINS, "range": (0, 1), "color": colour}
        counts, _, _ = ax.hist(rewards, alpha=0.35, **bins)
        ax.hist(rewards, histtype="step", linestyle=line, linewidth=1.4, **bins)
        mean = float(np.mean(rewards))
        label = "mean" if after is None else f"{name}: mean {mean:.2f}"
        ax.axvline(mean, ymax=0.77, color=colour, linestyle=line, label=label)
        highest = max(highest, counts.max())
    means = " to ".join(f"{np.mean(rewards):.2f}" for _, rewards, _, _ in sides)
    title = f"Mean reward from {means}"
    if after is None:
        every = "every reward occurs, " if counts.min() > 0 else ""
        title = f"Before training: {every}mean {means}"
    ax.set(title=title, xlabel="reward of a text", xlim=(0, 1),
           ylabel=f"texts (of {len(sides[0][1])})", ylim=(0, 1.3 * highest))
    ax.legend(loc="upper left")


def _rewards(samples: Samples) -> list[float]:
    """Rewards of the held-out samples, or of all where that group is missing."""
    return [sample["reward"] for sample in _headline(samples)]


def _headline(samples: Samples) -> list[Mapping]:
    held_out = [sample for sample in samples if sample["group"] == HEADLINE_GROUP]
    return held_out or list(samples)


@projected
def paired_change_plot(
    before: Samples, after: Samples, interval: Mapping | Interval | None = None
) -> Figure:
    """Each prompt's reward before and after, and all changes in order of size.

    `interval` (evaluation.json's `paired_difference`) is computed where it is not given.
    """
    pairs = pair_samples(_headline(before), _headline(after))
    old = np.array([pair[0]["reward"] for pair in pairs])
    new = np.array([pair[1]["reward"] for pair in pairs])
    if interval is None:
        interval = paired_bootstrap(new - old)
    mean, low, high = interval.values() if isinstance(interval, Mapping) else interval
    figure = new_figure(height=4)
    scatter, ordered = figure.subplots(1, 2, width_ratios=(1, 1.1))
    rose = new > old
    scatter.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    scatter.scatter(old[rose], new[rose], s=14, color=AFTER, alpha=0.6, label="higher after")
    scatter.scatter(old[~rose], new[~rose], s=16, color=RED, marker="x", linewidth=1,
                    label="not higher")
    scatter.set(title=f"Higher after for {rose.sum()} of {len(pairs)}", xlim=(-0.03, 1.03),
                ylim=(-0.03, 1.03), aspect="equal",
                xlabel="reward before", ylabel="reward after")
    scatter.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=2, columnspacing=1,
                   handletextpad=0.1)  # below, where it covers no prompt
    changes = np.sort(new - old)
    colours = [AFTER if change > 0 else RED for change in changes]
    ordered.bar(np.arange(len(changes)), changes, width=1, color=colours, linewidth=0)
    ordered.axhline(mean, color="black", linewidth=1.2, label="mean")
    ordered.axhspan(low, high, color="black", alpha=0.15, label="its 95 % interval")
    ordered.legend(loc="lower right")
    ordered.set(title=f"Mean {mean:+.2f} ({low:+.2f} to {high:+.2f})",
                xlabel="texts, in order of their change", ylabel="reward after − before",
                ylim=(-1, 1))
    return figure


# --- before a run ---------------------------------------------------------------------------


@styled
def memory_bar(parts: Mapping[str, float], limit: float) -> Figure:
    """Predicted memory by part, in bytes, against what the machine has.

    Parts that are too small to be seen are one part. Where the machine has far more than is needed,
    the title alone says how much: the axis ends behind the parts.
    """
    figure = new_figure(height=2.3)
    ax = figure.subplots()
    start, total = 0.0, sum(parts.values())
    plenty = limit > PLENTY * total
    shown = _large_parts(parts)
    for i, (name, size) in enumerate(shown.items()):
        ax.barh(0, size / 1e9, left=start / 1e9, height=0.5, color=PARTS[i % len(PARTS)],
                edgecolor="white", linewidth=0.3, label=f"{name} {_gigabytes(size)}")
        start += size
    if not plenty:
        ax.axvline(limit / 1e9, color=RED, linewidth=2, linestyle="--")
        ax.annotate(f"available: {_gigabytes(limit)}", (limit / 1e9, 0.42), color=RED, ha="right",
                    xytext=(-4, 0), textcoords="offset points", fontsize=8.5)
    fits = "fits" if total <= limit else "does not fit"
    available = f", {_gigabytes(limit)} available" if plenty else ""
    ax.set(title=f"{_gigabytes(total)} needed{available}: it {fits}", xlabel="memory (GB)",
           yticks=[], ylim=(-0.3, 0.6 if not plenty else 0.3),
           xlim=(0, 1.05 * (total if plenty else max(total, limit)) / 1e9))
    ax.grid(False, axis="y")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _large_parts(parts: Mapping[str, float]) -> dict[str, float]:
    """The parts that can be seen in a bar, and where several cannot, their sum as the last one."""
    seen = {name: size for name, size in parts.items() if size >= SEEN * sum(parts.values())}
    rest = {name: size for name, size in parts.items() if name not in seen and size > 0}
    return seen | (rest if len(rest) < 2 else {"all other parts": sum(rest.values())})


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
