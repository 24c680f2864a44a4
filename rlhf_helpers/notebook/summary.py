"""What the terminal shows when a run has ended: before and after, time, memory, where it lies."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.config.reading import UnreadableFileError
from rlhf_helpers.progress import duration, printable
from rlhf_helpers.runs.contents import (
    read_evaluation,
    read_manifest,
    read_metrics,
    read_samples,
)
from rlhf_helpers.runs.files import RunDir

WIDTH = 96


def run_summary(run: RunDir) -> str:
    """The whole summary of a run directory; parts whose file is missing are left out.

    A file that cannot be read has its sentence there: the run itself is done.
    """
    parts = [_readable(part, run) for part in (before_after_table, results, costs, places)]
    return printable("\n\n".join(part for part in parts if part))


def _readable(part: Callable[[RunDir], str], run: RunDir) -> str:
    try:
        return part(run)
    except UnreadableFileError as error:
        return str(error)


def before_after_table(run: RunDir, n_prompts: int = 4) -> str:
    """For the post's prompts (else the first ones) the first sample before and after.

    "First" is the lowest seed, so that nobody picked it.
    """
    if not (run.baseline_samples.exists() and run.after_samples.exists()):
        return ""
    from rlhf_helpers.data.reviews import POST_EVAL_PROMPTS

    before, after = (_by_prompt(read_samples(p)) for p in (run.baseline_samples, run.after_samples))
    shared = [prompt for prompt in before if prompt in after]
    chosen = [p for p in POST_EVAL_PROMPTS if p in shared] or shared[:n_prompts]
    blocks = [_block(prompt, before[prompt], after[prompt]) for prompt in chosen[:n_prompts]]
    return "\n\n".join(["Before and after, first sample of each prompt (reward, output)", *blocks])


def _by_prompt(samples: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    first: dict[str, dict[str, Any]] = {}
    for sample in samples:
        known = first.get(sample["prompt"])
        if known is None or sample["seed"] < known["seed"]:
            first[sample["prompt"]] = sample
    return first


def _block(prompt: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    lines = [f"  {prompt} ..."]
    for label, sample in (("before", before), ("after", after)):
        head = f"    {label:6} {sample['reward']:.3f}  "
        text = " ".join(sample["output"].split())
        margin = " " * len(head)
        lines.append(
            textwrap.fill(text, WIDTH, initial_indent=head, subsequent_indent=margin)
        )
    return "\n".join(lines)


def results(run: RunDir) -> str:
    """Reward at the start and the end, with the interval, KL and diversity."""
    lines = []
    if run.metrics.exists():
        rewards = [m.get("reward/mean") for m in read_metrics(run.metrics)]
        rewards = [reward for reward in rewards if reward is not None]
        if rewards:
            lines.append(
                f"Reward on the training run's own evaluation prompts: {rewards[0]:.3f} at the "
                f"start, {rewards[-1]:.3f} at the end"
            )
    if run.evaluation.exists():
        e = read_evaluation(run.evaluation)
        d = e["paired_difference"]
        lines += [
            f"Reward on {e['n_prompts']} held-out prompts: {e['reward_before']:.3f} before, "
            f"{e['reward_after']:.3f} after; paired difference {d['mean']:+.3f} "
            f"(95 % interval {d['low']:+.3f} to {d['high']:+.3f})",
            f"KL to the untuned model: {e['kl_per_sequence']:.1f} nats per sample; distinct-2: "
            f"{e['distinct_2_before']:.3f} before, {e['distinct_2_after']:.3f} after",
        ]
        if "verdict" in e:
            lines.append(f"Verdict: {e['verdict']}")
    return "\n".join(lines)


def costs(run: RunDir) -> str:
    """Wall time and peak memory of each notebook."""
    if not run.manifest.exists():
        return ""
    rows = read_manifest(run.manifest)["notebooks"]
    if not rows:
        return ""
    lines = [f"{'notebook':36}{'time':>8}{'peak memory':>14}"]
    for row in rows:
        note = "" if row["status"] == "executed" else f"  {row['status']}"
        peak = f"{row['peak_rss_bytes'] / 1e9:.2f} GB"
        lines.append(f"{row['name']:36}{duration(row['seconds']):>8}{peak:>14}{note}")
    peak = f"{max(row['peak_rss_bytes'] for row in rows) / 1e9:.2f} GB"
    lines.append(f"{'all':36}{duration(sum(row['seconds'] for row in rows)):>8}{peak:>14}")
    return "\n".join(lines)


def places(run: RunDir) -> str:
    """Where the notebooks and figures lie, relative to the repository where they can be."""
    named = {"Executed notebooks": run.notebooks, "Figures": run.figures, "Policy": run.policy}
    return "\n".join(f"{label}: {_shown(path)}" for label, path in named.items() if path.exists())


def _shown(path: Path) -> str:
    root = repo_root()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
