"""What the files of a run directory hold: each is read here, and checked while it is read.

Somebody may have edited, cut or replaced them, so that a field of the wrong type is one sentence
(UnreadableFileError) here and no surprise later. Fields beside those that are named are welcome.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_helpers.config.reading import (
    COUNT,
    NUMBER,
    NUMBER_OR_NONE,
    TEXT,
    read_json,
    read_jsonl,
    unreadable,
)

SAMPLE = {
    "prompt": TEXT, "output": TEXT, "reward": NUMBER, "seed": COUNT, "group": TEXT,
    "reward_continuation?": NUMBER, "judge?": NUMBER, "n_tokens?": NUMBER, "kl_k1?": NUMBER,
    "kl_k3?": NUMBER, "reference_nll?": NUMBER,
}  # fmt: skip
EVAL_SAMPLE = {"step": COUNT, "prompt": TEXT, "output": TEXT, "reward": NUMBER}
METRICS = {"step": COUNT, "*": NUMBER_OR_NONE}
NOTEBOOK = {"name": TEXT, "seconds": NUMBER, "peak_rss_bytes": NUMBER, "status": TEXT}
MANIFEST = {"profile": TEXT, "seed": COUNT, "notebooks": [NOTEBOOK]}
CHANGE = {"mean": NUMBER, "low": NUMBER, "high": NUMBER}
_BEFORE_AND_AFTER = ("reward", "reward_continuation", "distinct_2")
_GROUP = {
    "n_prompts": COUNT, "n_samples": COUNT, "paired_difference": CHANGE,
    "judge_difference?": CHANGE, "reward_before": NUMBER, "reward_after": NUMBER,
    "reward_continuation_before": NUMBER, "reward_continuation_after": NUMBER,
    "judge_before?": NUMBER, "judge_after?": NUMBER,
}  # fmt: skip
EVALUATION = {
    "n_prompts": COUNT, "seed": COUNT, "kl_per_sequence": NUMBER, "paired_difference": CHANGE,
    "judge_difference?": CHANGE, "verdict?": TEXT, "verdict_reason?": TEXT, "run_seed?": COUNT,
    "groups?": {"*": _GROUP},
    **{f"{name}_{when}": NUMBER for name in _BEFORE_AND_AFTER for when in ("before", "after")},
    **{
        f"{name}_{when}?": NUMBER
        for name in ("judge", "distinct_1", "distinct_3", "self_bleu", "perplexity", "length_words",
                     "length_tokens", "ended_share", "top_4gram_share")
        for when in ("before", "after")
    },
}  # fmt: skip

# A study's baselines may have no KL that can be measured.
STUDY_EVALUATION = {**EVALUATION, "kl_per_sequence": NUMBER_OR_NONE, "verdict": TEXT}


def read_samples(path: str | Path) -> list[dict[str, Any]]:
    """baseline_samples.jsonl or after_samples.jsonl; at least one sample."""
    return _filled(read_jsonl(path, SAMPLE), path, "sample")


def read_eval_samples(path: str | Path) -> list[dict[str, Any]]:
    """eval_samples.jsonl: what a run sampled on its way."""
    return read_jsonl(path, EVAL_SAMPLE)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """metrics.jsonl; at least one line."""
    return _filled(read_jsonl(path, METRICS), path, "line of metrics")


def read_manifest(path: str | Path) -> dict[str, Any]:
    """manifest.json."""
    return read_json(path, MANIFEST)


def read_evaluation(path: str | Path) -> dict[str, Any]:
    """evaluation.json, or another evaluation of the same form."""
    return read_json(path, EVALUATION)


def _filled(records: list[dict[str, Any]], path: str | Path, what: str) -> list[dict[str, Any]]:
    if not records:
        raise unreadable(path, f"it holds no {what}")
    return records
