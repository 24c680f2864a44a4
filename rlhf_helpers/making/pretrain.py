"""Make `tiny-opt-imdb`, the small OPT that this project ships, from movie reviews.

    python -m rlhf_helpers pretrain --out runs/pretrain

Minutes on a GPU; about eight hours on two slow CPU cores, estimated from the time of a step. Fewer
`--steps` give a poorer model sooner. The architecture and every module name are those of
facebook/opt-1.3b, only smaller.
Interrupted runs go on from their last checkpoint when started again with the same command.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from rlhf_helpers.config.checks import integer
from rlhf_helpers.config.reading import COUNT, NUMBER, read_jsonl, unreadable
from rlhf_helpers.data.reviews import PRETRAIN_BUCKETS, load_reviews
from rlhf_helpers.environment import local_device
from rlhf_helpers.progress import Progress
from rlhf_helpers.runs.files import (
    append_jsonl,
    write_jsonl,
    writing_to,
)

from .checkpoints import opened, read_checkpoint, save_checkpoint


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides what the shipped policy becomes."""

    seed: int = 0
    vocab_size: int = 6144
    hidden_size: int = 192
    num_layers: int = 6
    num_heads: int = 6
    context: int = 256  # tokens
    batch_rows: int = 32  # rows of `context` tokens in one optimizer step
    steps: int = 6000  # six and a half passes over the reviews
    warmup_steps: int = 60
    decay_fraction: float = 0.6  # last part of the run, over which the rate falls to 0
    muon_lr: float = 0.02
    adam_lr: float = 6e-3
    weight_decay: float = 0.02
    checkpoint_seconds: float = 300.0


# --- tokenizer -----------------------------------------------------------------------------


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with OPT's special tokens and ids; `</s>` is put in front of every text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>"],  # ids 0-3, as in OPT
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    core.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=256,
    )


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """All texts in one row of ids, each opened by `</s>`. [n_tokens] int32"""
    rows = tokenizer(texts, return_attention_mask=False)["input_ids"]
    return np.concatenate([np.asarray(row, dtype=np.int32) for row in rows])


# --- optimisation --------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for weight matrices (Jordan et al., 2024).

    torch.optim.Muon iterates in bfloat16, which costs seconds a step on a CPU without bfloat16
    units; this one iterates in float32, with matrices of one shape in one batched product.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for (rows, cols), params in by_shape.items():
                updates = torch.stack([self._momentum(p, group["momentum"]) for p in params])
                updates = orthogonalise(updates)
                scale = group["lr"] * math.sqrt(max(1.0, rows / cols))
                for p, update in zip(params, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update, alpha=-scale)

    def _momentum(self, p: torch.nn.Parameter, beta: float) -> torch.Tensor:
        state = self.state[p]
        if "buffer" not in state:
            state["buffer"] = torch.zeros_like(p.grad)
        state["buffer"].lerp_(p.grad, 1 - beta)
        return p.grad.lerp(state["buffer"], beta)  # Nesterov


def orthogonalise(g: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Push the singular values of each matrix towards 1 by Newton-Schulz steps. [n, rows, cols]

    The quintic's coefficients are those of Jordan et al. (2024), "Muon: an optimizer for hidden
    layers in neural networks"; singular values end between about 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = g.shape[-2] <= g.shape[-1]
    x = g if wide else g.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


def learning_rate_factor(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, constant, linear decay to zero: 0..1."""
    decay_steps = config.decay_fraction * config.steps
    return min(1.0, (step + 1) / config.warmup_steps, (config.steps - step) / decay_steps)


def batch_of_step(stream: np.ndarray, step: int, config: PretrainConfig) -> torch.Tensor:
    """The rows of one step, the same whenever it is asked for. [batch_rows, context + 1]"""
    width = config.context + 1
    rows_per_epoch = len(stream) // width - 1
    steps_per_epoch = rows_per_epoch // config.batch_rows
    epoch, place = divmod(step, steps_per_epoch)
    rng = np.random.default_rng([config.seed, epoch])
    offset = rng.integers(width)  # rows are cut elsewhere in every epoch
    order = rng.permutation(rows_per_epoch)
    rows = order[place * config.batch_rows : (place + 1) * config.batch_rows]
    return torch.from_numpy(
        np.stack([stream[offset + r * width : offset + (r + 1) * width] for r in rows])
    ).long()


def mean_nats(model: OPTForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Cross-entropy per token of rows [batch, context + 1], without storing all logits."""
    hidden = model.model.decoder(input_ids=rows[:, :-1]).last_hidden_state
    hidden, labels = hidden.reshape(-1, hidden.shape[-1]), rows[:, 1:].reshape(-1)
    if hasattr(F, "linear_cross_entropy") and hidden.device.type == "cpu":
        # torch 2.13; a third of the step's time saved
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=512)
        return F.linear_cross_entropy(hidden, model.lm_head.weight, labels, options=options)
    return F.cross_entropy(model.lm_head(hidden), labels)


# --- the run -------------------------------------------------------------------------------


def new_model(config: PretrainConfig) -> OPTForCausalLM:
    torch.manual_seed(config.seed)
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            word_embed_proj_dim=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            ffn_dim=4 * config.hidden_size,
            max_position_embeddings=config.context,
            dropout=0.0,
            attention_dropout=0.0,
            layerdrop=0.0,
        )
    )


def muon_and_adam(
    model: OPTForCausalLM, muon_lr: float, adam_lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, which alone decay; AdamW for embeddings, norms and biases."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        Muon(matrices, lr=muon_lr, weight_decay=weight_decay),
        torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def apply_gradients(model: OPTForCausalLM, optimizers: list[torch.optim.Optimizer]) -> None:
    """One step of both optimizers, AdamW's gradients clipped (Muon's have no scale); then none."""
    torch.nn.utils.clip_grad_norm_(optimizers[1].param_groups[0]["params"], 1.0)
    for optimizer in optimizers:
        optimizer.step()
    model.zero_grad(set_to_none=True)


def pretrain(
    out_dir: str | Path, config: PretrainConfig
) -> tuple[OPTForCausalLM, PreTrainedTokenizerFast]:
    """Train a tokenizer and a model on buckets 1-9, with a log and checkpoints in `out_dir`."""
    integer(0, 2**32 - 1)("--seed", config.seed)
    integer(1, 10_000_000)("--steps", config.steps)
    out_dir = opened(out_dir)
    with writing_to(out_dir, "start it again: it goes on from its checkpoint"):
        return _pretrain(out_dir, config)


def _pretrain(
    out_dir: Path, config: PretrainConfig
) -> tuple[OPTForCausalLM, PreTrainedTokenizerFast]:
    saved = read_checkpoint(out_dir, asdict(config), may_change=("checkpoint_",))
    reviews = load_reviews()
    texts = [r["text"] for r in reviews if r["bucket"] in PRETRAIN_BUCKETS]
    if not (out_dir / "tokenizer.json").exists():
        train_tokenizer(texts, config.vocab_size).save_pretrained(out_dir)
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out_dir)
    except Exception as error:  # of the Rust library: of no class of its own
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise unreadable(out_dir / "tokenizer.json", problem) from error
    stream = token_stream(tokenizer, texts)

    device = local_device()
    # Products on a GPU's tensor cores (TF32), as the shipped model was made.
    torch.backends.cuda.matmul.allow_tf32 = True
    model = new_model(config).train().to(device)
    optimizers = muon_and_adam(model, config.muon_lr, config.adam_lr, config.weight_decay)
    first_step = _resume(saved, out_dir, model, optimizers, config)
    started = last_saved = last_logged = time.time()
    losses: list[float] = []
    tokens_per_step = config.batch_rows * config.context
    with Progress(config.steps, "Pretraining", every_seconds=10, done=first_step) as progress:
        for step in range(first_step, config.steps):
            rows = batch_of_step(stream, step, config).to(device)
            losses.append(_step(model, optimizers, rows, step, config))
            now, mean = time.time(), float(np.mean(losses[-50:]))
            rate = tokens_per_step * len(losses) / (now - started)
            progress.update(nats_per_token=mean, tokens_per_second=round(rate))
            last = step + 1 == config.steps
            if now - last_logged > 10 or last:
                append_jsonl(out_dir / "log.jsonl", {"step": step + 1, "loss": round(mean, 4)})
                last_logged = now
            if now - last_saved > config.checkpoint_seconds or last:
                _save(out_dir, model, optimizers, step + 1, config)
                last_saved = now
    return model.eval().cpu(), tokenizer


def _step(model, optimizers, rows: torch.Tensor, step: int, config: PretrainConfig) -> float:
    """One optimizer step on rows [batch_rows, context + 1]; the loss in nats a token."""
    factor = learning_rate_factor(step, config)
    muon, adam = optimizers
    muon.param_groups[0]["lr"] = config.muon_lr * factor
    adam.param_groups[0]["lr"] = config.adam_lr * factor
    loss = mean_nats(model, rows)
    loss.backward()
    apply_gradients(model, optimizers)
    return loss.item()


def _save(out_dir: Path, model, optimizers, step: int, config: PretrainConfig) -> None:
    state = {
        "step": step,
        "config": asdict(config),
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
    }
    save_checkpoint(out_dir, state)


def _resume(state, out_dir: Path, model, optimizers, config: PretrainConfig) -> int:
    log = out_dir / "log.jsonl"
    lines = read_jsonl(log, {"step": COUNT, "loss": NUMBER}) if os.path.lexists(log) else []
    if state is None:
        write_jsonl(log, [])
        return 0
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    kept = [line for line in lines if line["step"] <= state["step"]]
    write_jsonl(log, [{"step": line["step"], "loss": round(line["loss"], 4)} for line in kept])
    print(f"resuming at step {state['step']} of {config.steps}", flush=True)
    return state["step"]
