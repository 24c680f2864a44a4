"""The README's results, written from the committed files of finished runs.

    python -m rlhf_helpers figures

Nothing in these tables is typed by hand: a test compares them with the files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.progress import duration
from rlhf_helpers.runs.contents import read_evaluation, read_manifest, read_samples
from rlhf_helpers.runs.files import RunDir, atomic_write_text

from .bench_table import limits_text, speed_table
from .gpu_table import gpu_memory_table, gpu_run_table, gpu_table


def finished_runs(profile: str = "cpu") -> list[Path]:
    """The committed runs of a profile: the reference run, then figures/seeds/<profile>-<seed>."""
    figures = repo_root() / "figures"
    return _by_seed([figures / "reference_runs" / profile, *figures.glob(f"seeds/{profile}-*")])


def trlx_runs(profile: str = "cpu") -> list[Path]:
    """The committed runs of a profile under `method.semantics: trlx`, in order of seeds."""
    return _by_seed([*(repo_root() / "figures").glob(f"trlx/{profile}-*")])


def without_penalty_run(profile: str = "cpu") -> RunDir:
    """The committed run of a profile with β = 0: nothing holds it near the untuned model."""
    return RunDir(repo_root() / "figures" / "without_penalty" / profile, create=False)


def _by_seed(runs: list[Path]) -> list[Path]:
    found = [path for path in runs if (path / "evaluation.json").exists()]
    return sorted(found, key=lambda path: read_evaluation(path / "evaluation.json")["seed"])


def results_table(profile: str = "cpu") -> str:
    """Markdown: one row a seed, and the mean; every seed that was run."""
    paths = finished_runs(profile)
    runs = [read_evaluation(path / "evaluation.json") for path in paths]
    lines = [
        "<!-- results -->",
        "| seed | reward | gain (95 % interval) | judge | verdict |",
        "|---|---|---|---|---|",
        *(_row(str(e["seed"]), e) for e in runs),
    ]
    if len(runs) > 1:
        mean = sum(e["reward_after"] for e in runs) / len(runs)
        lines.append(f"\nMean reward after, over {len(runs)} seeds: **{mean:.3f}**.")
    n = runs[0]["n_prompts"] if runs else 0
    lines.append(
        f"\n{n} held-out prompts, one sample each, same seeds before and after; from "
        "`evaluation.json` in `figures/reference_runs/cpu/` and `figures/seeds/`."
        + _other_code(paths, profile)
    )
    return "\n".join([*lines, "<!-- /results -->"])


def _other_code(paths: list[Path], profile: str) -> str:
    """Which seeds ran with other code, or on another machine, than the reference run, if any."""
    manifests = {path: read_manifest(path / "manifest.json") for path in paths}
    reference = next((m for p, m in manifests.items() if p.parent.name == "reference_runs"), None)
    if reference is None:
        return ""
    first = f"seed {_seed(profile)}"
    elsewhere: dict[str, list[str]] = {}
    other_code = []
    for path, manifest in manifests.items():
        seed, commit = path.name.rpartition("-")[2], manifest["versions"].get("commit")
        if commit and commit != reference["versions"].get("commit"):
            other_code.append(seed)
        if _machine(manifest) != _machine(reference):
            elsewhere.setdefault(_machine(manifest), []).append(seed)
    said = [f" {_seeds(seeds)} run on {machine}, {first} on {_machine(reference)}."
            for machine, seeds in elsewhere.items()]  # fmt: skip
    if other_code:
        said.append(f" {_seeds(other_code)} run with another version of the code than {first} "
                    "(`commit` in `manifest.json`).")  # fmt: skip
    return "".join(said)


def _seeds(seeds: list[str]) -> str:
    return f"Seed {seeds[0]} was" if len(seeds) == 1 else f"Seeds {', '.join(seeds)} were"


def _machine(manifest: dict[str, Any]) -> str:
    """The processor and the version of torch, which both decide the last digits of a run."""
    name = re.sub(r"\((R|TM)\)", "", manifest.get("device", {}).get("name") or "a CPU")
    torch = str(manifest["versions"].get("torch", "")).partition("+")[0]
    return f"{name} with torch {torch}" if torch else name


def _seed(profile: str) -> int:
    folder = repo_root() / "figures" / "reference_runs" / profile
    return read_manifest(folder / "manifest.json")["seed"]


# What the comparison of the two semantics shows of each run's evaluation.json.
COMPARED = ("reward_after", "judge_after", "kl_per_sequence", "distinct_2_after")


def runs_by_semantics(profile: str = "cpu") -> dict[str, list[Path]]:
    """The committed runs under `trlx` and under `corrected`: seeds that were run under both."""
    runs = {
        semantics: {read_evaluation(path / "evaluation.json")["seed"]: path for path in paths}
        for semantics, paths in (
            ("trlx", trlx_runs(profile)), ("corrected", finished_runs(profile)),
        )
    }  # fmt: skip
    both = sorted(runs["trlx"].keys() & runs["corrected"].keys())
    return {semantics: [paths[seed] for seed in both] for semantics, paths in runs.items()}


def semantics_rows(profile: str = "cpu") -> list[dict[str, Any]]:
    """Both semantics, a row a seed and a row of means: fields of COMPARED by name."""
    rows = []
    for semantics, paths in runs_by_semantics(profile).items():
        own = [
            {"semantics": semantics, "seed": e["seed"], **{k: e[k] for k in COMPARED}}
            for e in (read_evaluation(path / "evaluation.json") for path in paths)
        ]
        means = {k: sum(row[k] for row in own) / len(own) for k in COMPARED} if own else {}
        rows += [*own, {"semantics": semantics, "seed": "mean", **means}]
    return rows


def semantics_table(profile: str = "cpu") -> str:
    """Markdown of `semantics_rows`."""
    lines = [
        "<!-- semantics -->",
        "| semantics | seed | reward after | judge after | KL, nats a sample | distinct-2 after |",
        "|---|---|---|---|---|---|",
    ]
    for row in semantics_rows(profile):
        numbers = " | ".join(f"{row[k]:.{1 if k == 'kl_per_sequence' else 3}f}" for k in COMPARED)
        lines.append(f"| {row['semantics']} | {row['seed']} | {numbers} |")
    return "\n".join([*lines, "<!-- /semantics -->"])


def _row(name: str, e: dict[str, Any]) -> str:
    d = e["paired_difference"]
    cells = [
        name,
        f"{e['reward_before']:.3f} → **{e['reward_after']:.3f}**",
        f"{d['mean']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})",
        f"{e['judge_before']:.3f} → {e['judge_after']:.3f}",
        e["verdict"].replace("_", " "),
    ]
    return "| " + " | ".join(cells) + " |"


def pairs_table(profile: str = "smollm2", n: int = 3) -> str:
    """Markdown: the first n held-out prompts of a committed run, before and after, none picked."""
    run = repo_root() / "figures" / "reference_runs" / profile
    both = [read_samples(run / name) for name in ("baseline_samples.jsonl", "after_samples.jsonl")]
    before, after = ([s for s in samples if s["group"] == "heldout"] for samples in both)
    lines = ["<!-- pairs -->", "| prompt | before | after |", "|---|---|---|"]
    for one, other in list(zip(before, after, strict=True))[:n]:
        cells = [f"**{_in_a_cell(one['prompt'])}** …"]
        cells += [f"{_in_a_cell(s['output'])} *({s['reward']:.2f})*" for s in (one, other)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "<!-- /pairs -->"])


def _in_a_cell(text: str) -> str:
    """A text on one line, with nothing in it that Markdown would read as its own."""
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", " ".join(text.split()))


def costs_table(profile: str = "cpu") -> str:
    """Markdown: wall time and peak memory of each notebook of the reference run."""
    manifest = read_manifest(repo_root() / "figures" / "reference_runs" / profile / "manifest.json")
    rows = manifest["notebooks"]
    lines = ["<!-- run costs -->", "| notebook | minutes:seconds | peak memory |", "|---|---|---|"]
    lines += [
        f"| {row['name']} | {duration(row['seconds'])} | {row['peak_rss_bytes'] / 1e9:.1f} GB |"
        for row in rows
    ]
    total, peak = sum(r["seconds"] for r in rows), max(r["peak_rss_bytes"] for r in rows)
    lines.append(f"| **all {len(rows)}** | **{duration(total)}** | **{peak / 1e9:.1f} GB** |")
    return "\n".join([*lines, "<!-- /run costs -->"])


# Colab's GPUs and the profile that each was made for.
GPUS = {"T4": "t4", "L4": "seed", "G4": "seed", "A100": "seed", "H100": "seed"}


def support_table() -> str:
    """Markdown: where the project has run, from the files of `make test-colab`."""
    files = sorted((repo_root() / "figures" / "support").glob("*.json"))
    images = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    heads = [f"{image['image']}, Python {image['python']}" for image in images]
    lines = [
        "<!-- support -->",
        f"| where | {' | '.join(['Python 3.11', *heads])} |",
        "|---" * (len(images) + 2) + "|",
        f"| CPU | {' | '.join(['measured', *map(_what_passed, images)])} |",
    ]
    untested = " | ".join(["untested"] * len(images))
    lines += [f"| {gpu}, profile `{profile}` | – | {untested} |" for gpu, profile in GPUS.items()]
    for image in images:
        versions = ", ".join(f"{name} {number}" for name, number in image["versions"].items())
        lines.append(
            f"\n{image['image']}: a twin of Colab's image, without a GPU, with {versions}."
        )
    return "\n".join([*lines, "<!-- /support -->"])


def _what_passed(image: dict[str, Any]) -> str:
    """Runs of notebooks and fast tests that passed; the date is that of the oldest of them."""
    rows, rooms = image["notebooks"], image["fast_tests"].values()
    passed = sum(row["problem"] is None for row in rows)
    found = f"{min(row['date'] for row in rows)}: {passed} of {len(rows)} runs of notebooks"
    if rooms:
        counts = {word: sum(room.get(word, 0) for room in rooms)
                  for word in ("passed", "failed", "error")}  # fmt: skip
        done = sum(counts.values())
        found += f"; {min(room['date'] for room in rooms)}: "
        found += f"{counts['passed']:,} of {done:,} fast tests"
    return found


# The blocks of README and docs/ by the name between their marks.
BLOCKS: dict[str, Callable[[], str]] = {
    "results": results_table,
    "pairs": pairs_table,
    "run costs": costs_table,
    "support": support_table,
    "semantics": semantics_table,
    "gpu": gpu_table,
    "gpu memory": gpu_memory_table,
    "gpu run": gpu_run_table,
    "speed": lambda: f"<!-- speed -->\n{speed_table()}\n<!-- /speed -->",
    "limits": lambda: f"<!-- limits -->\n{limits_text()}\n<!-- /limits -->",
}


def rewrite_tables(path: Path) -> bool:
    """Bring the tables of README or a page of docs/ up to date; whether anything changed."""
    before = path.read_text(encoding="utf-8")
    after = before
    for name, table in BLOCKS.items():
        pattern = rf"<!-- {name} -->.*?<!-- /{name} -->"
        after = re.sub(pattern, lambda _, table=table: table(), after, flags=re.DOTALL)
    if after != before:
        atomic_write_text(path, after)
    return after != before
