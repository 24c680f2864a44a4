"""What a run needs, by part, beside what this machine has: the texts and tables of `memory`.

python -m rlhf_helpers memory                                   # every profile, on CPU and GPU
python -m rlhf_helpers memory --profile cpu --set method.chunk_size=32
python -m rlhf_helpers memory --table --out figures/bench       # predicted beside measured
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_helpers.config.profiles import load_profile, profile_names
from rlhf_helpers.config.trl_config import TRLConfig
from rlhf_helpers.progress import Progress
from rlhf_helpers.runs.files import atomic_write_text

from .memory import MemoryPrediction, available_bytes, largest_part, predict, predict_profile
from .shapes import shape_config

GB = 1e9
PROMPT_TOKENS = 24  # of the random prompts that are measured


@dataclass(frozen=True)
class Case:
    """One configuration to predict and to measure."""

    shape: str
    batch: int
    rollouts: int
    new_tokens: int
    chunk: int
    layers: int = 2
    modules: str = "attention"  # "none": no LoRA, the layers themselves learn
    in_4bit: bool = False

    def config(self, dtype: str) -> TRLConfig:
        """The post's configuration with these sizes."""
        return load_profile("seed", overrides={
            "train.batch_size": self.batch, "train.seq_length": PROMPT_TOKENS + self.new_tokens,
            "method.num_rollouts": self.rollouts, "method.chunk_size": self.chunk,
            "method.gen_kwargs.max_new_tokens": self.new_tokens,
            "method.semantics": "corrected",  # keeps random ids as they are
            "model.num_layers_unfrozen": self.layers, "model.dtype": dtype,
            "model.load_in_4bit": self.in_4bit,
            **({"model.delta_kwargs": None} if self.modules == "none" else
               {"model.delta_kwargs.modified_modules": self.modules}),
        }).config  # fmt: skip


# Each differs from an earlier one in what one part depends on.
CASES = (
    Case("deep", 8, 16, 40, 16),
    Case("deep", 16, 64, 40, 64),
    Case("deep", 16, 16, 80, 16, layers=24, modules="all"),
    Case("opt-125m", 8, 16, 40, 16),
    Case("opt-125m", 32, 32, 24, 16),
    Case("opt-125m", 16, 16, 16, 16, layers=4, modules="all"),
    Case("smollm2-135m", 16, 32, 24, 32, layers=4, modules="all"),
)
GPU_CASES = (
    Case("opt-125m", 32, 128, 40, 128),
    Case("opt-1.3b", 32, 128, 40, 128),
    Case("opt-1.3b", 32, 128, 40, 128, layers=24),
    Case("opt-1.3b", 32, 128, 40, 128, modules="none"),
    Case("llama-7b", 32, 128, 60, 64),
    Case("llama-7b", 32, 128, 60, 64, in_4bit=True),
)


def profile_text(prediction: MemoryPrediction) -> str:
    """The parts of one prediction, their sum, and what to lower if that is too much."""
    lines = [f"{part:28}{size / GB:8.2f} GB" for part, size in prediction.parts.items()]
    name, remedy = largest_part(prediction.parts)
    lines += [f"{'at its peak (' + prediction.peak_phase + ')':28}{prediction.peak / GB:8.2f} GB",
              f"{'available here':28}{available_bytes() / GB:8.2f} GB",
              f"Largest: {name}. To need less: {remedy}."]  # fmt: skip
    return "\n".join(lines)


def profile_rows() -> list[dict[str, Any]]:
    """Every profile on the device it is meant for: predicted GB and the largest part."""
    on_cpu = {"arithmetic", "cpu", "smoke", "smollm2", "study"}
    variants = [(name, {}) for name in profile_names()]
    variants.append(("alpaca-7b", {"model.load_in_4bit": True, "model.dtype": "float16"}))
    rows = []
    for name, overrides in variants:
        on_gpu = name not in on_cpu
        prediction = predict_profile(load_profile(name, overrides), on_gpu)
        rows.append({
            "profile": name + (", 4-bit" if overrides else ""),
            "device": "GPU" if on_gpu else "CPU", "GB": prediction.peak / GB,
            "largest": largest_part(prediction.parts)[0],
        })  # fmt: skip
    return rows


def measured_table(folder: Path, cases: tuple[Case, ...] | None = None) -> str:
    """Predict and measure every case; writes memory_<device>.csv and returns its text.

    On a CPU both numbers hold the baseline: the process before anything is loaded.
    """
    import torch

    from .memory_measured import measure

    on_gpu = torch.cuda.is_available()
    cases = cases or (GPU_CASES if on_gpu else CASES)
    rows = []
    with Progress(len(cases), "measuring", unit="case") as progress:
        for case in cases:
            shape = shape_config(case.shape)
            config = case.config("bfloat16" if on_gpu else "float32")
            prediction = predict(config, shape, PROMPT_TOKENS, on_gpu=on_gpu)
            measured = measure(config, shape, PROMPT_TOKENS)
            rows.append(row_of(case, prediction, measured))
            text = csv_text(rows)
            atomic_write_text(folder / f"memory_{'gpu' if on_gpu else 'cpu'}.csv", text)
            progress.update()
    return text


def csv_text(rows: list[dict[str, Any]]) -> str:
    """The rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def row_of(case: Case, prediction: MemoryPrediction, measured: dict[str, Any]) -> dict[str, Any]:
    """One line of the table, in MB."""
    total = measured["baseline"] + prediction.peak
    return vars(case) | {
        "peak_phase": prediction.peak_phase,
        "baseline_MB": round(measured["baseline"] / 1e6),
        "predicted_MB": round(total / 1e6),
        "measured_MB": round(measured["peak"] / 1e6),
        "error_MB": round((total - measured["peak"]) / 1e6),
        "error": round(total / measured["peak"] - 1, 3),
        "error_without_baseline": round(
            prediction.peak / (measured["peak"] - measured["baseline"]) - 1, 3
        ),
    }
