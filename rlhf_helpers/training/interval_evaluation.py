"""Texts of a policy that are only looked at: a run's evaluation of itself, answers to problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_helpers.data.prompts import Prompt, metadata_of, pad_prompts
from rlhf_helpers.models.policy import Policy
from rlhf_helpers.progress import Progress
from rlhf_helpers.rewards.calling import call_metric_fn

from .experience import RewardCaller
from .sequences import decode


@torch.no_grad()
def sample_and_score(
    policy: Policy,
    generate: Callable[[Tensor, Tensor], Tensor],
    prompts: Sequence[Prompt],
    reward: RewardCaller,
    stop_sequences: Sequence[str],
    batch_size: int,
) -> list[dict[str, Any]]:
    """One sample a prompt: {"prompt", "output", "reward"} each; dense rewards are summed."""
    records = []
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        ids, mask = pad_prompts(batch, policy.tokenizer.pad_token_id)
        with policy.merged_for_sampling():
            samples = generate(ids, mask)
        texts = decode(policy.tokenizer, ids, samples, stop_sequences)
        scores = reward(texts, batch)
        records += [
            {"prompt": p, "output": o, "reward": sum(s) if isinstance(s, list) else s}
            for p, o, s in zip(texts.prompts, texts.outputs, scores, strict=True)
        ]
    return records


def metric_means(
    metric_fn: Callable[..., dict[str, list[float]]],
    records: Sequence[dict[str, Any]],
    prompts: Sequence[Prompt],
) -> dict[str, float]:
    """The mean of each metric that the user's `metric_fn` computes, as metrics/<name>.

    Raises UserFunctionError where the function fails.
    """
    texts, outputs = ([r[k] for r in records] for k in ("prompt", "output"))
    samples = [p + o for p, o in zip(texts, outputs, strict=True)]
    metrics = call_metric_fn(
        metric_fn, samples=samples, prompts=texts, outputs=outputs, **metadata_of(prompts)
    )
    return {f"metrics/{name}": torch.tensor(v).mean().item() for name, v in metrics.items()}


@torch.no_grad()
def write_answers(
    policy: Policy,
    prompts: Sequence[str],
    n: int,
    gen_kwargs: dict[str, Any],
    seed: int = 0,
    batch_size: int = 1024,
    label: str = "Answers",
) -> list[list[str]]:
    """`n` outputs of the policy for each prompt, drawn as `gen_kwargs` say from `seed`.

    Prompts are whole, with special tokens, and LoRA's dropout is off. The caller's random numbers
    stay as they are.
    """
    tokenised = [Prompt(row) for row in policy.tokenizer(list(prompts))["input_ids"]]
    rows = [prompt for prompt in tokenised for _ in range(n)]
    outputs: list[str] = []
    was_active = policy.lora_dropout_active
    policy.set_dropout(active=False)
    try:
        with (
            torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []),
            policy.merged_for_sampling(),
            Progress(len(rows), label, unit="answer") as progress,
        ):
            torch.manual_seed(seed)
            for first in range(0, len(rows), batch_size):
                batch = rows[first : first + batch_size]
                ids, mask = pad_prompts(batch, policy.tokenizer.pad_token_id)
                samples = policy.generate(ids, mask, **gen_kwargs).cpu()
                outputs += decode(policy.tokenizer, ids, samples).outputs
                progress.update(n=len(batch))
    finally:
        policy.set_dropout(was_active)
    return [outputs[i * n : (i + 1) * n] for i in range(len(prompts))]
