"""Every figure that needs a GPU, in one command of a few minutes.

    python -m rlhf_helpers bench --gpu-report --out figures/gpu

* OPT-1.3B with the post's settings (batch 32, 128 rollouts of 40 tokens, 4 epochs), a random
  reward model of DistilBERT's shape in the loop: 20 iterations, extrapolated to the post's
  10,000 optimizer steps without evaluations; decoded plainly, and compiled with a static cache;
* LLaMA-7B's shape in bfloat16: peak memory;
* the shapes opt-125m and deep beside their naive halves.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.runs.files import atomic_write_json
from rlhf_helpers.runs.manifest import device_report, library_versions
from rlhf_helpers.show.gpu_table import seconds_of_the_post

from .bench import bench
from .bench_case import Case

POST = Case(shape="opt-1.3b", reward="distilbert", iterations=20, naive=False)
CASES: dict[str, Case] = {
    "opt-1.3b_post": POST,
    "opt-1.3b_post_static": replace(POST, static_cache=True),
    "opt-1.3b_naive": replace(POST, iterations=5, naive=True),
    "llama-7b": Case(shape="llama-7b", iterations=2, naive=False),
    "opt-125m": Case(shape="opt-125m", iterations=5),
    "deep": Case(shape="deep", iterations=5),
}


def gpu_report(out: Path, tiny: bool = False) -> dict[str, Any]:
    """Measure all cases; <out>/<case>.json and .png of each, report.json of all.

    `tiny` tries the code anywhere, with models of hardly any width. A case that fails is
    reported as its error, and the others go on. ConfigError where there is no GPU.
    """
    if not tiny and not torch.cuda.is_available():
        raise ConfigError(
            "--gpu-report needs a CUDA device, and torch sees none: run it on a machine with a "
            "GPU (add --tiny to try the code without one)."
        )
    cases = {name: _tiny(case) for name, case in CASES.items()} if tiny else CASES
    found: dict[str, Any] = {}
    kind = "tiny_" if tiny else ""  # figures/gpu/ holds the real ones
    for name, case in cases.items():
        print(f"--- {name}", flush=True)
        try:
            found[name] = _kept(case, bench(case, out, label=kind + name))
        except ConfigError as error:
            print(error)
            found[name] = {"error": str(error)}
    report = {"device": device_report(), "versions": library_versions(), "cases": found}
    atomic_write_json(out / f"{kind}report.json", report)
    return report


def _tiny(case: Case) -> Case:
    return replace(case, tiny=True, batch=4, rollouts=8, new_tokens=6, iterations=1, threads=1)


def _kept(case: Case, result: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one case that the report shows."""
    fast = result["fast"]
    names = ("ratio", "counted_ratio", "floor_seconds", "floor_ratio", "command")
    kept = {name: result[name] for name in names if name in result}
    kept["fast"] = {key: value for key, value in fast.items() if isinstance(value, int | float)}
    if case.reward:
        kept["seconds_of_10000_steps"] = seconds_of_the_post(result)
    return kept
