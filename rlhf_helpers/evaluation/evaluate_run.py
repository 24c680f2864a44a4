"""Evaluate finished runs on more prompts than the tutorial has time for.

    python -m rlhf_helpers evaluate runs/cpu runs/cpu-1001 --n-prompts 1000

writes evaluation_1000.json into each run directory: what evaluation.json holds, over that many
held-out prompts, and for two more groups of openings, hostile ones ("This movie was terrible") and
neutral ones. Where the run kept the samples of its interval evaluations it writes judge_course.csv
as well: the judge's mean against the step. All runs of one call meet the same prompts with the same
random streams, and the samples before training are drawn once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_helpers.config.checks import ConfigError, integer
from rlhf_helpers.config.paths import resolve_run_dir
from rlhf_helpers.config.profiles import Profile, load_profile
from rlhf_helpers.progress import printable
from rlhf_helpers.runs.contents import read_eval_samples
from rlhf_helpers.runs.files import RunDir, atomic_write_json, atomic_write_text, writing_to


def evaluate_runs(
    run_dirs: Sequence[str], n_prompts: int, samples_per_opening: int, seed: int
) -> None:
    """Evaluate each run; prints its verdict."""
    integer(2, 1_000_000)("--n-prompts", n_prompts)
    integer(1, 10_000)("--samples-per-opening", samples_per_opening)
    integer(0, 2**31)("--seed", seed)
    runs = [RunDir(resolve_run_dir(path), create=False) for path in run_dirs]
    for run in runs:  # before hours are spent on the first, see that all can be done
        run.require("policy")
        run.require("config")
        if run.eval_samples.exists():
            read_eval_samples(run.eval_samples)
    befores: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        settings = load_profile(run.path)
        prompts = more_prompts(settings, n_prompts, samples_per_opening, seed)
        with writing_to(run.path, "try again"):
            result = evaluate(run, settings, prompts, seed, befores)
            path = run.path / f"evaluation_{n_prompts}.json"
            atomic_write_json(path, result)
            said = f"{path}: {result['verdict']}. {result['verdict_reason']}"
            print(printable(said), flush=True)
            if run.eval_samples.exists():
                write_judge_course(run, settings)


def more_prompts(profile: Profile, n: int, per_opening: int, seed: int) -> list:
    """The first n held-out prompts, and the hostile and neutral openings several times each."""
    from rlhf_helpers.data.reviews import heldout_prompts, load_reviews
    from rlhf_helpers.rewards.task import prompt_of

    from .before_after import HEADLINE_GROUP, HOSTILE_PROMPTS, NEUTRAL_PROMPTS
    from .sampling import EvalPrompt

    heldout = heldout_prompts(load_reviews(profile.assets["data"]), profile.prompts["words"], n)
    if len(heldout) < n:
        raise ConfigError(f"--n-prompts is {n}: there are {len(heldout)} held-out prompts.")
    chosen = [(p, HEADLINE_GROUP) for p in heldout]
    chosen += [(p, "hostile") for p in HOSTILE_PROMPTS for _ in range(per_opening)]
    chosen += [(p, "neutral") for p in NEUTRAL_PROMPTS for _ in range(per_opening)]
    first = seed * 1_000_000
    return [
        EvalPrompt(prompt_of(profile, opening), group, first + i)
        for i, (opening, group) in enumerate(chosen)
    ]


def evaluate(
    run: RunDir, settings: Profile, prompts: Sequence, seed: int, befores: dict[str, list]
) -> dict[str, Any]:
    """Before and after on these prompts; `befores` keeps samples that further runs share."""
    from rlhf_helpers.models.loading import load_policy, load_trained_policy
    from rlhf_helpers.rewards.judge import judge_by_name
    from rlhf_helpers.rewards.task import task_reward

    from .before_after import summarise_pair
    from .sampling import sample_records

    reward_fn = task_reward(settings)
    judge = judge_by_name(settings.assets["judge"])
    method = settings.config.method
    depends = [settings.assets, settings.prompts, settings.reward, method.gen_kwargs,
               method.semantics, settings.config.train.seq_length]  # fmt: skip
    key = json.dumps(depends, sort_keys=True)
    if key not in befores:
        base = load_policy(settings.config)  # LoRA's B is zero: the untuned model
        befores[key] = sample_records(base, prompts, settings, reward_fn, judge, "Before")
    policy = load_trained_policy(run.require("policy"))
    after = sample_records(policy, prompts, settings, reward_fn, judge, f"After {run.path.name}")
    return {"run_seed": settings.config.train.seed, **summarise_pair(befores[key], after, seed)}


def write_judge_course(run: RunDir, settings: Profile) -> Path:
    """judge_course.csv: reward and judge of the samples that the run drew on its way, by step.

    The judge is asked now, of samples that were kept: no run ever sees it.
    """
    from rlhf_helpers.rewards.judge import judge_by_name

    from .sampling import judge_scores

    by_step: dict[int, list[dict[str, Any]]] = {}
    for record in read_eval_samples(run.eval_samples):
        by_step.setdefault(record["step"], []).append(record)
    judge = judge_by_name(settings.assets["judge"])
    lines = ["step,reward,judge,n"]
    for step, records in sorted(by_step.items()):
        prompts, outputs = ([r[name] for r in records] for name in ("prompt", "output"))
        judged = judge_scores(judge, prompts, outputs, settings.reward)
        reward = sum(r["reward"] for r in records) / len(records)
        lines.append(f"{step},{reward:.6g},{sum(judged) / len(judged):.6g},{len(records)}")
    path = run.path / "judge_course.csv"
    atomic_write_text(path, "\n".join(lines) + "\n")
    return path


def evaluation_path(run_dir: str | Path) -> Path:
    """The evaluation of a run that is over the most prompts, evaluation.json where it is alone."""
    larger = [
        (int(path.stem.rpartition("_")[2]), path)
        for path in Path(run_dir).glob("evaluation_*.json")
        if path.stem.rpartition("_")[2].isdigit()
    ]
    return max(larger)[1] if larger else Path(run_dir) / "evaluation.json"
