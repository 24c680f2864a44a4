"""One PPO iteration, run by the code that `train()` runs, its phases timed.

    python -m rlhf_helpers.lab.bench_iteration CASE.json RESULT.json

is what `bench` starts: a process of its own, so that its memory and its threads are its own.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DistilBertConfig,
)

from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.profiles import load_profile
from rlhf_helpers.config.trl_config import TRLConfig
from rlhf_helpers.data.prompts import Prompt, PromptStream
from rlhf_helpers.models.loading import load_base, load_tokenizer, make_policy
from rlhf_helpers.models.policy import Policy
from rlhf_helpers.progress import Progress
from rlhf_helpers.runs.files import atomic_write_json, read_json
from rlhf_helpers.training.experience import ExperienceMaker, RewardCaller, timed
from rlhf_helpers.training.rollout import Scores
from rlhf_helpers.training.semantics import semantics_of, sequences_of
from rlhf_helpers.training.sequences import Sequences
from rlhf_helpers.training.trainer import PPOTrainer

from .bench_case import CLOCKS, Case
from .counted_work import (
    ModelSizes,
    Task,
    as_numbers,
    counted_work,
    flop_ratio,
    kept_bytes,
    sizes_of,
)
from .counted_work import counted_ratio as ratio_by_count
from .machine_rates import copy_rate, matmul_rate, synchronize
from .memory_measured import process_peak_bytes
from .naive import NaivePolicy
from .shapes import shape_config

PROMPT_TOKENS = 24


# --- the trainers ----------------------------------------------------------------------------


def configuration(case: Case) -> TRLConfig:
    """The case's configuration: its profile's (a shape has the post's) with what it changes."""
    config = load_profile(case.profile or "seed").config
    rollouts = case.rollouts or config.method.num_rollouts
    changes: dict[str, Any] = {
        "train.batch_size": case.batch,
        "method.num_rollouts": case.rollouts,
        "method.chunk_size": case.chunk or (min(rollouts, 128) if case.shape else None),
        "method.gen_kwargs.max_new_tokens": case.new_tokens,
        "model.num_layers_unfrozen": case.unfrozen,
        "method.semantics": case.semantics or ("corrected" if case.shape else None),
    }
    if case.shape:  # no text, so nothing ends a sample early
        new_tokens = case.new_tokens or config.method.gen_kwargs["max_new_tokens"]
        changes["method.gen_kwargs.min_new_tokens"] = new_tokens
        changes["train.seq_length"] = PROMPT_TOKENS + new_tokens
    given = {name: value for name, value in changes.items() if value is not None}
    return TRLConfig.update(config.to_dict(), given)


def make_trainers(case: Case) -> dict[str, PPOTrainer]:
    """Trainers by engine around one model: their LoRA is the same, their optimizers are not."""
    config = configuration(case)
    torch.manual_seed(config.train.seed)
    device = torch.device(case.device)
    if case.shape:
        base, tokenizer = random_model(case), _NoTokenizer.of(case)
    else:
        base, tokenizer = load_base(config.model, device), load_tokenizer(config.tokenizer)
    fast = make_policy(base, tokenizer, config)
    if not fast.has_lora:
        raise ConfigError("bench measures LoRA: give the profile model.delta_kwargs.")
    policies: dict[str, Policy] = {"fast": fast}
    if case.naive or case.memory_of == "naive":
        unfrozen = config.model.num_layers_unfrozen
        policies["naive"] = NaivePolicy(base, tokenizer, unfrozen).to(device)
    inputs = _profile_inputs(case.profile) if case.profile else None
    return {name: _trainer(case, config, p, name, inputs) for name, p in policies.items()}


def _trainer(
    case: Case, config: TRLConfig, policy: Policy, engine: str, inputs: tuple[Any, list[str]] | None
) -> PPOTrainer:
    config = TRLConfig.from_dict(config.to_dict())
    if engine == "fast" and case.static_cache:
        config.method.gen_kwargs["cache_implementation"] = "static"
    reward_fn, prompts = inputs or (lambda samples, **_: [0.0] * len(samples), None)
    trainer = PPOTrainer(config, reward_fn, policy=policy)
    if prompts is not None:
        trainer.add_prompts(prompts, prompts[:1])
    else:
        scorer = _distilbert(case) if case.reward == "distilbert" else None
        trainer.experience = TokenExperience(trainer, scorer)
    trainer.experience.keep_trunk = engine == "fast"
    trainer.experience.clock = CLOCKS[case.clock]
    return trainer


def random_model(case: Case) -> torch.nn.Module:
    """A shape with random weights: bfloat16 on a GPU, float32 on a CPU."""
    changes: dict[str, Any] = {} if case.layers is None else {"num_hidden_layers": case.layers}
    if case.tiny:
        changes |= dict(hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, intermediate_size=64,
                        num_attention_heads=4, num_key_value_heads=4, vocab_size=512,
                        num_hidden_layers=case.layers or 3)  # fmt: skip
    dtype = torch.bfloat16 if case.device == "cuda" else torch.float32
    with torch.device(case.device):
        config = shape_config(case.shape, **changes)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _distilbert(case: Case) -> torch.nn.Module:
    size = dict(dim=32, hidden_dim=64, n_heads=4) if case.tiny else {}
    with torch.device(case.device):
        return AutoModelForSequenceClassification.from_config(DistilBertConfig(**size)).eval()


def _profile_inputs(name: str) -> tuple[Any, list[str]]:
    """The reward function and the prompts of a profile, as notebook 04 takes them."""
    from rlhf_helpers.data.reviews import load_reviews, training_prompts
    from rlhf_helpers.rewards.reward import sentiment_reward

    profile = load_profile(name)
    reviews = load_reviews(profile.assets["data"])
    prompts = training_prompts(reviews, profile.prompts["words"])
    return sentiment_reward(profile.assets["reward"]), prompts


class _NoTokenizer(SimpleNamespace):
    """The ids that a policy asks its tokenizer for. Nothing is ever text."""

    @classmethod
    def of(cls, case: Case) -> _NoTokenizer:
        eos = shape_config(case.shape).eos_token_id
        return cls(pad_token_id=eos, eos_token_id=eos)


class TokenExperience(ExperienceMaker):
    """Rollouts whose prompts and samples never are text: random ids, random scores.

    Under `trlx` semantics a special token comes between prompt and response, as it does when
    the tokenizers of OPT and LLaMA tokenise an output again.
    """

    def __init__(self, trainer: PPOTrainer, scorer: torch.nn.Module | None):
        policy, config = trainer.policy, trainer.config
        generator = torch.Generator().manual_seed(config.train.seed)
        vocabulary = policy.base.config.vocab_size
        n = max(config.method.num_rollouts, config.method.chunk_size)
        ids = torch.randint(3, vocabulary, (n, PROMPT_TOKENS), generator=generator)  # none special
        stream = PromptStream(
            [Prompt(row) for row in ids.tolist()], config.method.chunk_size, config.train.seed
        )
        super().__init__(policy, config.method, stream, RewardCaller(lambda samples: samples))
        self.scorer = scorer

    def read(
        self, ids: Tensor, mask: Tensor, samples: Tensor, prompts: list[Prompt], times: dict
    ) -> tuple[Scores, Sequences]:
        """Scores of token ids, and the ids themselves."""
        with timed(times, "time/exp_score", self.clock):
            scores = torch.rand(len(samples)).tolist()
            if self.scorer is not None:
                vocabulary = self.scorer.config.vocab_size
                with torch.no_grad():
                    logits = self.scorer(samples % vocabulary).logits
                scores = logits.softmax(-1)[:, 1].float().tolist()
        if self.semantics.keeps_drawn_ids:
            tokenizer = self.policy.tokenizer
            return scores, sequences_of(self.semantics, tokenizer, ids, mask, samples)
        special = samples.new_full((len(samples), 1), self.policy.tokenizer.pad_token_id)
        width = ids.shape[1]
        tokens = torch.cat([samples[:, :width], special, samples[:, width:]], 1)
        seen = (tokens != self.policy.tokenizer.pad_token_id).long()
        end = tokens.shape[1] - 1
        return scores, Sequences(tokens, seen, width, [end] * len(tokens), seen[:, :-1])


# --- measuring -------------------------------------------------------------------------------


def run_iteration(trainer: PPOTrainer, steps: int | None = None) -> dict[str, float]:
    """Seconds of one iteration by phase; `steps` limits its optimizer steps."""
    device, clock = trainer.policy.device.type, trainer.experience.clock
    synchronize(device)
    wall, cpu, started = time.perf_counter(), time.process_time(), clock()
    trainer.store, stats = trainer.experience.make(trainer.config.method.num_rollouts, 0.05)
    made = clock()
    plan = trainer._plan()[:steps]
    for indices in plan:
        trainer.optimizer_step(indices)
    synchronize(device)
    ended = clock()
    return {
        "iteration_seconds": ended - started,
        "generate_seconds": stats["time/exp_generate"],
        "score_seconds": stats["time/exp_forward"],
        "reward_seconds": stats["time/exp_score"],
        "update_seconds": ended - made,
        "step_seconds": (ended - made) / len(plan),
        "iteration_wall_seconds": time.perf_counter() - wall,
        "iteration_cpu_seconds": time.process_time() - cpu,
    }


def measure(case: Case) -> dict[str, Any]:
    """Everything of one case but the memory of its engines on a CPU."""
    trainers = make_trainers(case)
    sizes = sizes_of(trainers["fast"].policy)
    task = task_of(trainers["fast"], case)
    for trainer in trainers.values():  # memory pools, kernels chosen, graphs compiled
        run_iteration(trainer, steps=1)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in trainers}
    peaks: dict[str, int] = {}
    rates: list[dict[str, float]] = [machine_rates(sizes, task, case)]
    with Progress(case.iterations, _title(case), unit="pair") as progress:
        for i in range(case.iterations):
            order = list(trainers) if i % 2 == 0 else list(trainers)[::-1]
            for name in order:
                trainers[name].store = None
                _start_peak(case.device)
                runs[name].append(run_iteration(trainers[name]))
                peaks[name] = max(peaks.get(name, 0), _peak(case.device))
            if case.device == "cpu":
                rates.append(machine_rates(sizes, task, case))
            progress.update()
    return _result(task, sizes, runs, peaks, rates)


def measure_memory(case: Case) -> dict[str, int]:
    """Peak memory of one engine, in a process that runs nothing else."""
    before = psutil.Process().memory_info().rss
    trainer = make_trainers(case)[case.memory_of]
    gc.collect()
    _start_peak(case.device)
    run_iteration(trainer, steps=2)  # the second step has Adam's moments
    return {"peak_memory_bytes": _peak(case.device), "libraries_bytes": before}


def task_of(trainer: PPOTrainer, case: Case) -> Task:
    """The sizes of the trainer's iterations; a profile's prompts count with their mean length."""
    config = trainer.config
    corrected = semantics_of(config.method.semantics).keeps_drawn_ids
    prompts = trainer.experience.prompts.prompts
    return Task(
        rollouts=config.method.num_rollouts,
        chunk=config.method.chunk_size,
        batch=config.train.batch_size,
        epochs=config.method.ppo_epochs,
        prompt_tokens=round(sum(len(p.input_ids) for p in prompts) / len(prompts)),
        new_tokens=config.method.gen_kwargs["max_new_tokens"],
        corrected=corrected,
        kept=not case.static_cache,
        inserted=0 if corrected or not case.shape else 1,
    )


def machine_rates(sizes: ModelSizes, task: Task, case: Case) -> dict[str, float]:
    """FLOP/s at the sizes of scoring, of an update and of the output head; bytes/s of a copy."""
    dtype = torch.bfloat16 if sizes.number_bytes == 2 else torch.float32
    chunk = min(task.chunk, task.rollouts)
    products = {
        "score_flops": (chunk * task.tokens, sizes.hidden, sizes.feed_forward),
        "update_flops": (task.batch * task.tokens, sizes.hidden, sizes.feed_forward),
        "head_flops": (task.batch * task.columns, sizes.hidden, sizes.head // sizes.hidden),
    }
    clock = CLOCKS[case.clock]
    rates = {n: matmul_rate(*size, dtype, case.device, clock) for n, size in products.items()}
    return rates | {"copy_bytes": copy_rate(case.device, clock)}


def _result(task, sizes, runs, peaks, rates) -> dict[str, Any]:
    rate = {name: statistics.median(r[name] for r in rates) for name in rates[0]}
    work = {"fast": counted_work(sizes, task, True), "naive": counted_work(sizes, task, False)}
    # The best of the measured rates: a floor must not profit from a badly shaped product.
    flops = max(rate["score_flops"], rate["update_flops"], rate["head_flops"])
    floors = {
        name: {phase: w.seconds(flops, rate["copy_bytes"]) for phase, w in phases.items()}
        for name, phases in work.items()
    }
    result: dict[str, Any] = {"task": asdict(task), "sizes": asdict(sizes), "rates": rate}
    for name, times in runs.items():
        result[name] = {key: statistics.median(t[key] for t in times) for key in times[0]}
        result[name]["tokens_per_second"] = (
            task.rollouts * task.new_tokens / result[name]["iteration_seconds"]
        )
        result[name]["peak_memory_bytes"] = peaks[name]
        result[name]["counted"] = as_numbers(work[name])
        result[name]["floor_seconds_by_phase"] = floors[name]
    result["floor_seconds"] = sum(floors["fast"].values())
    result["floor_ratio"] = result["fast"]["iteration_seconds"] / result["floor_seconds"]
    result["kept_trunk_bytes"] = kept_bytes(sizes, task)
    result["seconds_of_every_iteration"] = runs
    if "naive" in runs:
        result |= _comparison(runs, result, work, (flops, rate["copy_bytes"]))
    return result


def _comparison(runs, result, work, rates) -> dict[str, float]:
    pairs = zip(runs["naive"], runs["fast"], strict=True)
    ratios = [naive["iteration_seconds"] / fast["iteration_seconds"] for naive, fast in pairs]
    phases = ("generate", "score", "reward", "update")
    measured = {phase: result["naive"][f"{phase}_seconds"] for phase in phases}
    counted = ratio_by_count(measured, work["naive"], work["fast"], *rates)
    ratio = statistics.median(ratios)
    return {
        "ratio": ratio,
        "ratios": ratios,
        "counted_ratio": counted,
        "measured_share_of_counted": ratio / counted,
        "flop_ratio": flop_ratio(work["naive"], work["fast"]),
    }


def _title(case: Case) -> str:
    return f"{case.shape or case.profile}"


def _start_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(device: str) -> int:
    """Bytes: of the device since `_start_peak`, or of this process since it began."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return process_peak_bytes()


def main(case_path: str, result_path: str) -> None:
    """Measure the case in one JSON file and write the result to another."""
    case = Case(**read_json(Path(case_path)))
    if case.threads:
        torch.set_num_threads(case.threads)
    measured = measure_memory(case) if case.memory_of else measure(case)
    atomic_write_json(result_path, measured | {"threads": torch.get_num_threads()})


if __name__ == "__main__":
    main(*sys.argv[1:])
