"""Measure PPO iterations: the code that users run, beside the same with every shortcut off.

    python -m rlhf_helpers bench --shape opt-125m --batch 8 --rollouts 16 --threads 1

Shapes have random weights, and token ids drawn at random instead of text: prompts of 24 tokens,
as many new tokens as the post drew (40) unless flags say otherwise. Both engines sample, score
and update around one model, in turn; the ratio is the median of the pairs' ratios. Seconds are
the clock's, or with `--clock cpu` those that the process computed, on a machine that is shared.

`counted_ratio` is what the ratio would be if each phase of the fast iteration did its counted
FLOPs (counted_work.py; bytes, where those decide about decoding) at the rate that the naive one
reached in the same phase.
`floor_seconds` is the time that the counted work of the fast iteration takes at the machine's
measured rates, matrix products of these sizes and copies; where decoding is bound by the bytes
of the weights and of the cache, those count instead of FLOPs.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.environment import added_environment
from rlhf_helpers.runs.files import atomic_write_json, read_json
from rlhf_helpers.runs.manifest import device_report, library_versions
from rlhf_helpers.show.bench_figures import growth_plot, phase_plot
from rlhf_helpers.show.plot_style import save_figure

from .bench_case import VARIED, Case

# --- one case ------------------------------------------------------------------------------


def bench(case: Case, out: Path, label: str | None = None) -> dict[str, Any]:
    """Measure one case and write <label>.json and <label>.png to `out`."""
    result = header_of(case) | measured(case)
    if result["device"]["type"] != "cuda":
        for engine in ("fast", "naive") if case.naive else ("fast",):
            result[engine] |= run_worker(replace(case, memory_of=engine))
    label = label or _label(case, result["device"])
    atomic_write_json(out / f"{label}.json", result)
    print(table_text(result))
    print(save_figure(phase_plot(result), out / f"{label}.png"))
    return result


def measured(case: Case) -> dict[str, Any]:
    """What one process measured of the case."""
    result = run_worker(case)
    result["device"] = device_report() | {"threads": result.pop("threads")}
    return result


def run_worker(case: Case) -> dict[str, Any]:
    """Measure in a process of its own, with the environment that training has in notebooks.

    ConfigError with the process's last words where it failed.
    """
    environment = {**os.environ, **added_environment(repo_root())}
    if case.threads:
        environment |= {"OMP_NUM_THREADS": str(case.threads), "MKL_NUM_THREADS": str(case.threads)}
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "case.json", Path(folder) / "result.json"
        atomic_write_json(given, asdict(case))
        command = [sys.executable, "-m", "rlhf_helpers.lab.bench_iteration", str(given), str(found)]
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
        if done.returncode or not found.exists():
            words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            print(done.stderr, file=sys.stderr)
            raise ConfigError(f"bench of {_name(case)} failed: {words[-1]}")
        return read_json(found)


def header_of(case: Case) -> dict[str, Any]:
    given = {k: v for k, v in asdict(case).items() if v not in (None, False)}
    return {
        "shape": _name(case),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": command_of(case),
        "case": given,
        "versions": library_versions(),
    }


def command_of(case: Case) -> str:
    """The command that measures this case."""
    words = ["python -m rlhf_helpers bench"]
    for name, value in asdict(case).items():
        flag = "--" + name.replace("_", "-")
        default = Case.__dataclass_fields__[name].default
        if name == "naive":
            words += [] if value else ["--naive off"]
        elif value is True:
            words.append(flag)
        elif value != default and value is not False:
            words.append(f"{flag} {value}")
    return " ".join(words)


def _name(case: Case) -> str:
    return case.shape or Path(case.profile or "").stem


def _label(case: Case, device: dict[str, Any]) -> str:
    parts = [_name(case), case.semantics, "tiny" if case.tiny else None, device["type"]]
    return "_".join(part for part in parts if part)


def table_text(result: dict[str, Any]) -> str:
    """The measured case as a table for people."""
    engines = [name for name in ("fast", "naive") if name in result]
    rows = [["seconds", *engines]]
    for phase in ("generate", "score", "reward", "update", "iteration", "step"):
        rows.append([phase, *(f"{result[e][f'{phase}_seconds']:.3f}" for e in engines)])
    rows.append(["tokens/s", *(f"{result[e]['tokens_per_second']:.1f}" for e in engines)])
    rows.append(["peak MB", *(f"{result[e]['peak_memory_bytes'] / 1e6:,.0f}" for e in engines)])
    rows.append(["TFLOP", *(f"{_flops(result[e]) / 1e12:.2f}" for e in engines)])
    lines = ["  ".join(f"{cell:>12}" for cell in row) for row in rows]
    lines.append(
        f"The fast iteration takes {result['floor_ratio']:.1f} times its floor of "
        f"{result['floor_seconds']:.2f} s."
    )
    if "ratio" in result:
        lines.append(
            f"naive / fast: {result['ratio']:.2f} measured, {result['counted_ratio']:.2f} counted "
            f"({result['measured_share_of_counted']:.0%}), {result['flop_ratio']:.2f} by FLOPs."
        )
    return "\n".join([f"{result['shape']} on {result['device']['name']}", *lines])


def _flops(engine: dict[str, Any]) -> float:
    return sum(phase["flops"] for phase in engine["counted"].values())


# --- how cost grows ------------------------------------------------------------------------


def vary(case: Case, dimension: str, values: Sequence[int], out: Path) -> dict[str, Any]:
    """Measure the case for each value of one dimension; one file and one figure for all."""
    field = VARIED[dimension][0]
    points = []
    for value in values:
        result = measured(replace(case, **{field: value}))
        engines = {name: result[name] for name in ("fast", "naive") if name in result}
        points.append({"value": value, "top": result["sizes"]["top"], **engines})
    summary = {
        **header_of(case),
        "command": f"{command_of(case)} --vary {dimension} --values {','.join(map(str, values))}",
        "device": result["device"], "dimension": dimension, "points": points,
        "exponents": {name: exponents(points, name) for name in engines},
    }  # fmt: skip
    label = f"{dimension}_{_label(case, result['device'])}"
    atomic_write_json(out / f"{label}.json", summary)
    print(save_figure(growth_plot(summary), out / f"{label}.png"))
    for name, found in summary["exponents"].items():
        text = ", ".join(f"{phase} {x:.2f}" for phase, x in found.items())
        print(f"{name}: seconds grow with {dimension} to the power of: {text}")
    return summary


def exponents(points: Sequence[dict[str, Any]], engine: str) -> dict[str, float]:
    """p of seconds ~ value^p by phase: least squares on the logarithms. 1 is linear, 0 constant."""
    xs = [math.log(point["value"]) for point in points]
    mean_x = sum(xs) / len(xs)
    spread = sum((x - mean_x) ** 2 for x in xs)
    found = {}
    for phase in ("generate", "score", "update", "step", "iteration"):
        ys = [math.log(point[engine][f"{phase}_seconds"]) for point in points]
        mean_y = sum(ys) / len(ys)
        slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
        found[phase] = slope / spread if spread else 0.0
    return found
