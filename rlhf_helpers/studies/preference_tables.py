"""What the chain from preferences came to, as tables of docs/study.md, from committed files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.runs.files import read_json

from .overoptimisation import end_of
from .plan import load_plan

FOLDERS = {"preferences": "", "preferences_fluency": "fluency", "preferences_lora": "lora"}


def kept_folder(name: str) -> Path:
    """Where the results of a plan of preferences are kept; of one's own plan figures/study/."""
    if name not in FOLDERS:
        return repo_root() / "figures" / "study" / name
    return repo_root() / "figures" / "reference_runs" / "preferences" / FOLDERS[name]


def kept_rows(name: str) -> list[dict[str, Any]]:
    """The finished rows of a plan as their files hold them, in its order."""
    plan = load_plan(repo_root() / "figures" / "study" / f"{name}.yml")
    paths = [kept_folder(name) / "rows" / f"{row.id}.json" for row in plan.rows]
    return [read_json(path, {}) for path in paths if path.exists()]


def models_by_size(name: str) -> dict[int, list[dict[str, Any]]]:
    """The reward models of a plan by their number of pairs."""
    about = read_json(kept_folder(name) / "reward_model.json", {})
    sizes: dict[int, list[dict[str, Any]]] = {}
    for model in sorted(about["models"].values(), key=lambda m: (m["pairs"], m["seed"])):
        sizes.setdefault(model["pairs"], []).append(model)
    return sizes


def reward_models_table(name: str = "preferences") -> str:
    """Markdown: one line a number of pairs, every draw's accuracy."""
    path = kept_folder(name) / "reward_model.json"
    if not path.exists():
        return ""
    ceiling = read_json(path, {})["ceiling"]
    lines = ["| pairs | accuracy on held-out pairs, each draw | mean | on the pairs learned from "
             "| calibration error | ceiling |", "|---|---|---|---|---|---|"]  # fmt: skip
    for size, models in models_by_size(name).items():
        held = [model["heldout"]["accuracy"] for model in models]
        own = _mean([model["accuracy"] for model in models])
        ece = _mean([model["heldout"]["ece"] for model in models])
        each = ", ".join(f"{a:.3f}" for a in held)
        lines.append(f"| {size:,} | {each} | **{_mean(held):.3f}** | {own:.3f} | {ece:.3f} "
                     f"| {ceiling:.3f} |")  # fmt: skip
    return "\n".join([*lines, "", f"From `{path.relative_to(repo_root())}`."])


def chain_table(name: str) -> str:
    """Markdown: one line a row, gold with its 95 % interval over prompts."""
    rows = kept_rows(name)
    if not rows:
        return ""
    lines = ["| | seed | accuracy | proxy (SD) | gold before → after | difference (95 % interval) "
             "| judge | KL (nats) | perplexity |",
             "|---|---|---|---|---|---|---|---|---|", *map(_chain_line, rows)]  # fmt: skip
    folder = (kept_folder(name) / "rows").relative_to(repo_root())
    total = len(load_plan(repo_root() / "figures" / "study" / f"{name}.yml").rows)
    note = f"{len(rows)} of {total} rows of `figures/study/{name}.yml` have run; from `{folder}/`."
    return "\n".join([*lines, "", note])


def _chain_line(result: dict[str, Any]) -> str:
    row, evaluation, change = result["row"], result["evaluation"], result["gold_difference"]
    end = end_of(result)
    cells = [
        row["name"], str(row["seed"]),
        _or_dash(result.get("reward_model_accuracy"), ".3f"),
        _or_dash(end["proxy"], "+.2f"),
        f"{_signed(result['gold_before'], '.3f')} → **{_signed(end['gold'], '.3f')}**",
        f"{_signed(change['mean'])} ({_signed(change['low'])} to {_signed(change['high'])})",
        f"{evaluation['judge_before']:.3f} → {evaluation['judge_after']:.3f}",
        f"{end['kl']:.2f}" + (" (formula)" if "kl_analytic" in result else ""),
        f"{evaluation['perplexity_before']:.0f} → {evaluation['perplexity_after']:.0f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _signed(value: float, spec: str = "+.3f") -> str:
    return format(value, spec).replace("-", "\N{MINUS SIGN}")


def _or_dash(value: float | None, spec: str) -> str:
    return "–" if value is None else _signed(value, spec)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
