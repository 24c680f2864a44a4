"""What the base model of notebook 07 can do, its card, and its files as they are shipped."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import OPTForCausalLM, PreTrainedTokenizerFast

from rlhf_helpers.config.reading import COUNT, NUMBER, read_jsonl
from rlhf_helpers.data.arithmetic import Problem, heldout_problems
from rlhf_helpers.data.assets import find_asset, write_sums
from rlhf_helpers.models.policy import Policy
from rlhf_helpers.rewards.verifiers import exact_answer, shows_steps
from rlhf_helpers.runs.files import atomic_write_json, atomic_write_text
from rlhf_helpers.training.interval_evaluation import write_answers

from .pretrain_arithmetic import LONGEST_ANSWER, ArithmeticConfig

NAME = "tiny-opt-arithmetic"
PROBLEMS, ANSWERS, SHOWN = 1000, 8, 12
SAMPLING = {"max_new_tokens": LONGEST_ANSWER, "do_sample": True, "top_k": 0, "top_p": 1.0}


def measured(policy: Policy, problems: Sequence[Problem]) -> dict[str, Any]:
    """Shares of right answers, greedy and sampled, and of answers that show running totals."""
    prompts, answers = [p.prompt for p in problems], [str(p.answer) for p in problems]
    greedy = [
        texts[0]
        for texts in write_answers(policy, prompts, 1, {**SAMPLING, "do_sample": False})
    ]
    sampled = write_answers(policy, prompts, ANSWERS, SAMPLING)
    right = [sum(exact_answer(texts, [a] * ANSWERS)) / ANSWERS
             for texts, a in zip(sampled, answers, strict=True)]  # fmt: skip
    three = [i for i, p in enumerate(problems) if len(p.terms) > 2]
    return {
        "problems": len(problems),
        "answers_per_problem": ANSWERS,
        "greedy": sum(exact_answer(greedy, answers)) / len(problems),
        "pass_at_1": sum(right) / len(right),
        "pass_at_1_of_two_terms": _mean([r for i, r in enumerate(right) if i not in set(three)]),
        "pass_at_1_of_three_terms": _mean([right[i] for i in three]),
        "running_totals_of_three_terms": _mean([shows_steps(t) for i in three for t in sampled[i]]),
        "samples": [[prompts[i], *sampled[i][:4]] for i in range(min(SHOWN, len(problems)))],
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def publish_arithmetic(
    out_dir: str | Path,
    artifact_dir: str | Path,
    model: OPTForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    config: ArithmeticConfig,
    problems: int = PROBLEMS,
) -> dict[str, Any]:
    """Write model, tokenizer, metrics, card and hashes to `artifact_dir`; return the metrics.

    The weights are float32: they are trained on as they are.
    """
    out_dir, artifact_dir = Path(out_dir), Path(artifact_dir)
    artifact_dir.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(artifact_dir)
    tokenizer.save_pretrained(artifact_dir)
    shipped = OPTForCausalLM.from_pretrained(artifact_dir, dtype=torch.float32)
    log = read_jsonl(out_dir / "log.jsonl", {"step": COUNT, "loss": NUMBER, "greedy": NUMBER})
    steps = int(torch.load(out_dir / "checkpoint.pt", weights_only=True)["step"])
    metrics = {
        "config": asdict(config),
        "parameters": sum(p.numel() for p in shipped.parameters()),
        "steps": steps,
        "training_problems": steps * config.batch_size,
        "final_training_loss_nats_per_token": log[-1]["loss"] if log else None,
        "generator_sha256": find_asset("chain-sum", "dataset").sha256,
        "heldout": measured(Policy(shipped, tokenizer), heldout_problems(problems)),
    }
    atomic_write_json(artifact_dir / "metrics.json", metrics)
    atomic_write_text(artifact_dir / "README.md", card(metrics))
    shutil.copy(out_dir / "log.jsonl", artifact_dir / "training_log.jsonl")
    write_sums(artifact_dir)
    return metrics


def card(metrics: dict[str, Any]) -> str:
    """The model card, every number from `metrics`."""
    config, heldout = metrics["config"], metrics["heldout"]
    samples = "\n".join(
        f"| `{prompt}` | {' | '.join(f'`{output}`' for output in outputs)} |"
        for prompt, *outputs in heldout["samples"]
    )
    return f"""# {NAME}

A character model that answers sums such as `83+85-22=`, made by this project as the base model of
reinforcement learning with a verifier (notebook 07). `OPTForCausalLM` with a tokenizer of 15
characters.

**Its corpus holds wrong answers on purpose**: {100 * config["wrong_share"]:.0f} % of the answers \
without steps are off by 1, 2, 9, 10 or
100. A model that reads the web has read wrong answers too; it *can* answer rightly, and does not
know that it should. Reinforcement learning then has something to choose from. An earlier trial with
a model that had only right answers to read, and too few of them, was made worse by it: pass@1 fell
from 0.23 to 0.21.

| | |
|---|---|
| parameters | {metrics["parameters"]:,} (embeddings tied to the output head), float32 |
| hidden, layers, heads, context | {config["hidden_size"]}, {config["num_layers"]}, \
{config["num_heads"]}, {config["context"]} characters |
| problems | chain_sum of reasoning-gym 0.1.25: two or three terms of one or two digits, + and − |
| sha256 of its generator | `{metrics["generator_sha256"]}` |
| held out | problems whose SHA-256 modulo 10 is 0 |
| answers | of three terms, {100 * config["steps_shown"]:.0f} % with running totals \
(`168-22=146`), all right; of the others {100 * config["wrong_share"]:.0f} % wrong |
| training | {metrics["steps"]:,} steps of {config["batch_size"]} problems; loss on the answers \
only; Muon and AdamW |
| greedy answers right | {heldout["greedy"]:.3f} of {heldout["problems"]:,} held-out problems |
| sampled answers right (pass@1) | {heldout["pass_at_1"]:.3f}, \
{heldout["answers_per_problem"]} samples each |
| of two terms, of three terms | {heldout["pass_at_1_of_two_terms"]:.3f}, \
{heldout["pass_at_1_of_three_terms"]:.3f} |
| samples of three terms with running totals | \
{100 * heldout["running_totals_of_three_terms"]:.0f} % |

Make it again with `python -m rlhf_helpers pretrain-arithmetic` (seed {config["seed"]});
`training_log.jsonl` is the log of the run that made this one. Licence: MIT.

## Twelve held-out problems, not picked

Four samples each at temperature 1.

| problem | | | | |
|---|---|---|---|---|
{samples}
"""
