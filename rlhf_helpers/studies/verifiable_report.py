"""What the runs of notebook 07 came to, as the block of docs/verifiable_rewards.md, from files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_helpers.config.reading import read_json, read_jsonl, read_text
from rlhf_helpers.runs.files import atomic_write_text

NAMES = {"rloo": "RLOO", "grpo": "GRPO", "ppo": "PPO"}
BLOCK = re.compile(r"<!-- arithmetic -->.*?<!-- /arithmetic -->", re.DOTALL)


def results_table(evaluation: Mapping[str, Any]) -> str:
    """Markdown: the base model and every run; pass@1 with its interval over problems."""
    lines = [
        "| run | verifier | pass@1 (95 % interval) | pass@8 | pass@64 | greedy | running totals "
        "| right with, without | four terms |",
        "|---|---|---|---|---|---|---|---|---|",
        _line("before", "", evaluation["before"]),
    ]
    for run in evaluation["runs"].values():
        longer = ", twice the steps" if run.get("budgets", 1) > 1 else ""
        name = f"{NAMES[run['method']]}, seed {run['seed']}{longer}"
        lines.append(_line(name, run["verifier"], run))
    return "\n".join(lines)


def _line(name: str, verifier: str, row: Mapping[str, Any]) -> str:
    mean, low, high = row["pass_at_k"]["1"]
    cells = [
        name, verifier, f"{mean:.3f} ({low:.3f} to {high:.3f})",
        *(_number(row["pass_at_k"].get(k, [None])[0]) for k in ("8", "64")),
        _number(row["greedy"]), f"{100 * row['steps']:.0f} %",
        f"{_number(row['right_with_steps'])}, {_number(row['right_without_steps'])}",
        _number(row["larger"]),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def findings(evaluation: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences with the numbers of these runs: what rose, what fell, where the verifiers part."""
    strict = {n: r for n, r in evaluation["runs"].items() if r["verifier"] == "strict"}
    said = []
    for k in (k for k in ("1", "64") if k in evaluation["before"]["pass_at_k"]):
        changes = [run["change"][k] for run in strict.values()]
        rose = sum(low > 0 for _, low, _ in changes)
        fell = sum(high < 0 for _, _, high in changes)
        said.append(
            f"pass@{k} changed by {_range([mean for mean, *_ in changes])}; the 95 % interval lies "
            f"above 0 in {rose} and below 0 in {fell} of {len(changes)} runs."
        )
    shown = [run["steps"] for run in strict.values()]
    said.append(
        f"Of the answers to sums of three terms {100 * evaluation['before']['steps']:.0f} % showed "
        f"a running total before training, {_range(shown, 100, 0, '')} % after it."
    )
    said += [_steps_that_hold(name, metrics) for name in strict if _evaluations(name, metrics)]
    for name, run in evaluation["runs"].items():
        if run["verifier"] == "sloppy":
            said.append(_fooled(name, run, evaluation["before"], metrics))
    seconds = [_seconds(metrics, name) for name in evaluation["runs"]]
    seconds = [value for value in seconds if value]
    if seconds:
        said.append(f"An optimizer step with its answers took {_range(seconds, 1, 1, '')} s in the "
                    "mean of a run, on one thread of a busy machine.")  # fmt: skip
    if evaluation["not_run"]:
        said.append(f"Not run: {', '.join(evaluation['not_run'])}.")
    return said


def _evaluations(name: str, metrics: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [m for m in metrics if m["run"] == name and m.get("metrics/steps_and_right")]


def _steps_that_hold(name: str, metrics: Sequence[Mapping[str, Any]]) -> str:
    lines = _evaluations(name, metrics)
    first, last = (100 * m["metrics/steps_hold"] / m["metrics/steps_and_right"]
                   for m in (lines[0], lines[-1]))  # fmt: skip
    return (
        f"{name}: of the right answers behind a running total, {first:.0f} % had a right one at "
        f"step {lines[0]['step']} and {last:.0f} % at step {lines[-1]['step']}."
    )


def _fooled(
    name: str, run: Mapping[str, Any], before: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
) -> str:  # fmt: skip
    course = [m for m in metrics if m["run"] == name and m.get("metrics/strict") is not None]
    best = max(course, key=lambda line: line["metrics/strict"])
    return (
        f"Paid by the sloppy verifier, most answers on the way were right at step {best['step']} "
        f"({best['metrics/strict']:.3f}, while {best['metrics/sloppy']:.3f} were paid for); in the "
        f"end {run['pass_at_k']['1'][0]:.3f} were right and {run['sloppy']:.3f} paid for, and an "
        f"answer had {run['characters']:.1f} characters instead of {before['characters']:.1f}."
    )


def _range(values: Sequence[float], factor: float = 1, digits: int = 3, sign: str = "+") -> str:
    ends = [f"{factor * x:{sign}.{digits}f}" for x in (min(values), max(values))]
    ends = [end.replace("-", "−") for end in ends]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _seconds(metrics: Sequence[Mapping[str, Any]], run: str) -> float | None:
    """Mean seconds of a step: sampling and scoring, and the update."""
    own = [line for line in metrics if line["run"] == run]
    made = [line["time/exp"] for line in own if line.get("time/exp") is not None]
    updates = [line["time/forward"] + line["time/backward"] for line in own
               if line.get("time/backward") is not None]  # fmt: skip
    return sum(made) / len(made) + sum(updates) / len(updates) if made and updates else None


def block(folder: Path) -> str:
    """The table and the sentences of a reference run's files."""
    evaluation = read_json(folder / "evaluation.json")
    said = findings(evaluation, read_jsonl(folder / "metrics.jsonl"))
    about = (
        f"{evaluation['n_prompts']:,} held-out problems, {evaluation['answers']} answers each at "
        "temperature 1; from `figures/reference_runs/arithmetic/`."
    )
    return "\n".join([results_table(evaluation), "", about, "", *(f"- {text}" for text in said)])


def rewrite_page(page: Path, folder: Path) -> bool:
    """Bring the block of docs/verifiable_rewards.md up to date; whether anything changed."""
    before = read_text(page)
    made = f"<!-- arithmetic -->\n{block(folder)}\n<!-- /arithmetic -->"
    after = BLOCK.sub(lambda _: made, before)
    if after != before:
        atomic_write_text(page, after)
    return after != before
