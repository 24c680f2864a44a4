"""Samples for before/after comparisons: one random stream per prompt, and what each sample cost.

The same prompt with the same seed meets the same random numbers whichever policy samples, so
that before and after differ by the policy alone (common random numbers).

Shapes: B sequences of a batch, Q padded prompt length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from rlhf_helpers.algorithms.ppo import kl_k1, kl_k3
from rlhf_helpers.config.profiles import Profile
from rlhf_helpers.data.prompts import pad_prompts, tokenize_prompts
from rlhf_helpers.data.reviews import heldout_prompts, load_reviews
from rlhf_helpers.models.decoding import WARPERS, settings_in_effect, warpers
from rlhf_helpers.models.policy import Policy
from rlhf_helpers.progress import Progress
from rlhf_helpers.rewards.task import post_prompts, prompt_of
from rlhf_helpers.training.semantics import CorrectedSemantics, semantics_of, sequences_of
from rlhf_helpers.training.sequences import end_ids, to_text


@dataclass(frozen=True)
class EvalPrompt:
    """A prompt to sample from, the group it is reported in, and the seed of its random stream."""

    prompt: str
    group: str  # "heldout" or "post"
    seed: int


@dataclass
class Sample:
    """One sampled continuation."""

    prompt: str
    output: str
    prompt_ids: list[int]
    output_ids: list[int]  # the token that ended it included, if one was drawn
    ended: bool  # whether it was
    group: str
    seed: int


def evaluation_prompts(profile: Profile, reviews=None) -> list[EvalPrompt]:
    """The first N held-out openings, and the post's four prompts, several samples each."""
    reviews = reviews if reviews is not None else load_reviews(profile.assets["data"])
    n, repeats = profile.evaluation["n_prompts"], profile.evaluation["samples_per_post_prompt"]
    heldout = heldout_prompts(reviews, profile.prompts["words"], n)
    chosen = [(prompt_of(profile, opening), "heldout") for opening in heldout]
    chosen += [(prompt, "post") for prompt in post_prompts(profile)] * repeats
    first = profile.config.train.seed * 1_000_000
    return [EvalPrompt(prompt, group, first + i) for i, (prompt, group) in enumerate(chosen)]


class RowNoise(LogitsProcessor):
    """Adds each row's own Gumbel noise, so that the largest entry is an exact draw from softmax.

    Gumbel-max trick (Gumbel 1954): argmax(logits + g) with g = -log(-log(u)) is distributed as
    softmax(logits). Two policies that see the same noise mostly draw the same tokens.
    """

    def __init__(self, seeds: Sequence[int]):
        """One generator a row, on the CPU, so that a seed means the same on every device."""
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        # Which rows the scores are of: those whose texts go on (models/decoding.py); None: all.
        self.rows: Tensor | None = None
        self._read: tuple[Tensor | None, Sequence[int]] = (None, range(len(seeds)))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores [B, V] (or of `rows` only) -> the same shape"""
        if self.rows is not self._read[0]:  # read once: a GPU's host waits for it
            everyone = range(len(self.generators))
            self._read = self.rows, everyone if self.rows is None else self.rows.tolist()
        rows = self._read[1]
        draws = [torch.rand(scores.shape[1], generator=self.generators[row]) for row in rows]
        uniform = torch.stack(draws)
        uniform = uniform.clamp_(1e-10, 1 - 1e-7).to(scores.device)
        return scores.float() - torch.log(-torch.log(uniform))


def sample(
    policy: Policy,
    prompts: Sequence[EvalPrompt],
    gen_kwargs: dict[str, Any],
    max_prompt_length: int,
    add_special_tokens: bool = False,
) -> list[Sample]:
    """Continue each prompt with its own random stream; LoRA dropout off. One batch."""
    tokenizer = policy.tokenizer
    tokenised = tokenize_prompts(
        [p.prompt for p in prompts], tokenizer, max_prompt_length, add_special_tokens
    )
    ids, mask = pad_prompts(tokenised, tokenizer.pad_token_id)
    settings, processors = _without_sampling(policy, gen_kwargs, [p.seed for p in prompts])
    # A prompt opens with no end-of-text here, so every one after it was drawn.
    was_active = policy.lora_dropout_active
    policy.set_dropout(active=False)
    try:
        with policy.merged_for_sampling():
            rows = policy.generate(ids, mask, logits_processor=processors, **settings)
    finally:
        policy.set_dropout(was_active)
    ends = end_ids(tokenizer, gen_kwargs)
    kept = sequences_of(CorrectedSemantics(), tokenizer, ids, mask, rows.cpu(), ends=ends)
    samples = []
    for i, prompt in enumerate(prompts):
        end = kept.ends[i] + 1
        output_ids = kept.tokens[i, kept.query_width : end].tolist()
        samples.append(
            Sample(
                prompt=prompt.prompt,
                output=to_text(tokenizer, output_ids),
                prompt_ids=tokenised[i].input_ids,
                output_ids=output_ids,
                ended=output_ids[-1] in ends,
                group=prompt.group,
                seed=prompt.seed,
            )
        )
    return samples


def _without_sampling(
    policy: Policy, gen_kwargs: dict[str, Any], seeds: Sequence[int]
) -> tuple[dict[str, Any], LogitsProcessorList]:
    """generate()'s settings for drawing by argmax, with what it then leaves out and the noise."""
    settings = {k: v for k, v in gen_kwargs.items() if k not in WARPERS} | {"do_sample": False}
    asked = settings_in_effect(policy.base, gen_kwargs)
    if not asked.get("do_sample"):
        return settings, LogitsProcessorList()
    return settings, LogitsProcessorList([*warpers(asked), RowNoise(seeds)])


@torch.no_grad()
def response_logprobs(policy: Policy, samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """Each response token's log-probability, LoRA dropout off, at temperature 1.

    Returns three tensors [B, R]: under the policy and under the reference, in nats, and a mask
    that is 1 on response tokens, end-of-text included.
    """
    pad = policy.tokenizer.pad_token_id
    width = max(len(s.prompt_ids) for s in samples)
    length = max(len(s.output_ids) for s in samples)
    rows, masks, responses = [], [], []
    for s in samples:
        left, right = width - len(s.prompt_ids), length - len(s.output_ids)
        row = torch.tensor(s.prompt_ids + s.output_ids)
        rows.append(F.pad(row, (left, right), value=pad))
        masks.append(F.pad(torch.ones(len(row), dtype=torch.long), (left, right)))
        responses.append(F.pad(torch.ones(len(s.output_ids)), (0, right)))
    was_active, temperature = policy.lora_dropout_active, policy.temperature
    policy.set_dropout(active=False)
    policy.temperature = 1.0  # a trainer's policy has that of its run
    try:
        tokens, mask = torch.stack(rows).to(policy.device), torch.stack(masks).to(policy.device)
        scored = policy.score(tokens, mask, start=width - 1)
    finally:
        policy.set_dropout(was_active)
        policy.temperature = temperature
    return scored.logprobs, scored.ref_logprobs, torch.stack(responses).to(policy.device)


def divergence(policy: Policy, samples: Sequence[Sample]) -> list[dict[str, float]]:
    """What each sample cost: kl_k1, kl_k3, reference_nll (nats, summed) and n_tokens.

    Sums run over the response tokens; kl_k1 = sum of log pi - log pi_ref.
    """
    return costs(samples, *response_logprobs(policy, samples))


def costs(
    samples: Sequence[Sample], logprobs: Tensor, ref_logprobs: Tensor, counted: Tensor
) -> list[dict[str, float]]:
    """`divergence` from log-probabilities that are at hand, all [B, R]."""
    k1 = (kl_k1(logprobs, ref_logprobs) * counted).sum(1)
    k3 = (kl_k3(logprobs, ref_logprobs) * counted).sum(1)
    nll = -(ref_logprobs * counted).sum(1)
    return [
        {"n_tokens": len(s.output_ids), "kl_k1": a, "kl_k3": b, "reference_nll": c}
        for s, a, b, c in zip(samples, k1.tolist(), k3.tolist(), nll.tolist(), strict=True)
    ]


def sample_records(
    policy: Policy,
    prompts: Sequence[EvalPrompt],
    profile: Profile,
    reward_fn: Callable[..., list[float]],
    judge: Any | None = None,
    label: str = "Sampling",
    batch_size: int = 64,
) -> list[dict[str, Any]]:
    """Sample, score and judge every prompt; one dict a sample, as the run directory keeps it."""
    method, train = profile.config.method, profile.config.train
    room = train.seq_length - method.gen_kwargs["max_new_tokens"]
    special = semantics_of(method.semantics).adds_special_tokens
    records: list[dict[str, Any]] = []
    with Progress(len(prompts), label, unit="sample") as progress:
        for first in range(0, len(prompts), batch_size):
            batch = prompts[first : first + batch_size]
            samples = sample(policy, batch, method.gen_kwargs, room, special)
            costs = divergence(policy, samples)
            records += score_samples(samples, costs, reward_fn, judge, profile.reward)
            progress.update(n=len(batch))
    return records


def judge_scores(
    judge: Any, prompts: Sequence[str], outputs: Sequence[str], task: Mapping[str, str]
) -> list[float]:
    """What the judge thinks of each sample, read as the task's reward reads it.

    The judge says P(positive); the task may want the opposite, or of the output alone.
    """
    whole = [prompt + output for prompt, output in zip(prompts, outputs, strict=True)]
    scores = judge.score(outputs if task["text"] == "output" else whole)
    return scores if task["label"] == "POSITIVE" else [1 - score for score in scores]


def score_samples(
    samples: Sequence[Sample],
    costs: Sequence[dict[str, float]],
    reward_fn: Callable[..., list[float]],
    judge: Any | None = None,
    task: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Records of samples: the reward of the whole and of the continuation, the judge, the costs.

    `task` is a profile's `reward`: which text is judged, and which label is wanted.
    """
    task = task or {"text": "sample", "label": "POSITIVE"}
    prompts, outputs = [s.prompt for s in samples], [s.output for s in samples]
    whole = [p + o for p, o in zip(prompts, outputs, strict=True)]
    rewards = reward_fn(samples=whole, prompts=prompts, outputs=outputs)
    # The prompt's own words move the score: the continuation is scored alone as well.
    continuations = reward_fn(samples=outputs, prompts=prompts, outputs=outputs)
    judged = None if judge is None else judge_scores(judge, prompts, outputs, task)
    records = []
    for i, s in enumerate(samples):
        record = {
            "prompt": s.prompt,
            "output": s.output,
            "reward": float(rewards[i]),
            "reward_continuation": float(continuations[i]),
            "seed": s.seed,
            "group": s.group,
            "ended": s.ended,
            **costs[i],
        }
        if judged is not None:
            record["judge"] = float(judged[i])
        records.append(record)
    return records
