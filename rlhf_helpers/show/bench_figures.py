"""Figures of what `bench` wrote: time by phase, and how cost grows. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from .bench_table import peak_bytes
from .plot_style import BLUE, GREEN, GREY, ORANGE, PURPLE, new_figure, styled

PHASES = {"generate": BLUE, "score": ORANGE, "reward": PURPLE, "update": GREEN}
LABELS = {
    "generate": "sampling", "score": "log-probabilities and values",
    "reward": "reward model", "update": "updates",
}  # fmt: skip
SHORTCUTS = {"naive": "every shortcut off", "fast": "every shortcut on"}
ENGINES = {
    "trlx": "trlX 0.6.0", "ours": "here, trlx", "ours-corrected": "here, corrected",
}  # fmt: skip
AXES = {
    "unfrozen": "top layers with LoRA", "batch": "rollouts of an optimizer step",
    "tokens": "new tokens of a response", "rollouts": "rollouts of an iteration",
    "layers": "layers of the model, the top {top} with LoRA",
}  # fmt: skip


@styled
def phase_plot(result: Mapping[str, Any]) -> Figure:
    """Seconds of an iteration by phase: the floor, the fast engine, the naive one."""
    figure = new_figure(2.5)
    axes = figure.subplots()
    floor = result["fast"]["floor_seconds_by_phase"]
    bars = [(t, _seconds(result[name])) for name, t in SHORTCUTS.items() if name in result]
    bars.append(("at the machine's rates", {phase: floor.get(phase, 0.0) for phase in PHASES}))
    for row, (_, seconds) in enumerate(reversed(bars)):
        left = 0.0
        for phase, colour in PHASES.items():
            axes.barh(row, seconds[phase], left=left, color=colour, height=0.6)
            left += seconds[phase]
        axes.text(left, row, f" {left:.3g} s", va="center")
    used = [phase for phase in PHASES if any(s[phase] > 0.001 for _, s in bars)]
    for phase in used:
        axes.barh(0, 0, color=PHASES[phase], label=LABELS[phase])
    axes.set_yticks(range(len(bars)), [text for text, _ in reversed(bars)])
    axes.set_xlabel(f"{_seconds_are(result)} of one iteration, median")
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.1)
    axes.set_title(_title(result))
    figure.legend(loc="outside lower center", ncols=len(used))
    return figure


def _seconds(engine: Mapping[str, float]) -> dict[str, float]:
    return {phase: engine[f"{phase}_seconds"] for phase in PHASES}


def _title(result: Mapping[str, Any]) -> str:
    task = result["task"]
    text = f"{result['shape']}, {task['rollouts']} rollouts of {task['new_tokens']} tokens"
    if "ratio" in result:
        text += f": {result['ratio']:.1f} times faster ({result['counted_ratio']:.1f} counted)"
    return text


def _seconds_are(result: Mapping[str, Any]) -> str:
    return "CPU seconds" if result["case"].get("clock") == "cpu" else "seconds"


@styled
def beside_trlx_plot(results: Sequence[Mapping[str, Any]]) -> Figure:
    """CPU seconds of an iteration, one panel a shape, with the peak memory beside each bar: trlX,
    and this package under both semantics."""
    figure = new_figure(2.2)
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    engines = list(ENGINES)[::-1]
    for axes, result in zip(panels, results, strict=True):
        peaks = peak_bytes(result)
        for row, name in enumerate(engines):
            seconds = result["cpu_seconds"][name]
            axes.barh(row, seconds, height=0.6, color=GREY if name == "trlx" else BLUE)
            axes.text(seconds, row, f" {seconds:#.3g} s, {peaks[name] / 1e9:.2f} GB", va="center")
        axes.set_xlabel("CPU seconds of one iteration")
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.5)
        axes.set_yticks(range(len(engines)), [ENGINES[name] for name in engines])
        ratio = result["cpu_ratio"]
        axes.set_title(
            f"{result['shape']}: {ratio['ours']:.1f} and {ratio['ours-corrected']:.1f} times faster"
        )
    return figure


@styled
def growth_plot(summary: Mapping[str, Any]) -> Figure:
    """Seconds by phase against what varied, on logarithmic axes, with a line of slope 1."""
    engines = list(summary["exponents"])
    figure = new_figure(3.0)
    panels = figure.subplots(1, len(engines), sharey=True, squeeze=False)[0]
    points = summary["points"]
    values = [point["value"] for point in points]
    for axes, engine in zip(panels, engines, strict=True):
        for phase, marker in (("generate", "o"), ("score", "s"), ("update", "D")):
            seconds = [point[engine][f"{phase}_seconds"] for point in points]
            axes.plot(values, seconds, marker=marker, color=PHASES[phase], label=LABELS[phase])
        first = points[0][engine]
        highest = max(first[f"{phase}_seconds"] for phase in ("generate", "score", "update"))
        linear = [1.3 * highest * value / values[0] for value in values]
        axes.plot(values, linear, color=GREY, linestyle=":", linewidth=1, label="linear")
        axes.set(xscale="log", yscale="log", xlabel=_axis(summary))
        axes.xaxis.set_major_locator(FixedLocator(values))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(f"{summary['shape']}, {SHORTCUTS[engine]}")
    panels[0].set_ylabel(f"{_seconds_are(summary)} of one iteration")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _axis(summary: Mapping[str, Any]) -> str:
    return AXES[summary["dimension"]].format(top=summary["points"][0]["top"])
