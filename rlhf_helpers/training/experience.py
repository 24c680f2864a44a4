"""Sampling, scoring and storing rollouts: one phase of PPO's two (trlX's `make_experience`)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlhf_helpers.algorithms.critic_free import (
    group_normalised_advantages,
    leave_one_out_advantages,
)
from rlhf_helpers.algorithms.ppo import RunningMoments
from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.sections import GRPOConfig, PPOConfig, RLOOConfig
from rlhf_helpers.data.prompts import Prompt, PromptStream, metadata_of, pad_prompts
from rlhf_helpers.models.kept_trunk import (
    SamplingRecord,
    final_states,
    sampling_recorded,
    trunk_states,
)
from rlhf_helpers.models.policy import Policy
from rlhf_helpers.rewards.calling import tokenizer_keyword
from rlhf_helpers.rewards.reward import call_reward_fn, check_rewards

from .processes import Processes
from .random_states import undone_on_failure
from .rollout import ChunkStatistics, RolloutStore, Scores, build_rollouts, total
from .semantics import semantics_of, sequences_of
from .sequences import Decoded, Sequences, decode, end_ids

# Seconds: sampling, the reward function (trlX's names), log-probabilities and values.
PHASES = ("time/exp_generate", "time/exp_score", "time/exp_forward")


class RewardCaller:
    """A user's reward function, called as trlX calls it, its result checked."""

    def __init__(
        self, reward_fn: Callable[..., Any], timeout_seconds: float | None = None, retries: int = 0,
        tokenizer: Any = None,
    ):  # fmt: skip
        self.reward_fn = reward_fn
        self.timeout_seconds = timeout_seconds
        self.retries = retries
        self.keywords = tokenizer_keyword(reward_fn, tokenizer)

    def __call__(self, texts: Decoded, prompts: Sequence[Prompt] = ()) -> Scores:
        """Scores of the samples: a number each, or a list of numbers each (dense rewards)."""
        lists = {"samples": texts.samples, "prompts": texts.prompts, "outputs": texts.outputs,
                 **metadata_of(prompts)}  # fmt: skip

        def call() -> Any:
            # Copies for every attempt: PPO trains on what the policy wrote, whatever is done here.
            own = {name: list(values) for name, values in lists.items()}
            return self.reward_fn(**(self.keywords | own))

        values = call_reward_fn(call, self.timeout_seconds, self.retries)
        return check_rewards(values, texts.samples, dense_ok=True)


class ScoreScaler:
    """Divides and clips scores as `scale_reward` and `cliprange_reward` say (no mean shift)."""

    def __init__(self, method: PPOConfig, processes: Processes | None = None):
        self.processes = processes  # several ones share their moments
        self.scale_reward = method.scale_reward
        self.cliprange = method.cliprange_reward
        self.ref_mean, self.ref_std = method.ref_mean, method.ref_std
        self.moments = RunningMoments()

    def __call__(self, scores: Scores) -> tuple[Scores, dict[str, float]]:
        """Scaled scores of one chunk, and the statistics of the raw ones."""
        totals = [total(s) for s in scores]
        if self.processes is not None:
            totals = self.processes.together(totals)
        sums = torch.tensor(totals)
        mean, std = self.moments.update(sums)
        if self.ref_mean is None:  # the first chunk ever is the reference
            self.ref_mean, self.ref_std = mean, std
        stats = {
            "exp_scores/mean": mean,
            "exp_scores/std": std,
            "exp_scores/running_mean": self.moments.mean,
            "exp_scores/running_std": self.moments.std,
        }
        return [self._scaled(s) for s in scores], stats

    def _scaled(self, score):
        if isinstance(score, (list, tuple)):
            return [self._scaled(s) for s in score]
        if self.scale_reward == "running":
            score = score / _divisor(self.moments.std)
        elif self.scale_reward == "ref":
            score = score / _divisor(self.ref_std)
        if self.cliprange:
            score = min(max(score, -self.cliprange), self.cliprange)
        return score

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes while scores come in."""
        return {"ref_mean": self.ref_mean, "ref_std": self.ref_std, "moments": vars(self.moments)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.ref_mean, self.ref_std = state["ref_mean"], state["ref_std"]
        self.moments = RunningMoments(**state["moments"])


def _divisor(std: float) -> float:
    # Scores that are all the same have no spread (and one score alone has none to speak of).
    return std if std > 1e-12 else 1.0


@dataclass
class Collection:
    """The rollouts of one iteration while they are being made, chunk by chunk."""

    kl_coef: float
    chunks: list[RolloutStore] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)  # of each chunk, for the KL controller
    sequence_kls: list[float] = field(default_factory=list)  # of each chunk, nats per sequence
    stats: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    def __len__(self) -> int:
        return sum(map(len, self.chunks))


class ExperienceMaker:
    """Draws prompts, samples outputs, has them scored, and turns them into rollouts."""

    def __init__(
        self,
        policy: Policy,
        method: PPOConfig,
        prompts: PromptStream,
        reward: RewardCaller,
        stop_sequences: Sequence[str] = (),
        processes: Processes | None = None,
    ):
        """`prompts` yields chunk_size / samples_per_prompt prompts at a time where each is
        sampled more than once."""
        self.policy = policy
        self.method = method
        self.prompts = prompts
        self.reward = reward
        self.stop_sequences = stop_sequences
        self.scaler = ScoreScaler(method, processes)
        self.processes = processes
        self.semantics = semantics_of(method.semantics)
        self.per_prompt = samples_per_prompt(method)
        # Chunks that were scored before something failed or the run was interrupted.
        self.collection: Collection | None = None
        self.after_chunk: Callable[[], None] = lambda: None
        self.clock = time.perf_counter  # for the times among the statistics
        self.keep_trunk = True  # False: nothing is kept for later passes (a benchmark's other half)

    def make(self, num_rollouts: int, kl_coef: float) -> tuple[RolloutStore, dict[str, float]]:
        """At least `num_rollouts` rollouts (the last chunk may overshoot) and what to log of them.

        `mean_kl` among the statistics is what the KL controller gets. Where a chunk fails, those
        before it are kept in `collection`, and the next call goes on with the chunk that failed.
        """
        started = self.clock()
        made = self.collection
        if made is None:
            made = self.collection = Collection(kl_coef)
        while len(made) < num_rollouts:
            with undone_on_failure(self.prompts):
                prompts = next(self.prompts)
                is_last = len(made) + len(prompts) * self.per_prompt >= num_rollouts
                chunk, chunk_stats, kl = self._chunk(prompts, made.kl_coef, made.stats, is_last)
            made.chunks.append(chunk)
            made.stats.update(chunk_stats)
            made.divergences.append(kl.divergence)
            made.sequence_kls.append(kl.kl_per_sequence)
            self.after_chunk()
        self.collection = None
        rollouts = RolloutStore.joined(made.chunks, self.policy.tokenizer.pad_token_id)
        if self.per_prompt == 1:
            rollouts.set_advantages(self.method.gamma, self.method.lam)
        else:
            set_group_advantages(rollouts, self.method)
        return rollouts, self._statistics(made, rollouts, started)

    def _statistics(
        self, made: Collection, rollouts: RolloutStore, started: float
    ) -> dict[str, float]:
        stats = made.stats
        sizes = [len(chunk) for chunk in made.chunks]
        mean_kl = self.semantics.controller_input(made.divergences, sizes)
        if self.processes is not None:
            mean_kl = self.processes.mean({"mean_kl": mean_kl})["mean_kl"]
        stats["mean_kl"] = mean_kl
        stats["kl_ctl_value"] = made.kl_coef
        stats["policy/sqrt_kl"] = math.sqrt(max(0.0, stats["mean_kl"]))
        stats["objective/kl"] = self.semantics.mean_of_chunks(made.sequence_kls, sizes)
        stats.update(variety(rollouts))
        stats["time/exp"] = self.clock() - started
        return stats

    def _chunk(
        self, prompts: list[Prompt], kl_coef: float, times: dict[str, float], is_last: bool
    ) -> tuple[RolloutStore, dict[str, float], ChunkStatistics]:
        """Rollouts of one chunk of prompts; seconds are added to `times`."""
        pad = self.policy.tokenizer.pad_token_id
        prompts = [prompt for prompt in prompts for _ in range(self.per_prompt)]
        ids, mask = (x.to(self.policy.device) for x in pad_prompts(prompts, pad))
        with timed(times, "time/exp_generate", self.clock):
            samples, record = self.sample(ids, mask)
        scores, sequences = self.read(ids, mask, samples, prompts, times)
        scaled, stats = self.scaler(scores)
        with timed(times, "time/exp_forward", self.clock):
            trunk = hidden = None
            if record is not None:
                kept = (sequences.tokens, sequences.attention_mask, sequences.ends, record, mask)
                trunk, hidden = trunk_states(self.policy, *kept), final_states(*kept)
            # GRPO has the penalty in its loss, all others in the reward.
            penalty = 0.0 if isinstance(self.method, GRPOConfig) else kl_coef
            rollouts, kl = build_rollouts(
                self.policy, sequences, scaled, penalty, self.semantics, trunk=trunk,
                keep_trunk=self.keep_trunk, is_last_chunk=is_last, hidden=hidden,
                measured=self.semantics.measured(len(sequences.ends), kl_coef),
            )  # fmt: skip
        rollouts.scores = [total(score) for score in scores]  # as the reward function gave them
        return rollouts, stats, kl

    def read(
        self,
        ids: Tensor,
        mask: Tensor,
        samples: Tensor,
        prompts: list[Prompt],
        times: dict[str, float],
    ) -> tuple[Scores, Sequences]:
        """The reward function's scores of samples, and the samples as the update will see them."""
        tokenizer, stops = self.policy.tokenizer, self.stop_sequences
        texts = decode(tokenizer, ids, samples, stops, self.semantics.appends_eos_text)
        with timed(times, "time/exp_score", self.clock):
            scores = self.reward(texts, prompts)
        sequences = sequences_of(
            self.semantics, tokenizer, ids, mask, samples, texts.outputs, stops,
            end_ids(tokenizer, self.gen_kwargs),
        )  # fmt: skip
        return scores, sequences

    @property
    def gen_kwargs(self) -> dict[str, Any]:
        """The settings that rollouts are sampled with."""
        return self.method.gen_experience_kwargs or self.method.gen_kwargs

    def sample(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, SamplingRecord | None]:
        """Continuations of prompts [n, Q] -> [n, Q + new tokens], with the rollouts' settings.

        Beside them what passed through the trunk meanwhile, or None where that is not kept.
        """
        kwargs = self.gen_kwargs
        with self.policy.merged_for_sampling():
            # What a compiled graph computes lies in memory that its next run overwrites.
            if not self.keep_trunk or kwargs.get("cache_implementation") == "static":
                return self.policy.generate(ids, mask, **kwargs), None
            keep_hidden = self.semantics.keeps_drawn_ids and self.policy.samples_as_it_scores
            with sampling_recorded(self.policy, keep_hidden) as record:
                return self.policy.generate(ids, mask, **kwargs), record


@contextmanager
def timed(times: dict[str, float], name: str, clock: Callable[[], float]) -> Iterator[None]:
    """Add the seconds spent within it to `times[name]`."""
    started = clock()
    yield
    times[name] += clock() - started


def variety(rollouts: RolloutStore) -> dict[str, float]:
    """How long and how varied the responses are.

    policy/entropy: sampled estimate of the policy's entropy, -mean log p(token), nats a token.
    rollout/distinct: how many different responses there are.
    """
    tokens = rollouts.loss_mask.sum().item()
    nats = -(rollouts.logprobs * rollouts.loss_mask).sum().item()
    responses = rollouts.tokens[:, rollouts.query_width :].tolist()
    seen = rollouts.attention_mask[:, rollouts.query_width :].tolist()
    different = {
        tuple(id_ for id_, real in zip(row, mask, strict=True) if real)
        for row, mask in zip(responses, seen, strict=True)
    }
    return {
        "rollout/length": tokens / len(rollouts),
        "rollout/distinct": len(different),
        "policy/entropy": nats / max(tokens, 1),
    }


def samples_per_prompt(method: PPOConfig) -> int:
    """How many samples of each prompt a method wants: 1, except for RLOO and GRPO."""
    return getattr(method, "samples_per_prompt", 1)


def prompts_per_chunk(method: PPOConfig, chunk_size: int) -> int:
    """How many prompts fill a chunk of this process; ConfigError where their samples do not fit."""
    k = samples_per_prompt(method)
    if chunk_size % k:
        raise ConfigError(
            f"method.samples_per_prompt is {k}, but a process samples {chunk_size} rollouts at "
            f"once: give a method.chunk_size that is {k} times a multiple of the processes."
        )
    return chunk_size // k


def set_group_advantages(rollouts: RolloutStore, method: PPOConfig) -> None:
    """Set each rollout's advantage among the samples of its prompt, which stand side by side.

    A response's reward is the sum over its columns: the scaled score, less RLOO's KL penalty.
    """
    groups = rollouts.rewards.sum(1).view(-1, samples_per_prompt(method))
    is_rloo = isinstance(method, RLOOConfig)
    measure = leave_one_out_advantages if is_rloo else group_normalised_advantages
    rollouts.advantages = rollouts.returns = measure(groups).reshape(-1, 1)
