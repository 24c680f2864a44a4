"""What needs no reinforcement learning, to compare it with: best of n, fine-tuning, a prompt.

Each function returns sample records for the same held-out prompts and seeds as every other row
of a study.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rlhf_helpers.config.profiles import Profile
from rlhf_helpers.config.reading import LIST, NUMBER, TEXT, read_jsonl
from rlhf_helpers.data.reviews import REWARD_BUCKETS, load_reviews
from rlhf_helpers.evaluation.sampling import (
    EvalPrompt,
    Sample,
    costs,
    divergence,
    response_logprobs,
    sample,
    score_samples,
)
from rlhf_helpers.making.fine_tune import language_loss_of_rows
from rlhf_helpers.models.policy import Policy
from rlhf_helpers.progress import Progress
from rlhf_helpers.runs.files import write_jsonl
from rlhf_helpers.training.semantics import semantics_of

BATCH = 64

# --- best of n -----------------------------------------------------------------------------


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n sampling to the policy that it samples from, in nats: log n - (n - 1) / n.

    Exact where no two samples score the same, else an upper bound (Beirami et al. 2024,
    arXiv:2401.01879). Best-of-n has no density to measure k1 or k3 with.
    """
    return math.log(n) - (n - 1) / n


def draw_candidates(
    policy: Policy,
    prompts: Sequence[EvalPrompt],
    of: int,
    profile: Profile,
    reward_fn: Callable[..., list[float]],
    path: Path,
) -> list[dict[str, Any]]:
    """`of` samples of each prompt with their rewards; kept in `path`, batch by batch.

    The first candidate of a prompt is the very sample that the comparison has as "before".
    """
    wanted = [
        dataclasses.replace(p, seed=p.seed + 10_000_000 * i) for p in prompts for i in range(of)
    ]
    fields = {"prompt": TEXT, "output": TEXT, "reward": NUMBER, "prompt_ids": LIST,
              "output_ids": LIST}  # fmt: skip
    records = read_jsonl(path, fields) if path.exists() else []
    special = semantics_of(profile.config.method.semantics).adds_special_tokens
    room = profile.config.train.seq_length - profile.config.method.gen_kwargs["max_new_tokens"]
    with Progress(len(wanted), "Candidates", unit="sample", done=len(records)) as progress:
        for first in range(len(records), len(wanted), 4 * BATCH):
            batch = wanted[first : first + 4 * BATCH]
            samples = sample(policy, batch, profile.config.method.gen_kwargs, room, special)
            rewards = reward_fn(samples=[s.prompt + s.output for s in samples])
            records += [
                {**dataclasses.asdict(s), "reward": r}
                for s, r in zip(samples, rewards, strict=True)
            ]
            write_jsonl(path, records)
            progress.update(n=len(batch))
    return records


def best_of_n(
    policy: Policy,
    prompts: Sequence[EvalPrompt],
    candidates: Sequence[dict[str, Any]],
    n: int,
    reward_fn: Callable[..., list[float]],
    judge: Any,
) -> list[dict[str, Any]]:
    """For each prompt the sample that scores highest among its first n candidates."""
    of = len(candidates) // len(prompts)
    chosen = []
    for i, prompt in enumerate(prompts):
        best = max(candidates[i * of : i * of + n], key=lambda c: c["reward"])
        fields = {f.name: best[f.name] for f in dataclasses.fields(Sample)}
        chosen.append(Sample(**{**fields, "seed": prompt.seed}))
    records = []
    for first in range(0, len(chosen), BATCH):
        batch = chosen[first : first + BATCH]
        measured = divergence(policy, batch)
        for cost in measured:  # of the base policy to itself: not of best-of-n
            del cost["kl_k1"], cost["kl_k3"]
        records += score_samples(batch, measured, reward_fn, judge)
    return records


# --- supervised fine-tuning -------------------------------------------------------------------


def fine_tune(
    policy: Policy, profile: Profile, steps: int, batch_size: int, learning_rate: float, seed: int
) -> None:
    """Train the policy's LoRA on positive reviews, those with labels of buckets 4-9, in place.

    Cross-entropy of the first seq_length tokens of each review; AdamW at a constant rate.
    """
    reviews = load_reviews(profile.assets["data"])
    rows = zip(*(reviews[name][:] for name in ("text", "label", "bucket")), strict=True)
    texts = [text for text, label, bucket in rows if label == 1 and bucket in REWARD_BUCKETS]
    parameters = [p for n, p in policy.trainable_parameters().items() if not n.startswith("v_head")]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # of the dropout
    policy.set_dropout(active=True)
    with Progress(steps, "Fine-tuning") as progress:
        for _ in range(steps):
            chosen = torch.randint(len(texts), (batch_size,), generator=generator)
            batch = [texts[i] for i in chosen]
            loss = language_loss(policy, batch, profile.config.train.seq_length)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress.update(loss=round(loss.item(), 3))
    policy.set_dropout(active=False)


def language_loss(policy: Policy, texts: Sequence[str], seq_length: int) -> torch.Tensor:
    """Mean cross-entropy of the texts' first tokens, in nats a token, with gradients.

    Tokenised as prompts are, without special tokens in front; a text that is short enough ends
    with end-of-text, so that ending is learned too.
    """
    rows = policy.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    end = policy.tokenizer.eos_token_id
    return language_loss_of_rows(policy, [[*row, end][:seq_length] for row in rows])


# --- a positive prompt ------------------------------------------------------------------------


def with_positive_prompt(
    policy: Policy,
    prompts: Sequence[EvalPrompt],
    prefix: str,
    profile: Profile,
    reward_fn: Callable[..., list[float]],
    judge: Any,
) -> list[dict[str, Any]]:
    """Continuations that the policy writes with `prefix` in front of each prompt.

    Reward and judge see the text without the prefix. The divergence is that of the policy which
    has read the prefix from the one which has not.
    """
    method, train = profile.config.method, profile.config.train
    room = train.seq_length - method.gen_kwargs["max_new_tokens"]
    room += len(policy.tokenizer(prefix)["input_ids"])  # the prompt itself keeps its room
    special = semantics_of(method.semantics).adds_special_tokens
    records = []
    with Progress(len(prompts), "Sampling", unit="sample") as progress:
        for first in range(0, len(prompts), BATCH):
            batch = prompts[first : first + BATCH]
            longer = [dataclasses.replace(p, prompt=f"{prefix} {p.prompt}") for p in batch]
            told = sample(policy, longer, method.gen_kwargs, room, special)
            ids = policy.tokenizer([p.prompt for p in batch], add_special_tokens=special)
            plain = [
                dataclasses.replace(s, prompt=p.prompt, prompt_ids=row)
                for s, p, row in zip(told, batch, ids["input_ids"], strict=True)
            ]
            logprobs, _, counted = response_logprobs(policy, told)
            ref_logprobs, _, _ = response_logprobs(policy, plain)
            measured = costs(plain, logprobs, ref_logprobs, counted)
            records += score_samples(plain, measured, reward_fn, judge)
            progress.update(n=len(batch))
    return records
