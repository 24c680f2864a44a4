"""What the runs of notebook 07 came to, as the block of docs/verifiable_rewards.md, from files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_helpers.config.reading import read_json, read_jsonl, read_text
from rlhf_helpers.runs.files import atomic_write_text

AIM = 0.85  # pass@1, set before the first run
NAMES = {"rloo": "RLOO", "grpo": "GRPO", "ppo": "PPO"}
HEADINGS = ("| pass@1 | pass@8 | pass@64 | greedy | running totals |", "|---|---|---|---|---|")
BLOCK = re.compile(r"<!-- arithmetic -->.*?<!-- /arithmetic -->", re.DOTALL)


def methods_table(evaluation: Mapping[str, Any]) -> str:
    """Markdown: each method's mean over its seeds, the lowest and the highest in brackets."""
    lines = [f"| verifier: strict | seeds {HEADINGS[0]}", f"|---|---{HEADINGS[1]}"]
    before = evaluation["before"]
    cells = [f"{x:.3f}" for x in _measured(before)[:-1]] + [f"{100 * before['steps']:.0f} %"]
    lines.append("| before |  | " + " | ".join(cells) + " |")
    for method, runs in by_method(evaluation).items():
        columns = list(zip(*map(_measured, runs.values()), strict=True))
        cells = [_mean_and_range(column) for column in columns[:-1]]
        cells.append(_mean_and_range(columns[-1], 100, 0) + " %")
        lines.append(f"| {NAMES[method]} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def by_method(evaluation: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The runs of equal budget paid by the strict verifier, by method and name."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, run in evaluation["runs"].items():
        if run["verifier"] == "strict" and run.get("budgets", 1) == 1:
            found.setdefault(run["method"], {})[name] = run
    return found


def _measured(row: Mapping[str, Any]) -> list[float]:
    return [*(row["pass_at_k"][k][0] for k in ("1", "8", "64")), row["greedy"], row["steps"]]


def _mean_and_range(values: Sequence[float], factor: float = 1, digits: int = 3) -> str:
    mean = factor * sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"**{mean:.{digits}f}** ({_range(values, factor, digits, '')})"


def results_table(evaluation: Mapping[str, Any]) -> str:
    """Markdown: the base model and every run; pass@1 with its interval over problems."""
    lines = [
        "| run | verifier | pass@1 (95 % interval) | pass@8 | pass@64 | greedy | running totals "
        "| right with, without | four terms |",
        "|---|---|---|---|---|---|---|---|---|",
        _line("before", "", evaluation["before"]),
    ]
    for run in evaluation["runs"].values():
        lines.append(_line(title(run), run["verifier"], run))
    return "\n".join(lines)


def title(run: Mapping[str, Any]) -> str:
    """A run in words, such as `RLOO, seed 1000, twice the steps`."""
    longer = {1: "", 2: ", twice the steps"}.get(run.get("budgets", 1), ", more steps")
    wide = ", wide" if run.get("wide") else ""
    return f"{NAMES[run['method']]}, seed {run['seed']}{wide or longer}"


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
    best = max(strict.values(), key=lambda run: run["pass_at_k"]["1"][0])
    highest = best["pass_at_k"]["1"][0]
    said.append(
        f"The highest pass@1 is {highest:.3f} ({title(best)}): the {AIM} that had been aimed at is "
        f"{'reached' if highest >= AIM else 'not reached'}."
    )
    shown = [run["steps"] for run in strict.values()]
    said.append(
        f"Of the answers to sums of three terms {100 * evaluation['before']['steps']:.0f} % showed "
        f"a running total before training, {_range(shown, 100, 0, '')} % after it."
    )
    for method, runs in by_method(evaluation).items():
        said += _steps_that_hold(method, list(runs), metrics)
    for name, run in evaluation["runs"].items():
        if run["verifier"] == "sloppy":
            said.append(_fooled(name, evaluation, metrics))
    seconds = [run["cpu_seconds"] for run in evaluation["runs"].values()
               if run.get("cpu_seconds") and run.get("budgets", 1) == 1]  # fmt: skip
    if seconds:
        said.append(
            f"Training took {_range(seconds, 1, 0, '')} CPU seconds on one thread, evaluations on "
            f"the way included (measured in {len(seconds)} of the runs of the profile's steps)."
        )
    if evaluation["not_run"]:
        said.append(f"Not run: {', '.join(evaluation['not_run'])}.")
    return said


def _evaluations(name: str, metrics: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [m for m in metrics if m["run"] == name and m.get("metrics/steps_and_right")]


def _steps_that_hold(
    method: str, runs: Sequence[str], metrics: Sequence[Mapping[str, Any]]
) -> list[str]:
    shares = []
    for run in runs:
        lines = _evaluations(run, metrics)
        if lines:
            shares.append([100 * m["metrics/steps_hold"] / m["metrics/steps_and_right"]
                           for m in (lines[0], lines[-1])])  # fmt: skip
    if not shares:
        return []
    first, last = (_range(column, 1, 0, "") for column in zip(*shares, strict=True))
    return [f"{NAMES[method]}: of the right answers that show a step, {first} % had every step "
            f"right before training and {last} % after it."]  # fmt: skip


def _fooled(
    name: str, evaluation: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]
) -> str:
    run, before = evaluation["runs"][name], evaluation["before"]
    course = [m for m in metrics if m["run"] == name and m.get("metrics/strict") is not None]
    best = max(course, key=lambda line: line["metrics/strict"])
    said = (
        f"Paid by the sloppy verifier, most answers on the way were right at step {best['step']} "
        f"({best['metrics/strict']:.3f}, while {best['metrics/sloppy']:.3f} were paid for); in the "
        f"end {run['pass_at_k']['1'][0]:.3f} were right and {run['sloppy']:.3f} paid for."
    )
    rows = {"before": before, "after": run}
    twin = evaluation["runs"].get(name.replace("sloppy", "long"))  # as long, paid by the strict one
    if twin:
        rows["after as many steps paid by the strict verifier"] = twin
    total = evaluation["n_prompts"] * evaluation["answers"]
    wrong = [f"{round(total * (row['sloppy'] - row['pass_at_k']['1'][0])):,} {when}"
             for when, row in rows.items()]  # fmt: skip
    length = [f"{row['characters']:.1f}" for row in rows.values()]
    return (
        f"{said} Wrong answers that it accepts, of {total:,}: {', '.join(wrong)}; an answer has "
        f"{', '.join(length)} characters."
    )


def _range(values: Sequence[float], factor: float = 1, digits: int = 3, sign: str = "+") -> str:
    ends = [f"{factor * x:{sign}.{digits}f}" for x in (min(values), max(values))]
    ends = [end.replace("-", "−") for end in ends]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def block(folder: Path) -> str:
    """The table and the sentences of a reference run's files."""
    evaluation = read_json(folder / "evaluation.json")
    said = findings(evaluation, read_jsonl(folder / "metrics.jsonl"))
    about = (
        f"{evaluation['n_prompts']:,} held-out problems, {evaluation['answers']} answers each at "
        "temperature 1; from `figures/reference_runs/arithmetic/`."
    )
    parts = [methods_table(evaluation), "", "Every run:", "", results_table(evaluation), "", about]
    return "\n".join([*parts, "", *(f"- {text}" for text in said)])


def in_one_sentence(folder: Path) -> str:
    """The same in one sentence, for docs/study.md."""
    evaluation = read_json(folder / "evaluation.json")
    before = evaluation["before"]["pass_at_k"]
    parts = []
    for method, runs in by_method(evaluation).items():
        ends = [[run["pass_at_k"][k][0] for run in runs.values()] for k in ("1", "64")]
        parts.append(f"{NAMES[method]} {_mean_and_range(ends[0])} and {_mean_and_range(ends[1])}")
    return (
        f"On {evaluation['n_prompts']:,} held-out problems, pass@1 and pass@64: before "
        f"{before['1'][0]:.3f} and {before['64'][0]:.3f}; {'; '.join(parts)}."
    )


def rewrite_page(page: Path, folder: Path) -> bool:
    """Bring the block of docs/verifiable_rewards.md up to date; whether anything changed."""
    before = read_text(page)
    made = f"<!-- arithmetic -->\n{block(folder)}\n<!-- /arithmetic -->"
    after = BLOCK.sub(lambda _: made, before)
    if after != before:
        atomic_write_text(page, after)
    return after != before
