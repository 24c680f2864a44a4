"""The same run under the real trlX and under this package, in turn, each in its own interpreter.

    python -m rlhf_helpers bench --beside-trlx trlx-env/bin/python --shape opt-125m

The clock is the reward function, which is all that the two have in common: from one rollout's
call to the next lies one whole iteration (scoring and storing, the updates, the next sampling),
whatever the code in between looks like. Periods with an evaluation in them, and the first one,
are left out.

trlX works on text, so that random ids will not do as in the other measurements: the shape's
random weights get a byte-level BPE tokenizer of its vocabulary size, trained on the reviews, and
prompts are the first 24 tokens of reviews. Rewards are numbers drawn at random. Both engines use
the same files and the same configuration (the post's, with what the options change).
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.paths import repo_root
from rlhf_helpers.config.trl_config import TRLConfig
from rlhf_helpers.runs.files import atomic_write_json, read_json

ENGINES = ("trlx", "ours", "ours-corrected")
ROUNDS = 2
PROMPTS = 256
EVALUATED = "Evaluate: "  # opens every evaluation prompt and no other


# --- what is measured: runs in either interpreter ---------------------------------------------


def timed_run(case: dict[str, Any]) -> dict[str, Any]:
    """One run of `case`; seconds of its whole iterations and the process's peak memory."""
    import torch

    from rlhf_helpers.training.api import train

    from .memory_measured import process_peak_bytes

    torch.set_num_threads(case["threads"])
    config = TRLConfig.from_dict(case["config"])
    calls: list[dict[str, Any]] = []
    numbers = random.Random(0)

    def reward_fn(samples: list[str], **_: Any) -> list[float]:
        calls.append(
            {
                "wall": time.perf_counter(),
                "cpu": time.process_time(),
                "evaluation": samples[0].startswith(EVALUATED),
            }
        )
        return [numbers.random() for _ in samples]

    arguments: dict[str, Any] = {"engine": "trlx"} if case["engine"] == "trlx" else {}
    train(reward_fn=reward_fn, prompts=case["prompts"], eval_prompts=case["eval_prompts"],
          config=config, **arguments)  # fmt: skip
    import transformers

    return {
        "periods": whole_iterations(calls),
        "peak_memory_bytes": process_peak_bytes(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def whole_iterations(calls: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Seconds from one rollout to the next where no evaluation lies between; not from the first."""
    first = next(i for i, call in enumerate(calls) if not call["evaluation"])
    later = calls[first + 1 :]
    return [
        {clock: after[clock] - before[clock] for clock in ("wall", "cpu")}
        for before, after in zip(later, later[1:], strict=False)
        if not (before["evaluation"] or after["evaluation"])
    ]


# --- the same files for both --------------------------------------------------------------------


def write_model(case: Any, folder: Path, texts: list[str]) -> None:
    """A shape with random weights and a tokenizer, in formats that transformers 4.27 reads too."""
    import torch

    from rlhf_helpers.making.pretrain import train_tokenizer

    from .bench_iteration import random_model

    torch.manual_seed(1000)
    model = random_model(case).float().cpu()
    tokenizer = train_tokenizer(texts, model.config.vocab_size)
    if len(tokenizer) != model.config.vocab_size:  # else some ids would not be text
        raise ConfigError(f"the reviews gave {len(tokenizer)} tokens for {case.shape}.")
    folder.mkdir()
    model.config.architectures = [type(model).__name__]  # trlX asks for it
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    tokenizer.backend_tokenizer.model.save(str(folder))
    special = {f"{name}_token": "</s>" for name in ("bos", "eos", "unk")} | {"pad_token": "<pad>"}
    atomic_write_json(folder / "special_tokens_map.json", special)
    atomic_write_json(
        folder / "tokenizer_config.json",
        special | {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True,
                   "add_prefix_space": False, "errors": "replace"},
    )  # fmt: skip


def openings(texts: list[str], folder: Path) -> list[str]:
    """The first 24 tokens of each of the first reviews."""
    from transformers import AutoTokenizer

    from .bench_iteration import PROMPT_TOKENS

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = tokenizer(texts[: 2 * PROMPTS], add_special_tokens=False)["input_ids"]
    rows = [row[:PROMPT_TOKENS] for row in rows if len(row) >= PROMPT_TOKENS]
    return tokenizer.batch_decode(rows[:PROMPTS])


def run_case(case: Any, engine: str, model: Path, prompts: list[str], root: Path) -> dict[str, Any]:
    """What `timed_run` needs, as JSON."""
    from .bench_iteration import configuration

    config = configuration(case).to_dict()
    steps = config["method"]["num_rollouts"] // config["train"]["batch_size"]
    steps *= config["method"]["ppo_epochs"]
    changes = {
        "model.model_path": str(model), "tokenizer.tokenizer_path": str(model),
        "method.semantics": "corrected" if engine == "ours-corrected" else "trlx",
        "train.total_steps": case.iterations * steps, "train.epochs": 10_000,
        "train.eval_interval": 10**9, "train.checkpoint_interval": 10**9,
        "train.checkpoint_dir": str(root / "run"), "train.save_best": False,
        "train.tracker": None,
    }  # fmt: skip
    if engine != "trlx":
        changes["train.checkpoint_seconds"] = 10.0**9
    return {
        "engine": engine, "threads": case.threads or 1, "prompts": prompts,
        "config": TRLConfig.update(config, changes).to_dict(),
        "eval_prompts": [EVALUATED + prompt for prompt in prompts[:2]],
    }  # fmt: skip


# --- one after another --------------------------------------------------------------------------


def beside_trlx(case: Any, python: str, out: Path) -> dict[str, Any]:
    """Run every engine ROUNDS times, in turn; write <shape>_beside_trlx.json to `out`."""
    from rlhf_helpers.data.reviews import load_reviews
    from rlhf_helpers.progress import Progress
    from rlhf_helpers.runs.manifest import device_report
    from rlhf_helpers.show.bench_figures import beside_trlx_plot
    from rlhf_helpers.show.plot_style import save_figure

    from .bench import header_of

    if not case.shape:
        raise ConfigError("--beside-trlx goes with --shape.")
    if case.iterations < 3:
        raise ConfigError(f"--iterations is {case.iterations}: give 3 or more.")
    texts = list(load_reviews()["text"])
    found: dict[str, list[dict[str, Any]]] = {engine: [] for engine in ENGINES}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_model(case, root / "model", texts)
        prompts = openings(texts, root / "model")
        with Progress(ROUNDS * len(ENGINES), f"{case.shape} beside trlX", unit="run") as progress:
            for i in range(ROUNDS):
                for engine in ENGINES if i % 2 == 0 else ENGINES[::-1]:
                    place = root / f"{engine}-{i}"
                    place.mkdir()
                    given = run_case(case, engine, root / "model", prompts, place)
                    interpreter = python if engine == "trlx" else sys.executable
                    found[engine].append(_in_process(interpreter, given, place))
                    progress.update()
    result = header_of(case) | {"engines": found, **compared(found)}
    result["command"] += " --beside-trlx trlx-env/bin/python"
    result["device"] = device_report() | {"threads": case.threads or 1}
    atomic_write_json(out / f"{case.shape}_beside_trlx.json", result)
    print(table_text(result))
    print(save_figure(beside_trlx_plot([result]), out / f"{case.shape}_beside_trlx.png"))
    return result


def _in_process(python: str, case: dict[str, Any], place: Path) -> dict[str, Any]:
    given, answer = place / "case.json", place / "result.json"
    atomic_write_json(given, case)
    threads = str(case["threads"])
    paths = [str(repo_root()), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled",
    }  # fmt: skip
    command = [python, "-m", "rlhf_helpers.lab.bench_trlx", str(given), str(answer)]
    done = subprocess.run(command, env=environment, cwd=place, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)  # fmt: skip
    if done.returncode or not answer.exists():
        print(done.stdout, file=sys.stderr)
        raise ConfigError(
            f"{case['engine']} failed with exit code {done.returncode}; its output is above. trlX "
            "needs the environment of docs/coming_from_trlx.md, and PYTHONPATH set to its checkout."
        )
    return read_json(answer)


def compared(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Median seconds of an iteration by engine and clock, and how many times trlX's it is."""
    summary: dict[str, Any] = {}
    for clock in ("wall", "cpu"):
        seconds = {
            engine: statistics.median(p[clock] for run in runs for p in run["periods"])
            for engine, runs in found.items()
        }
        summary[f"{clock}_seconds"] = seconds
        summary[f"{clock}_ratio"] = {
            engine: seconds["trlx"] / seconds[engine] for engine in seconds if engine != "trlx"
        }
    return summary


def table_text(result: dict[str, Any]) -> str:
    """Seconds of an iteration and peak memory, one line an engine."""
    from rlhf_helpers.show.bench_table import peak_bytes

    lines = [f"{'an iteration':>16}  {'seconds':>8}  {'CPU s':>8}  {'peak MB':>8}"]
    for engine, peak in peak_bytes(result).items():
        wall, cpu = (result[f"{clock}_seconds"][engine] for clock in ("wall", "cpu"))
        lines.append(f"{engine:>16}  {wall:8.2f}  {cpu:8.2f}  {peak / 1e6:8,.0f}")
    for engine, ratio in result["wall_ratio"].items():
        lines.append(
            f"trlX takes {ratio:.2f} times as long as {engine} "
            f"({result['cpu_ratio'][engine]:.2f} in CPU seconds)."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    case_path, result_path = sys.argv[1:]
    atomic_write_json(result_path, timed_run(read_json(Path(case_path))))
