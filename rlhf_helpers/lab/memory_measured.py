"""Peak memory of a real PPO iteration, phase by phase, to compare with memory.py's prediction.

    python -m rlhf_helpers memory --shape opt-125m --batch 8 --rollouts 16 --measure

A process of its own loads the model from disk, samples, scores and updates through the trainer,
with random weights and random token ids: memory does not depend on what they say. On Linux the
high-water mark of the process is set back before each phase; on a GPU torch counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from rlhf_helpers.config.trl_config import TRLConfig

MEASURED = "MEASURED "  # opens the line that holds the result


def measure(config: TRLConfig, shape: Any, prompt_tokens: int, threads: int = 1) -> dict[str, Any]:
    """Run `measure_here` in a fresh Python process; RuntimeError with its output if that fails.

    `shape` is the policy's transformers configuration.
    """
    with tempfile.TemporaryDirectory() as directory:
        job = Path(directory) / "job.json"
        job.write_text(json.dumps({
            "config": config.to_dict(), "shape": shape.to_dict(), "prompt_tokens": prompt_tokens,
        }))  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "rlhf_helpers.lab.memory_measured", str(job)],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            capture_output=True, text=True,
        )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith(MEASURED)]
    if done.returncode or not lines:
        raise RuntimeError(f"the measuring process failed:\n{done.stdout}{done.stderr}")
    return json.loads(lines[-1].removeprefix(MEASURED))


def measure_here(
    config: TRLConfig, shape: Any, prompt_tokens: int, directory: Path
) -> dict[str, Any]:
    """Bytes: `baseline` of this process before loading, `peak` in all and of each of `phases`."""
    import torch

    from rlhf_helpers.data.prompts import Prompt, PromptStream
    from rlhf_helpers.training.trainer import PPOTrainer

    path = directory / "model"
    subprocess.run(  # a process of its own: what it freed would still count here
        [sys.executable, "-c",
         "import sys; from rlhf_helpers.lab.memory_measured import write_random_model as w; "
         f"w(sys.argv[1], sys.argv[2], {config.model.dtype!r})",
         json.dumps(shape.to_dict()), str(path)], check=True)  # fmt: skip
    names = {"model_path": str(path)}, {"tokenizer_path": str(path)}
    config = config.evolve(model=names[0], tokenizer=names[1], train={"tracker": None})
    config.train.checkpoint_dir = str(directory / "run")
    Path(config.train.checkpoint_dir).mkdir()
    watch = PhaseWatch(torch.cuda.is_available())
    with watch.phase("loading"):
        trainer = PPOTrainer(config, lambda samples, **_: [0.0] * len(samples))
    trainer.add_prompts(["a"], ["a"])
    size = config.method.num_rollouts
    ids = torch.randint(3, shape.vocab_size, (size, prompt_tokens)).tolist()
    experience = trainer.experience
    experience.prompts = PromptStream([Prompt(row) for row in ids], config.method.chunk_size, 0)
    for _ in range(2):  # the second iteration has the optimizer's state and the old rollouts
        with watch.phase("rollouts"):
            trainer._collect()
        with watch.phase("update"):
            trainer.optimizer_step(trainer.plan[0])
    return {"baseline": watch.baseline, "peak": max(watch.peaks.values()), "phases": watch.peaks}


def write_random_model(shape: str, path: str, dtype: str | None) -> None:
    """A model of this shape (JSON) with random weights, and a tokenizer with every id."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    fields = json.loads(shape)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    device = "cuda" if torch.cuda.is_available() else "cpu"  # billions of random numbers
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        kind = getattr(torch, dtype or "float32")
        AutoModelForCausalLM.from_config(config, dtype=kind).save_pretrained(path)
    words = {f"t{i}": i for i in range(config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    names = {"eos_token": f"t{config.eos_token_id}", "unk_token": "t0"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(path)


class PhaseWatch:
    """Peak memory of the process (or of torch on the GPU) within each named phase, in bytes."""

    def __init__(self, on_gpu: bool):
        """Take what the process holds now as the baseline."""
        self.on_gpu = on_gpu
        self.baseline = 0 if on_gpu else psutil.Process().memory_info().rss
        self.peaks: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record the peak within; a phase that comes again keeps the higher one."""
        self._set_back()
        yield
        self.peaks[name] = max(self.peaks.get(name, 0), self._high_water())

    def _set_back(self) -> None:
        if self.on_gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()
        elif sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM := VmRSS (man 5 proc)

    def _high_water(self) -> int:
        if self.on_gpu:
            import torch

            return torch.cuda.max_memory_allocated()
        return process_peak_bytes()


def process_peak_bytes() -> int:
    """The most main memory that this program has had (Linux: since it was set back)."""
    if sys.platform == "linux":  # getrusage would count the process that forked it as well
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) * 1024
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(arguments: Sequence[str]) -> None:
    """Measure the job in a file and print the result as the last line."""
    from transformers import AutoConfig

    import rlhf_helpers.training.trainer  # noqa: F401  imported before the baseline is taken
    from rlhf_helpers.models.opendelta_import import import_opendelta

    import_opendelta()
    job = json.loads(Path(arguments[0]).read_text())
    fields = dict(job["shape"])
    shape = AutoConfig.for_model(fields.pop("model_type"), **fields)
    config = TRLConfig.from_dict(job["config"])
    with tempfile.TemporaryDirectory() as directory:
        result = measure_here(config, shape, job["prompt_tokens"], Path(directory))
    print(MEASURED + json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
