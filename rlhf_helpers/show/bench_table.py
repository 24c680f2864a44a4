"""The committed measurements of `bench` as a table for people."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.runs.files import read_json

SHAPES = ("deep", "opt-125m")


def peak_bytes(result: dict[str, Any]) -> dict[str, int]:
    """The highest memory of each engine's runs, of a measurement beside trlX."""
    return {
        name: max(run["peak_memory_bytes"] for run in runs)
        for name, runs in result["engines"].items()
    }


def beside_trlx_results(folder: str | Path | None = None) -> list[dict[str, Any]]:
    """The committed measurements beside trlX, in the order of SHAPES."""
    folder = Path(folder or repo_root() / "figures/bench/trlx")
    return [read_json(folder / f"{shape}_beside_trlx.json") for shape in SHAPES]


def earlier_code(shape: str, folder: str | Path | None = None) -> dict[str, float]:
    """Median CPU seconds of an iteration by earlier code and by this, which took turns."""
    result = read_json(Path(folder or repo_root() / "figures/bench") / "before_after.json")
    return {name: statistics.median(result[name]["cpu_seconds"][shape])
            for name in ("before", "after")}  # fmt: skip


def speed_table(folder: str | Path | None = None) -> str:
    """Markdown: an iteration by trlX and by this package, one column a shape."""
    folder = Path(folder or repo_root() / "figures/bench")
    beside = beside_trlx_results(folder / "trlx")
    naive = [read_json(folder / f"{shape}_cpu.json") for shape in SHAPES]
    earlier = [earlier_code(shape, folder) for shape in SHAPES]
    rows = [
        ["the real trlX v0.6.0", *(_engine(result, "trlx") for result in beside)],
        ["here, `semantics: trlx`", *(_engine(result, "ours") for result in beside)],
        ["here, `semantics: corrected`", *(_engine(result, "ours-corrected") for result in beside)],
        ["every shortcut off, then on", *(_pair(r["naive"]["iteration_seconds"],
          r["fast"]["iteration_seconds"], r["ratio"]) for r in naive)],
        ["this package at be786ec, then now",
         *(_pair(e["before"], e["after"], e["before"] / e["after"]) for e in earlier)],
    ]  # fmt: skip
    head = ["seconds of one iteration", *(f"`{shape}`" for shape in SHAPES)]
    lines = ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]]
    dates = {result["shape"]: result["date"] for result in beside}
    if len(set(dates.values())) > 1:
        said = ", ".join(f"`{shape}` on {date}" for shape, date in dates.items())
        lines += ["", f"Measured beside trlX: {said}, by the code and on the machine of that day."]
    return "\n".join(lines)


def _engine(result: dict[str, Any], name: str) -> str:
    text = f"{result['cpu_seconds'][name]:.1f}"
    if name != "trlx":
        text += f", **{result['cpu_ratio'][name]:.2f}** times as fast"
    return f"{text}; {peak_bytes(result)[name] / 1e9:.2f} GB"


def _pair(before: float, after: float, ratio: float) -> str:
    return f"{before:.1f} → {after:.1f}, **{ratio:.2f}** times as fast"


def limits_text(folder: str | Path | None = None) -> str:
    """Seconds by phase beside what the counted work takes at the machine's own rates: Markdown."""
    folder = Path(folder or repo_root() / "figures/bench")
    words = {"generate": "sampling", "score": "scoring", "update": "updates"}
    lines = []
    for shape in SHAPES:
        result = read_json(folder / f"{shape}_cpu.json")
        fast, floor = result["fast"], result["fast"]["floor_seconds_by_phase"]
        phases = ", ".join(f"{words[phase]} {fast[f'{phase}_seconds']:.1f} (at least "
                           f"{floor[phase]:.1f})" for phase in words)  # fmt: skip
        rate = result["rates"]["update_flops"] / 1e9
        lines.append(
            f"- `{shape}`: {fast['iteration_seconds']:.1f} s, {result['floor_ratio']:.1f} times "
            "what its counted work takes at the rates of matrix products and copies measured on "
            f"the same machine (an {result['device']['name']}, {rate:.0f} GFLOP/s a thread): "
            f"{phases}."
        )
    return "\n".join(lines)
