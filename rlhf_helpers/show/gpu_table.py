"""What was measured on a GPU, as Markdown from the files of figures/gpu/."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.progress import duration
from rlhf_helpers.runs.contents import read_evaluation, read_manifest
from rlhf_helpers.runs.files import read_json

POST_STEPS = 10_000
CASES = {
    "opt-1.3b_post": "OPT-1.3B, the post's settings",
    "opt-1.3b_post_static": "the same with `cache_implementation: static`, compiled",
    "llama-7b": "LLaMA-7B, 128 rollouts of 40 tokens, no reward model",
    "opt-125m": "`opt-125m`, 128 rollouts of 40 tokens, no reward model",
    "deep": "`deep`, likewise",
}
TRAINED = {2: "LoRA in the top 2 layers", 24: "LoRA in all 24"}


def gpu_results(folder: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """The committed results of `bench --gpu-report`, by case."""
    folder = Path(folder or repo_root() / "figures/gpu")
    return {name: read_json(folder / f"{name}.json") for name in [*CASES, "opt-1.3b_naive"]}


def seconds_of_the_post(result: dict[str, Any]) -> float:
    """Seconds of 10,000 optimizer steps, evaluations not counted."""
    task = result["task"]
    steps = task["epochs"] * -(-task["rollouts"] // task["batch"])
    return result["fast"]["iteration_seconds"] * POST_STEPS / steps


def gpu_table() -> str:
    """Markdown: seconds and memory of an iteration by case."""
    results = gpu_results()
    rows = [["on an " + results["deep"]["device"]["name"], "seconds of an iteration",
             "10,000 steps", "peak memory"]]  # fmt: skip
    for name, words in CASES.items():
        fast = results[name]["fast"]
        rows.append([words, f"{fast['iteration_seconds']:.2f}",
                     duration(seconds_of_the_post(results[name])),
                     f"{fast['peak_memory_bytes'] / 1e9:.1f} GB"])  # fmt: skip
    return _table("gpu", rows)


def gpu_memory_table() -> str:
    """Markdown: predicted and measured memory by configuration."""
    path = repo_root() / "figures/gpu/memory_gpu.csv"
    rows = [["batch 32, 128 rollouts, half precision", "predicted", "measured"]]
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            what = TRAINED[int(row["layers"])]
            if row["modules"] == "none":
                what = f"the top {row['layers']} layers themselves learn"
            if row["in_4bit"] == "True":
                what += ", 4-bit trunk"
            shape = {"llama-7b": "LLaMA-7B"}.get(row["shape"], row["shape"].upper())
            sizes = [f"{float(row[name]) / 1e3:.1f} GB" for name in ("predicted_MB", "measured_MB")]
            rows.append([f"{shape}, {row['chunk']} × {row['new_tokens']} tokens at once, {what}",
                         *sizes])  # fmt: skip
    return _table("gpu memory", rows)


def gpu_run_table() -> str:
    """Markdown: the notebooks that ran on a GPU with the profile `cpu`, and what came out."""
    folders = [repo_root() / "figures/gpu" / name for name in ("cpu-1000-h100", "cpu-1000-h200")]
    manifests = [read_manifest(folder / "manifest.json") for folder in folders]
    times = [{row["name"]: row["seconds"] for row in m["notebooks"]} for m in manifests]
    rows = [["minutes:seconds", *(m["device"]["name"] for m in manifests)]]
    rows += [[name, *(duration(own[name]) for own in times)] for name in times[0]]
    rows.append([f"all {len(times[0])}", *(duration(sum(own.values())) for own in times)])
    lines = [_gpu_result(*pair) for pair in zip(folders, manifests, strict=True)]
    return _table("gpu run", rows, "\n\n".join(lines))


def _gpu_result(folder: Path, manifest: dict[str, Any]) -> str:
    found = read_evaluation(folder / "evaluation.json")
    versions = ", ".join(f"{name} {manifest['versions'][name]}"
                         for name in ("python", "torch", "transformers"))  # fmt: skip
    return (
        f"{manifest['device']['name']}, seed {found['seed']} ({versions}): reward "
        f"{found['reward_before']:.3f} → {found['reward_after']:.3f}, judge "
        f"{found['judge_before']:.3f} → {found['judge_after']:.3f}, *{found['verdict']}*."
    )


def _table(block: str, rows: list[list[str]], text: str = "") -> str:
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([f"<!-- {block} -->", *lines, *(["", text] if text else []),
                      f"<!-- /{block} -->"])  # fmt: skip
