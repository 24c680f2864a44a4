"""What the studies found, as figures and as the tables of docs/study.md, from committed files.

    python -m rlhf_helpers figures

Nothing in these tables is typed by hand: a test compares them with the files.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.config.reading import read_text
from rlhf_helpers.evaluation.evaluate_run import evaluation_path
from rlhf_helpers.runs.contents import read_evaluation, read_manifest, read_metrics
from rlhf_helpers.runs.files import atomic_write_text, reference_run_dir
from rlhf_helpers.show.study_figures import Group, groups_of, kl_of, read_study_table

from .plan import load_plan
from .preference_tables import chain_table, reward_models_table
from .study import refresh
from .verifiable_report import in_one_sentence

# The panels of the ablation figure: what stands on the axis, in order.
PANELS = {
    "layers with LoRA": ["value head alone", "1 layer", "2 layers", "4 layers", "all 6 layers"],
    "rank": ["rank 1", "rank 4", "rank 8", "rank 16", "rank 32"],
    "learning rate": ["rate 3e-4", "rate 1e-3", "rate 3e-3", "rate 1e-2"],
}
DEFAULT_ROW = "4 layers, rank 16, rate 3e-3"  # of the ablations; stands in every panel
COEFFICIENTS = ["PPO, β 0", "PPO, β 0.003", "PPO, β 0.01", "PPO, β 0.03", "PPO, β 0.1"]


def study_dir(name: str) -> Path:
    """Where a study's table and rows are kept."""
    return repo_root() / "figures" / "study" / name


def study_rows(name: str) -> list[dict[str, Any]]:
    """The finished rows of a study; none where it has not run."""
    path = study_dir(name) / "table.csv"
    return read_study_table(path) if path.exists() else []


def ablation_panels() -> dict[str, list[dict[str, Any]]]:
    """Finished rows of each panel of the ablation figure, the default among them."""
    rows = study_rows("ablations")
    panels = {}
    for title, names in PANELS.items():
        own = []
        for name in names:
            wanted = DEFAULT_ROW if name in DEFAULT_ROW.split(", ") else name
            own += [{**row, "name": name} for row in rows if row["name"] == wanted]
        panels[title] = own
    coefficients = [r for n in COEFFICIENTS for r in study_rows("frontier") if r["name"] == n]
    panels["KL coefficient β"] = coefficients
    return {title: own for title, own in panels.items() if own}


def draw_study_figures() -> list[Path]:
    """Draw what the committed studies and seeds allow; the paths of the pictures."""
    from rlhf_helpers.show.plot_style import save_figure
    from rlhf_helpers.show.results_tables import finished_runs
    from rlhf_helpers.show.run_figures import headline_figure
    from rlhf_helpers.show.study_figures import (
        ablation_figure,
        course_figure,
        frontier_figure,
        judge_figure,
    )

    folder, drawn = repo_root() / "figures" / "study", []
    for name in ("frontier", "ablations"):
        if study_rows(name):
            refresh(load_plan(study_dir(name).with_suffix(".yml")), study_dir(name))
    rows = study_rows("frontier")
    if rows:
        drawn.append(save_figure(frontier_figure(rows), folder / "frontier.png"))
        drawn.append(save_figure(judge_figure(rows), folder / "judge.png"))
    panels = ablation_panels()
    if study_rows("ablations"):
        drawn.append(save_figure(ablation_figure(panels), folder / "ablations.png"))
    runs = [path for path in finished_runs() if (path / "judge_course.csv").exists()]
    if len(runs) > 1:
        drawn.append(save_figure(course_figure(runs), folder / "five_seeds.png"))
    smollm2 = reference_run_dir("smollm2")
    drawn.append(save_figure(headline_figure(smollm2), folder / "smollm2.png"))
    return drawn


# --- tables --------------------------------------------------------------------------------


def progress_note(name: str) -> str:
    """One sentence: how many rows of the plan are done."""
    plan = load_plan(study_dir(name).with_suffix(".yml"))
    done, total = len(study_rows(name)), len(plan.rows)
    state = "complete" if done == total else "not complete: the table grows as rows finish"
    path = f"figures/study/{name}"
    return f"{done} of {total} rows of `{path}.yml` are done ({state}); from `{path}/table.csv`."


def frontier_table() -> str:
    """Markdown: one line a configuration, means over its seeds."""
    lines = [
        "| | seeds | reward before → after | judge before → after | KL (nats) | distinct-2 "
        "| self-BLEU | perplexity | tokens | verdict | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_frontier_line(group) for group in groups_of(study_rows("frontier"))),
    ]
    return "\n".join([*lines, "", progress_note("frontier")])


def _frontier_line(group: Group) -> str:
    low, high = group.bounds("reward_after", "paired_difference")
    kl = sum(kl_of(row) for row in group.rows) / len(group.rows)
    verdicts = list(dict.fromkeys(row["verdict"].replace("_", " ") for row in group.rows))
    cells = [
        group.name,
        str(len(group.rows)),
        f"{group.mean('reward_before'):.3f} → **{group.mean('reward_after'):.3f}** "
        f"({low:.3f} to {high:.3f})",
        f"{group.mean('judge_before'):.3f} → {group.mean('judge_after'):.3f}",
        f"{kl:.2f}" + (" (formula)" if group.kind == "best-of-n" else ""),
        f"{group.mean('distinct_2_before'):.2f} → {group.mean('distinct_2_after'):.2f}",
        f"{group.mean('self_bleu_before'):.2f} → {group.mean('self_bleu_after'):.2f}",
        f"{group.mean('perplexity_before'):.0f} → {group.mean('perplexity_after'):.0f}",
        f"{group.mean('length_tokens_before'):.0f} → {group.mean('length_tokens_after'):.0f}",
        ", ".join(verdicts),
        f"{group.mean('cpu_seconds'):.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def ablation_table() -> str:
    """Markdown: one line a setting; one seed each, and the table says so."""
    lines = [
        "| one seed each | trained numbers | reward after (95 % interval) | judge after "
        "| KL (nats) | distinct-2 after | verdict | CPU s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in study_rows("ablations"):
        offset = row["reward_after"] - row["paired_difference_mean"]
        low, high = (offset + row[f"paired_difference_{b}"] for b in ("low", "high"))
        cells = [
            row["name"], f"{row['trained_parameters']:,.0f}",
            f"{row['reward_after']:.3f} ({low:.3f} to {high:.3f})", f"{row['judge_after']:.3f}",
            f"{row['kl_per_sequence']:.2f}", f"{row['distinct_2_after']:.2f}",
            row["verdict"].replace("_", " "), f"{row['cpu_seconds']:.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", progress_note("ablations")])


def thousand_table(profile: str = "cpu") -> str:
    """Markdown: the finished runs of a profile on a thousand prompts, by group of prompts."""
    from rlhf_helpers.show.results_tables import finished_runs

    lines = [
        "| seed | prompts | n | reward before → after | difference (95 % interval) "
        "| continuation alone | judge | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in finished_runs(profile):
        larger = evaluation_path(path)
        if larger.name == "evaluation.json":
            continue
        e = read_evaluation(larger)
        for label in ("heldout", "neutral", "hostile"):
            lines.append(_group_line(str(e["run_seed"]), label, e["groups"][label], e))
    files = f"`evaluation_1000.json` in `figures/reference_runs/{profile}/` and `figures/seeds/`"
    return "\n".join([*lines, "", f"From {files}."])


def _group_line(seed: str, label: str, group: dict[str, Any], whole: dict[str, Any]) -> str:
    d = group["paired_difference"]
    head = label == "heldout"
    cells = [
        seed if head else "", "held-out" if head else label,
        f"{group['n_prompts']:,}" if head else f"{group['n_prompts']} × "
        f"{group['n_samples'] // group['n_prompts']}",
        f"{group['reward_before']:.3f} → **{group['reward_after']:.3f}**",
        f"{d['mean']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})",
        f"{group['reward_continuation_before']:.3f} → {group['reward_continuation_after']:.3f}",
        f"{group['judge_before']:.3f} → {group['judge_after']:.3f}",
        whole["verdict"].replace("_", " ") if head else "",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def fine_tuned_table(name: str = "smollm2-135m-reviews") -> str:
    """Markdown: what supervised fine-tuning changed, and what it took, from the shipped files."""
    from rlhf_helpers.data.assets import ARTIFACTS
    from rlhf_helpers.progress import duration
    from rlhf_helpers.runs.files import read_json, read_jsonl

    metrics = read_json(ARTIFACTS / name / "metrics.json")
    log = read_jsonl(ARTIFACTS / name / "training_log.jsonl")
    config, before, after = (metrics[part] for part in ("config", "before", "after"))
    half = min(log, key=lambda line: abs(line["step"] - config["steps"] / 2))["loss"]
    return "\n".join([
        f"| {after['texts']} held-out reviews | before | after |", "|---|---|---|",
        f"| bits per byte | {before['bits_per_byte']:.3f} | **{after['bits_per_byte']:.3f}** |",
        f"| perplexity per token | {before['perplexity_per_token']:.1f} "
        f"| {after['perplexity_per_token']:.1f} |",
        "",
        f"{config['steps']} steps of {config['batch_size']} reviews, their first "
        f"{config['max_tokens']} tokens, {metrics['trained_parameters']:,} LoRA parameters (rank "
        f"{config['lora_r']}, all layers), in {duration(metrics['seconds'])}. The mean loss of "
        f"fifty steps was {half:.2f} nats a token half way and {log[-1]['loss']:.2f} at the end. "
        f"From `rlhf_helpers/artifacts/{name}/`.",
    ])  # fmt: skip


def smollm2_table() -> str:
    """Markdown: what the committed runs of the profile `smollm2` changed, and what they took."""
    from rlhf_helpers.progress import duration
    from rlhf_helpers.show.results_tables import finished_runs

    lines = [
        "| seed | reward | gain (95 % interval) | hostile opening | judge | distinct-2 "
        "| self-BLEU | perplexity | KL | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for path in finished_runs("smollm2"):
        lines.append(_showcase_line(path))
    run = reference_run_dir("smollm2")
    manifest = read_manifest(run.manifest)
    ppo = next(row for row in manifest["notebooks"] if row["name"] == "04_ppo_run")
    steps = [step for step in read_metrics(run.metrics) if "objective/kl" in step]
    return "\n".join([
        *lines, "",
        "256 held-out prompts, before → after (16 texts of the hostile opening); perplexity is "
        "that of the texts under the fine-tuned model before PPO, KL in nats a sample. PPO of seed "
        f"{manifest['seed']} took {duration(ppo['seconds'])} for {len(steps)} iterations, "
        f"{ppo['seconds'] / len(steps):.0f} seconds each, in {ppo['peak_rss_bytes'] / 1e9:.1f} GB. "
        "From `figures/reference_runs/smollm2/` and `figures/seeds/`.",
    ])  # fmt: skip


def _showcase_line(path: Path) -> str:
    # Of the same prompts for all: how many distinct words there are depends on how many texts.
    e, manifest = read_evaluation(path / "evaluation.json"), read_manifest(path / "manifest.json")
    d, hostile = e["paired_difference"], e["groups"]["hostile"]

    def both(name: str, digits: int, found: dict[str, Any] = e) -> str:
        return f"{found[f'{name}_before']:.{digits}f} → {found[f'{name}_after']:.{digits}f}"

    cells = [
        str(manifest["seed"]), both("reward", 3),
        f"{d['mean']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})", both("reward", 2, hostile),
        both("judge", 3), both("distinct_2", 2), both("self_bleu", 2), both("perplexity", 1),
        f"{e['kl_per_sequence']:.1f}", e["verdict"].replace("_", " "),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


# --- docs/study.md -------------------------------------------------------------------------

# A picture stands there once it has been drawn, a table from the first finished row on.
PICTURES = {
    "five_seeds": "Reward, KL and judge against the step, every seed",
    "frontier": "Held-out reward against KL",
    "judge": "The judge's gain against the reward's",
    "ablations": "Layers, rank, learning rate and KL coefficient",
    "smollm2": "SmolLM2-135M: reward on the way, and before beside after",
}
TABLES: dict[str, Callable[[], str]] = {
    "thousand": thousand_table,
    "thousand_smollm2": lambda: thousand_table("smollm2"),
    "frontier": frontier_table,
    "ablations": ablation_table,
    "fine_tuned": fine_tuned_table,
    "smollm2": smollm2_table,
    "reward_models": reward_models_table,
    "preferences": lambda: chain_table("preferences"),
    "preferences_fluency": lambda: chain_table("preferences_fluency"),
    "preferences_lora": lambda: chain_table("preferences_lora"),
    "arithmetic": lambda: in_one_sentence(reference_run_dir("arithmetic").path),
}


def picture(name: str) -> str:
    """The Markdown of a picture, as seen from docs/; nothing where it is not drawn."""
    exists = (repo_root() / "figures" / "study" / f"{name}.png").exists()
    return f"![{PICTURES[name]}](../figures/study/{name}.png)" if exists else ""


def with_blocks(text: str) -> str:
    """The text with each `<!-- table NAME -->` and `<!-- picture NAME -->` block made anew."""
    made = {f"table {name}": table() for name, table in TABLES.items()}
    made |= {f"picture {name}": picture(name) for name in PICTURES}
    for name, content in made.items():
        block = f"<!-- {name} -->\n{content}\n<!-- /{name} -->"
        pattern = re.compile(rf"<!-- {name} -->.*?<!-- /{name} -->", re.DOTALL)
        text = pattern.sub(lambda _, block=block: block, text)
    return text


def rewrite_study_doc(path: Path) -> bool:
    """Bring the tables of docs/study.md up to date; whether anything changed."""
    before = read_text(path)
    after = with_blocks(before)
    if after != before:
        atomic_write_text(path, after)
    return after != before
