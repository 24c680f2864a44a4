"""Gold beside proxy against divergence: the rows of overoptimisation.csv, from a study's files.

PPO and best-of-n raise what the reward model says (the proxy); gold is what was wanted. Where the
proxy goes on rising and gold falls, the reward model is over-optimised (Gao, Schulman and Hilton
2023, arXiv:2210.10760).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# `n` samples each; `kl` in nats a sample, of best-of-n by its formula; `proxy` in standard
# deviations of the pairs' texts; `gold` as `gold_name` says: P(POSITIVE), or sentiment and fluency
# in standard deviations; `sentiment` and `judge` are probabilities.
COLUMNS = (
    "name", "kind", "pairs", "seed", "step", "n", "kl", "proxy", "gold_name", "gold", "sentiment",
    "judge",
)  # fmt: skip


def overoptimisation_rows(
    results: Sequence[dict[str, Any]], metrics: Path, interval_prompts: int
) -> list[dict[str, Any]]:
    """The lines for these finished rows of a study: the course of PPO, the end of all others.

    `metrics` is the folder of the rows' courses. The last line of each is measured on all of the
    row's prompts, those before on `interval_prompts`.
    """
    lines = []
    for result in results:
        if "gold_name" not in result:
            continue
        end = end_of(result)
        course = metrics / f"{result['id']}.csv"
        if result["row"]["kind"] == "ppo-learned" and course.exists():
            lines += _course(course, end, interval_prompts)
        lines.append(end)
    return lines


def end_of(result: dict[str, Any]) -> dict[str, Any]:
    """What a row came to."""
    row, evaluation = result["row"], result["evaluation"]
    steps = {"ppo-learned": result["settings"]["train"]["total_steps"],
             "dpo": row["options"].get("steps")}  # fmt: skip
    return {
        **{key: row[key] for key in ("name", "kind", "seed")},
        "pairs": row["options"]["pairs"],
        "step": steps.get(row["kind"]),
        "n": evaluation["n_prompts"],
        "kl": result.get("kl_analytic", evaluation["kl_per_sequence"]),
        "proxy": result.get("proxy_after"),
        "gold_name": result["gold_name"],
        "gold": result["gold_after"],
        "sentiment": evaluation["reward_after"],
        "judge": evaluation["judge_after"],
    }


def _course(path: Path, end: dict[str, Any], n: int) -> list[dict[str, Any]]:
    """The evaluations on the way, with the divergence of the rollouts of the same step."""
    with open(path, encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    kls = {line["step"]: float(line["objective/kl"]) for line in lines if line["objective/kl"]}
    found = []
    for line in lines:
        if not line["metrics/gold"] or int(line["step"]) >= end["step"]:
            continue
        means = {k: float(line[f"metrics/{k}"]) for k in ("proxy", "gold", "sentiment", "judge")}
        kl = kls.get(line["step"])
        found.append({**end, "step": int(line["step"]), "n": n, "kl": kl, **means})
    return found
