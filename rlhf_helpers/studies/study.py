"""Run a plan of configurations and seeds, one after another, into one table.

    python -m rlhf_helpers study figures/study/frontier.yml

Every row is trained (or sampled, for baselines), then evaluated on the same held-out prompts with
the same random streams; the samples before training are drawn once a study. What is to be kept
lies under --out: `rows/<id>.json` (the whole evaluation of a finished row), `metrics/<id>.csv`
(its course) and `table.csv` (one line a row). Checkpoints, policies and samples stay under
runs/study/. A study that was stopped goes on where it was: finished rows are kept, and a row that
was interrupted continues from its checkpoint.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.paths import resolve_run_dir
from rlhf_helpers.config.profiles import Profile
from rlhf_helpers.config.reading import NUMBER, read_json, unreadable
from rlhf_helpers.evaluation.before_after import summarise_pair
from rlhf_helpers.evaluation.verdict import verdict
from rlhf_helpers.progress import duration, printable
from rlhf_helpers.runs.contents import STUDY_EVALUATION, read_metrics, read_samples
from rlhf_helpers.runs.files import (
    atomic_write_json,
    made_directory,
    refuse_link,
    refuse_links_below,
    write_jsonl,
    writing_to,
)
from rlhf_helpers.runs.manifest import library_versions

from .overoptimisation import COLUMNS, overoptimisation_rows
from .plan import LEARNED_KINDS, TRAINED_KINDS, Plan, Row
from .written import write_csv

# What the table says of each row's evaluation, in this order.
MEASURES = (
    "n_prompts", "reward_before", "reward_after", "reward_continuation_before",
    "reward_continuation_after", "judge_before", "judge_after", "kl_per_sequence", "kl_k3",
    "distinct_1_before", "distinct_1_after", "distinct_2_before", "distinct_2_after",
    "distinct_3_before", "distinct_3_after", "self_bleu_before", "self_bleu_after",
    "perplexity_before", "perplexity_after", "length_tokens_before", "length_tokens_after",
    "ended_share_before", "ended_share_after", "verdict",
)  # fmt: skip
ALSO = ("kl_analytic", "trained_parameters", "seconds", "cpu_seconds")
INTERVALS = ("paired_difference", "judge_difference")
# What rows that learn from preferences say beside these (preferences.py).
LEARNED = (
    "gold_name", "gold_before", "gold_after", "proxy_before", "proxy_after",
    "reward_model_accuracy", "ceiling",
)  # fmt: skip
# Of the metrics of a run, what its course is drawn from.
COURSE = (
    "exp_scores/mean", "objective/kl", "rollout/length", "kl_ctl_value", "reward/mean",
    "metrics/judge",
)  # fmt: skip
LEARNED_COURSE = ("metrics/sentiment", "metrics/gold", "metrics/proxy")


def run_study(
    plan: Plan, out: Path, rows: Sequence[Row] | None = None, bench: Bench | None = None
) -> Path:
    """Do every row that is not done yet; returns the table's path.

    `bench`: what the rows share, where it is at hand already. Raises CannotWriteError where `out`
    cannot be written.
    """
    for place in (out, out / "rows", out / "metrics"):
        refuse_link(place)
        made_directory(place)
    with writing_to(out, "start it again: finished rows are kept"):
        return _run(plan, out, rows, bench)


def _run(plan: Plan, out: Path, rows: Sequence[Row] | None, bench: Bench | None) -> Path:
    rows = plan.rows if rows is None else rows
    waiting = [row for row in rows if finished(plan, row, out) is None]
    print(f"{plan.name}: {len(rows)} rows, {len(rows) - len(waiting)} of them done.", flush=True)
    refresh(plan, out)
    if waiting and bench is None:
        bench = Bench(plan)
    started = time.monotonic()
    for done, row in enumerate(waiting):
        left = ""
        if done:
            seconds = (time.monotonic() - started) / done * (len(waiting) - done)
            left = f", {duration(seconds)} left"
        name = printable(row.name)
        print(f"Row {done + 1} of {len(waiting)}: {name}, seed {row.seed}{left}", flush=True)
        result = bench.do(row, out)
        atomic_write_json(out / "rows" / f"{row.id}.json", result)
        write_table(plan, out)
        change = result["evaluation"]["paired_difference"]
        print(
            f"  reward {result['evaluation']['reward_after']:.3f} ({change['mean']:+.3f}), "
            f"{result['evaluation']['verdict']}, {result['seconds']:.0f} s",
            flush=True,
        )
    return write_table(plan, out)


def finished(plan: Plan, row: Row, out: Path) -> dict[str, Any] | None:
    """What a finished row left, or None. A row whose settings have changed since is not done."""
    path = out / "rows" / f"{row.id}.json"
    if not os.path.lexists(path):
        return None
    result = read_json(path, {"row": {}, "evaluation": STUDY_EVALUATION})
    return result if result["row"] == described(plan, row) else None


def described(plan: Plan, row: Row) -> dict[str, Any]:
    """A row as its file names it: everything that its result depends on."""
    fields = {key: getattr(row, key) for key in ("name", "kind", "panel", "seed", "n_prompts")}
    shared = {"profile": plan.profile, "evaluation_seed": plan.evaluation_seed}
    described = {**fields, **shared, "set": row.set, "options": row.options}
    if row.kind in LEARNED_KINDS:
        described["preferences"] = plan.preferences_of(row.kind)
    return json.loads(json.dumps(described))


@contextmanager
def time_spent(path: Path) -> Iterator[dict[str, float]]:
    """Adds up `seconds` (wall) and `cpu_seconds` over all attempts at a row, interrupted or not.

    Yields the dict, which is complete when the context ends. On a machine that does other things
    as well, CPU time is the one to compare.
    """
    fields = {"seconds": NUMBER, "cpu_seconds": NUMBER}
    before = read_json(path, fields) if path.exists() else dict.fromkeys(fields, 0.0)
    started, cpu_started = time.perf_counter(), time.process_time()
    spent: dict[str, float] = {}
    try:
        yield spent
    finally:
        spent["seconds"] = round(before["seconds"] + time.perf_counter() - started, 1)
        cpu = before["cpu_seconds"] + time.process_time() - cpu_started
        spent["cpu_seconds"] = round(cpu, 1)
        atomic_write_json(path, spent)


# --- doing a row ---------------------------------------------------------------------------


class Bench:
    """What all rows of a study share: prompts, reward, judge, and the samples before training."""

    def __init__(self, plan: Plan):
        """Load data, reward model and judge once."""
        from rlhf_helpers.data.reviews import heldout_prompts, load_reviews
        from rlhf_helpers.evaluation.sampling import EvalPrompt
        from rlhf_helpers.rewards.judge import judge_by_name
        from rlhf_helpers.rewards.task import prompt_of, task_prompts, task_reward

        self.plan = plan
        self.work = made_directory(resolve_run_dir(f"runs/study/{plan.name}"))
        refuse_links_below(self.work)
        settings = plan.settings(plan.rows[0])
        words = settings.prompts["words"]
        reviews = load_reviews(settings.assets["data"])
        self.training_prompts = task_prompts(settings, reviews)
        most = max(row.n_prompts for row in plan.rows)
        heldout = heldout_prompts(reviews, words, most)
        if len(heldout) < most:
            raise ConfigError(f"n_prompts is {most}: there are {len(heldout)} held-out prompts.")
        first = plan.evaluation_seed * 1_000_000
        self.prompts = [
            EvalPrompt(prompt_of(settings, opening), "heldout", first + i)
            for i, opening in enumerate(heldout)
        ]
        self.reward_fn = task_reward(settings)
        self.judge = judge_by_name(settings.assets["judge"])

    @functools.cached_property
    def preferences(self):
        """Pairs, annotator and reward models, for the rows that learn from them."""
        from .preferences import Preferences

        return Preferences(
            self.plan, self.work, self.training_prompts, self.reward_fn, self.judge
        )

    def do(self, row: Row, out: Path) -> dict[str, Any]:
        """Train and evaluate one row, or sample a baseline; returns what its file holds."""
        learned = row.kind in LEARNED_KINDS
        directory = self.work / (self.preferences.folder(row) if learned else row.id)
        settings = self.plan.settings(row, directory)
        before = self.before(settings, row.n_prompts)
        self._prepare(row)
        with time_spent(directory / "spent.json") as spent:
            after, extra = self._after(row, settings, directory)
        write_jsonl(directory / "after_samples.jsonl", after)
        if learned:
            extra |= self.preferences.measured(row, before, after)
        result = {
            "id": row.id,
            "row": described(self.plan, row),
            "settings": settings.to_dict(),
            "versions": library_versions(),
            "evaluation": summarise_pair(before, after, seed=self.plan.evaluation_seed),
            **spent,
            **extra,
        }
        if row.kind in TRAINED_KINDS:
            names = COURSE + (LEARNED_COURSE if learned else ())
            write_course(directory / "metrics.jsonl", out / "metrics" / f"{row.id}.csv", names)
        return result

    def _prepare(self, row: Row) -> None:
        """Draw pairs and train the reward model before the row's own clock starts."""
        if row.kind == "dpo":
            self.preferences.some(row.options["pairs"], row.seed)
        elif row.kind in LEARNED_KINDS:
            self.preferences.reward_model(row.options["pairs"], row.seed)

    def before(self, settings: Profile, n: int) -> list[dict[str, Any]]:
        """The base model's samples of the first n held-out prompts, drawn once and kept."""
        from rlhf_helpers.evaluation.sampling import sample_records
        from rlhf_helpers.models.loading import load_policy

        method, train = settings.config.method, settings.config.train
        depends = [settings.assets, method.gen_kwargs, method.semantics, train.seq_length,
                   self.plan.evaluation_seed, len(self.prompts)]  # fmt: skip
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:12]
        path = self.work / "before" / f"{digest}.jsonl"
        if not path.exists():
            policy = load_policy(settings.config)
            write_jsonl(path, sample_records(policy, self.prompts, settings, self.reward_fn,
                                             self.judge, "Before"))  # fmt: skip
        samples = read_samples(path)
        if len(samples) != len(self.prompts):
            raise unreadable(path, f"it holds {len(samples)} samples of {len(self.prompts)}")
        return samples[:n]

    def _after(self, row: Row, settings: Profile, directory: Path):
        """Sample records of the row's policy, and what else is known of it."""
        if row.kind in TRAINED_KINDS:
            return self._trained(row, settings)
        from rlhf_helpers.models.loading import load_policy

        from . import baselines

        prompts = self.prompts[: row.n_prompts]
        policy = load_policy(settings.config)
        scoring = (self.reward_fn, self.judge)
        if row.kind in ("best-of-n", "best-of-n-learned"):
            n, of = row.options["n"], row.options["of"]
            name = "candidates" if row.kind == "best-of-n" else "corrected-candidates"
            path = self.work / f"{name}-{of}-of-{len(prompts)}.jsonl"
            candidates = baselines.draw_candidates(
                policy, prompts, of, settings, self.reward_fn, path
            )
            if row.kind == "best-of-n-learned":  # the reward model chooses, gold measures
                learned = self.preferences.reward_model(row.options["pairs"], row.seed)
                scores = learned.scores([c["prompt"] + c["output"] for c in candidates])
                candidates = [
                    {**c, "reward": r} for c, r in zip(candidates, scores, strict=True)
                ]
            records = baselines.best_of_n(policy, prompts, candidates, n, *scoring)
            return records, {"kl_analytic": baselines.best_of_n_kl(n)}
        if row.kind == "positive-prompt":
            prefix = row.options["prefix"]
            return baselines.with_positive_prompt(policy, prompts, prefix, settings, *scoring), {}
        if row.kind == "dpo":
            self._dpo(policy, row, settings, directory)
        else:
            baselines.fine_tune(policy, settings, seed=row.seed, **row.options)
        policy.save(directory / "policy", settings.config.model.model_path)
        return self._sampled(policy, row, settings), {}

    def _dpo(self, policy, row: Row, settings: Profile, directory: Path) -> None:
        from rlhf_helpers.training.semantics import semantics_of

        from .dpo import train_dpo

        options = {k: v for k, v in row.options.items() if k != "pairs"}
        pairs = self.preferences.some(row.options["pairs"], row.seed)
        special = semantics_of(settings.config.method.semantics).adds_special_tokens
        course = train_dpo(policy, pairs, seed=row.seed, add_special_tokens=special, **options)
        write_jsonl(directory / "dpo.jsonl", course)

    def _trained(self, row: Row, settings: Profile):
        from rlhf_helpers.training.api import train

        reward_fn, metric_fn = self.reward_fn, self._judged
        if row.kind == "ppo-learned":
            reward_fn = self.preferences.reward_model(row.options["pairs"], row.seed)
            metric_fn = self.preferences.metrics_of(reward_fn)
        trainer = train(
            reward_fn=reward_fn,
            prompts=self.training_prompts,
            eval_prompts=[p.prompt for p in self.prompts[: self.plan.interval_prompts]],
            metric_fn=metric_fn,
            config=settings.config,
        )
        trained = sum(p.numel() for p in trainer.trained.values())
        return self._sampled(trainer.policy, row, settings), {"trained_parameters": trained}

    def _judged(self, samples: list[str], **_: Any) -> dict[str, list[float]]:
        return {"judge": self.judge.score(samples)}

    def _sampled(self, policy, row: Row, settings: Profile) -> list[dict[str, Any]]:
        from rlhf_helpers.evaluation.sampling import sample_records

        prompts = self.prompts[: row.n_prompts]
        return sample_records(policy, prompts, settings, self.reward_fn, self.judge, "After")


# --- what is kept --------------------------------------------------------------------------


def write_course(metrics: Path, path: Path, names: Sequence[str] = COURSE) -> None:
    """The lines of metrics.jsonl that say how the run went, as a small CSV."""
    lines = [line for line in read_metrics(metrics) if any(name in line for name in names)]
    rows = [{"step": line["step"], **{k: line.get(k) for k in names}} for line in lines]
    write_csv(path, ["step", *names], rows)


def write_table(plan: Plan, out: Path) -> Path:
    """table.csv: one line for each finished row, in the plan's order.

    Rows that have not run add no column, and no overoptimisation.csv.
    """
    done = [(row, result) for row in plan.rows if (result := finished(plan, row, out))]
    results = [result for _, result in done]
    varied = list(dict.fromkeys(key for row, _ in done for key in (*row.set, *row.options)))
    rows = [table_row(result, varied) for result in results]
    bounds = [f"{name}_{bound}" for name in INTERVALS for bound in ("mean", "low", "high")]
    names = ["name", "kind", "panel", "seed", *varied, *MEASURES, *bounds, *ALSO]
    if any("gold_name" in result for result in results):
        names += LEARNED
        courses = overoptimisation_rows(results, out / "metrics", plan.interval_prompts)
        write_csv(out / "overoptimisation.csv", COLUMNS, courses)
    return write_csv(out / "table.csv", names, rows)


def refresh(plan: Plan, out: Path) -> None:
    """Say again what follows from the figures of finished rows: verdicts, and the table.

    For rows that were measured before the verdict's rules, or the table's columns, were changed.
    """
    for row in plan.rows:
        result = finished(plan, row, out)
        if result is None:
            continue
        evaluation = result["evaluation"]
        said = evaluation["verdict"], evaluation["verdict_reason"]
        evaluation["verdict"], evaluation["verdict_reason"] = verdict(evaluation)
        if said != (evaluation["verdict"], evaluation["verdict_reason"]):
            atomic_write_json(out / "rows" / f"{row.id}.json", result)
    write_table(plan, out)


def table_row(result: dict[str, Any], varied: Sequence[str]) -> dict[str, Any]:
    """One line of the table."""
    row, evaluation = result["row"], result["evaluation"]
    intervals = {
        f"{name}_{bound}": value
        for name in INTERVALS
        for bound, value in (evaluation[name] or {}).items()
    }
    given = {**row["set"], **row["options"]}
    return {
        **{key: row[key] for key in ("name", "kind", "panel", "seed")},
        **{key: given.get(key) for key in varied},
        **{key: evaluation[key] for key in MEASURES},
        **intervals,
        **{key: result.get(key) for key in ALSO},
        **{key: result[key] for key in LEARNED if key in result},
    }
