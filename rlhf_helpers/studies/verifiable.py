"""The runs of notebook 07: RLOO, GRPO and PPO on sums that a program checks, and a fooled verifier.

    python -m rlhf_helpers arithmetic

Each run starts from the same base model with the same budget (optimizer steps and answers). What
was stopped goes on where it was: runs from their checkpoints, finished runs and evaluations are
kept under runs/arithmetic/. What is committed goes to figures/reference_runs/arithmetic/.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf_helpers.config.profiles import Profile, load_profile
from rlhf_helpers.config.trl_config import TRLConfig
from rlhf_helpers.data.arithmetic import (
    Problem,
    heldout_problems,
    larger_problems,
    training_problems,
)
from rlhf_helpers.evaluation.pass_at_k import KS, pass_at_k_change, pass_at_k_curve
from rlhf_helpers.models.loading import load_policy, load_trained_policy
from rlhf_helpers.models.policy import Policy
from rlhf_helpers.rewards.verifiers import (
    answer_anywhere,
    answer_metrics,
    exact_answer,
    shows_steps,
)
from rlhf_helpers.runs.files import (
    atomic_write_json,
    atomic_write_text,
    read_json,
    read_jsonl,
    write_jsonl,
)
from rlhf_helpers.training.api import train
from rlhf_helpers.training.interval_evaluation import write_answers

TRAINING_PROBLEMS, ON_THE_WAY = 50_000, 256  # problems; those of the evaluations during a run
LARGER, LARGER_ANSWERS = 200, 16  # problems one size larger, and samples of each
ANSWERS = max(KS)  # samples of each held-out problem
SHOWN = 24  # problems whose answers on the way are committed
# What is kept of a run's lines of metrics.
COURSE = (
    "step", "exp_scores/mean", "rollout/length", "rollout/teaching", "policy/entropy",
    "objective/kl", "time/exp", "time/forward", "time/backward",
)  # fmt: skip
PPO_ONLY = {"name": "PPOConfig", "gamma": 1.0, "lam": 0.95, "vf_coef": 1.0}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the study."""

    method: str  # rloo, grpo or ppo
    seed: int
    verifier: str = "strict"  # or sloppy
    budgets: int = 1  # times the profile's optimizer steps
    wide: bool = False  # twice the answers in each step, at half the learning rate

    @property
    def name(self) -> str:
        """Such as rloo-1000, rloo-long-1000, rloo-wide-1000 or rloo-sloppy-1000."""
        kind = "-long" if self.budgets > 1 else ""
        kind = "-wide" if self.wide else kind
        kind = "-sloppy" if self.verifier == "sloppy" else kind
        return f"{self.method}{kind}-{self.seed}"

    @property
    def reward_fn(self) -> Callable[..., list[float]]:
        """The verifier that pays."""
        return {"strict": exact_answer, "sloppy": answer_anywhere}[self.verifier]


# By how much each is wanted, should there be no time for all.
RUNS = (
    Run("rloo", 1000), Run("rloo", 1000, "sloppy", budgets=2), Run("grpo", 1000),
    Run("ppo", 1000), Run("rloo", 1000, budgets=2),
    Run("rloo", 1001), Run("grpo", 1001), Run("ppo", 1001),
    Run("rloo", 1002), Run("grpo", 1002), Run("ppo", 1002),
    # The course of rloo-long on training problems: no gain while the rate was above 5e-4.
    Run("rloo", 1000, budgets=3, wide=True),
)  # fmt: skip


def config_of(run: Run, profile: Profile, directory: Path) -> TRLConfig:
    """The profile's configuration with the run's method, seed and place."""
    settings = profile.config.to_dict()
    settings["train"] |= {"seed": run.seed, "checkpoint_dir": str(directory)}
    settings["train"]["total_steps"] *= run.budgets
    settings["scheduler"]["kwargs"]["T_max"] *= run.budgets
    if run.wide:
        settings["train"]["batch_size"] *= 2
        settings["method"]["num_rollouts"] *= 2
        settings["method"]["chunk_size"] *= 2
        settings["optimizer"]["kwargs"]["lr"] /= 2
        settings["scheduler"]["kwargs"]["eta_min"] /= 2
    if run.method == "grpo":
        settings["method"]["name"] = "GRPOConfig"
    if run.method == "ppo":
        del settings["method"]["samples_per_prompt"]  # as many problems as answers
        settings["method"] |= PPO_ONLY
    return TRLConfig.from_dict(settings)


def make_runs(
    work: Path, profile: Profile | None = None, only: str | None = None, answers: int = ANSWERS
) -> Path:
    """Make and evaluate the runs whose name has `only` in it; returns the rows' folder."""
    profile = profile or load_profile("arithmetic")
    rows = work / "rows"
    if not (rows / "before.json").exists():
        policy = load_policy(profile.config, "cpu")
        atomic_write_json(rows / "before.json", evaluated(policy, profile, answers))
    for run in (run for run in RUNS if only is None or only in run.name):
        row = rows / f"{run.name}.json"
        if row.exists():
            continue
        print(run.name, flush=True)
        directory = work / run.name
        is_new, started = not (directory / "metrics.jsonl").exists(), time.process_time()
        train_one(run, profile, directory)
        seconds = round(time.process_time() - started, 1) if is_new else None  # else in parts
        found = evaluated(load_trained_policy(directory / "policy", "cpu"), profile, answers)
        atomic_write_json(row, {**dataclasses.asdict(run), "cpu_seconds": seconds, **found})
    return rows


def train_one(run: Run, profile: Profile, directory: Path) -> None:
    """One run, from its beginning or its last checkpoint."""
    problems = [problem.as_prompt() for problem in training_problems(TRAINING_PROBLEMS)]
    on_the_way = [problem.as_prompt() for problem in heldout_problems(ON_THE_WAY)]
    train(
        reward_fn=run.reward_fn, prompts=problems, eval_prompts=on_the_way,
        metric_fn=answer_metrics, config=config_of(run, profile, directory),
    )  # fmt: skip


# --- evaluation ----------------------------------------------------------------------------


def evaluated(policy: Policy, profile: Profile, answers: int = ANSWERS) -> dict[str, Any]:
    """What a policy answers to the held-out problems, and to larger ones, counted."""
    problems, sampling = heldout_problems(profile.evaluation["n_prompts"]), sampling_of(profile)
    outputs = write_answers(policy, [p.prompt for p in problems], answers, sampling)
    greedy = write_answers(
        policy, [p.prompt for p in problems], 1, {**sampling, "do_sample": False}
    )
    larger = larger_problems(LARGER)
    of_larger = write_answers(policy, [p.prompt for p in larger], LARGER_ANSWERS, sampling)
    return {
        "answers": answers,
        "right": right_answers(outputs, problems),
        "sloppy": _mean(right_answers(outputs, problems, answer_anywhere)) / answers,
        "greedy": _mean(right_answers(greedy, problems)),
        "larger": _mean(right_answers(of_larger, larger)) / LARGER_ANSWERS,
        "characters": _mean([len(text) for texts in outputs for text in texts]),
        **steps_of(outputs, problems),
        "samples": [{"prompt": p.prompt, "answer": str(p.answer), "outputs": texts[:4]}
                    for p, texts in zip(problems[:SHOWN], outputs, strict=False)],
    }  # fmt: skip


def sampling_of(profile: Profile) -> dict[str, Any]:
    """The profile's settings of sampling."""
    return dict(profile.config.method.gen_kwargs)


def right_answers(
    outputs: Sequence[Sequence[str]], problems: Sequence[Problem],
    verifier: Callable[..., list[float]] = exact_answer,
) -> list[int]:  # fmt: skip
    """How many of the outputs to each problem are right."""
    return [
        int(sum(verifier(outputs=texts, answer=[str(p.answer)] * len(texts))))
        for texts, p in zip(outputs, problems, strict=True)
    ]


def steps_of(outputs: Sequence[Sequence[str]], problems: Sequence[Problem]) -> dict[str, Any]:
    """Of problems with three terms: how often running totals are shown; right with and without."""
    shown: list[float] = []
    without: list[float] = []
    for texts, p in zip(outputs, problems, strict=True):
        if len(p.terms) > 2:
            for text, right in zip(texts, exact_answer(texts, [str(p.answer)] * len(texts)),
                                   strict=True):  # fmt: skip
                (shown if shows_steps(text) else without).append(right)
    n = len(shown) + len(without)
    return {
        "steps": len(shown) / n if n else None,
        "right_with_steps": _mean(shown),
        "right_without_steps": _mean(without),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


# --- what is committed -----------------------------------------------------------------------


def write_reference_run(work: Path, out: Path, profile: Profile | None = None) -> Path:
    """evaluation.json, metrics.jsonl, samples.jsonl and profile.yml of the finished runs."""
    profile = profile or load_profile("arithmetic")
    before = read_json(work / "rows" / "before.json")
    finished = [run for run in RUNS if (work / "rows" / f"{run.name}.json").exists()]
    rows = {run.name: read_json(work / "rows" / f"{run.name}.json") for run in finished}
    out.mkdir(parents=True, exist_ok=True)
    evaluation = {
        "n_prompts": len(before["right"]),
        "answers": before["answers"],
        "before": summary(before),
        "runs": {name: summary(row, before) for name, row in rows.items()},
        "not_run": [run.name for run in RUNS if run not in finished],
    }
    atomic_write_json(out / "evaluation.json", evaluation)
    lines, samples = [], [{"run": "before", "step": 0, **s} for s in before["samples"]]
    for run in finished:
        lines += course(run, read_jsonl(work / run.name / "metrics.jsonl"))
        samples += shown_samples(run, read_jsonl(work / run.name / "eval_samples.jsonl"))
    write_jsonl(out / "metrics.jsonl", lines)
    write_jsonl(out / "samples.jsonl", samples)
    settings = yaml.safe_dump(profile.to_dict(), sort_keys=False)
    atomic_write_text(out / "profile.yml", settings)  # no config.yml: the pipeline runs no such run
    return out


def summary(row: dict[str, Any], before: dict[str, Any] | None = None) -> dict[str, Any]:
    """A row with pass@k in place of the counts: [mean, low, high] by k, and the change."""
    n = row["answers"]
    found = {k: v for k, v in row.items() if k not in ("right", "samples", "answers")}
    found["pass_at_k"] = _listed(pass_at_k_curve(row["right"], n))
    if before is not None:
        found["change"] = _listed(pass_at_k_change(before["right"], row["right"], n))
    return found


def _listed(curve: dict[int, Any]) -> dict[str, list[float]]:
    return {str(k): [round(x, 5) for x in interval] for k, interval in curve.items()}


def course(run: Run, metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A run's lines with the fields that figures and tables need, few digits each."""
    kept = []
    for line in metrics:
        own = {
            key: round(value, 4) if isinstance(value, float) else value
            for key, value in line.items()
            if key in COURSE or key.startswith("metrics/")
        }
        if len(own) > 1:
            kept.append({"run": run.name, **own})
    return kept


def shown_samples(run: Run, samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers to the first problems at each evaluation of a run."""
    kept, seen = [], {}
    for sample in samples:
        seen[sample["step"]] = seen.get(sample["step"], 0) + 1
        if seen[sample["step"]] <= SHOWN:
            kept.append({"run": run.name, **{k: sample[k] for k in ("step", "prompt", "output")}})
    return kept


def kept_answers(samples: Sequence[dict[str, Any]], run: str) -> list[dict[str, Any]]:
    """A run's lines of samples.jsonl, each with what `answer_metrics` says of its answer."""
    right = {problem.prompt: str(problem.answer) for problem in heldout_problems(SHOWN)}
    own = [sample for sample in samples if sample["run"] == run]
    said = answer_metrics([s["output"] for s in own], [right[s["prompt"]] for s in own])
    return [s | {name: values[i] for name, values in said.items()} for i, s in enumerate(own)]
