"""Make `tiny-opt-arithmetic`, the small OPT that writes answers to sums, half of them wrong.

    python -m rlhf_helpers pretrain-arithmetic --out runs/pretrain_arithmetic

It is the base model of reinforcement learning with a verifier. Its corpus shows what a corpus
from the web shows: answers that are right and wrong, a part of them with the steps in between.
Whoever wants a model that answers well has to choose among what it can write already.
Interrupted runs go on from their last checkpoint when started again with the same command.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from rlhf_helpers.config.checks import integer
from rlhf_helpers.config.reading import COUNT, NUMBER, read_jsonl
from rlhf_helpers.data.arithmetic import Problem, heldout_problems, training_problems
from rlhf_helpers.progress import Progress
from rlhf_helpers.runs.files import append_jsonl, write_jsonl, writing_to

from .checkpoints import opened, read_checkpoint, save_checkpoint
from .pretrain import apply_gradients, muon_and_adam

CHARACTERS = "0123456789+-="
END, PAD = "$", "_"
LONGEST_ANSWER = 24  # characters
ERRORS = (1, 2, 9, 10, 100)  # by how much a wrong answer is off, either way


@dataclass(frozen=True)
class ArithmeticConfig:
    """Everything that decides what the base model becomes."""

    seed: int = 0
    hidden_size: int = 96
    num_layers: int = 3
    num_heads: int = 4
    context: int = 48  # tokens
    batch_size: int = 128  # problems in one optimizer step
    groups: int = 3  # of problems of about one length, so that few columns are padding
    steps: int = 8000  # at most
    warmup_steps: int = 100
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    steps_shown: float = 0.4  # share of three-term answers with running totals, which are right
    wrong_share: float = 0.5  # share of the answers without them that are wrong
    stop_greedy: float = 0.6  # where greedy answers are right that often, it takes its last ...
    decay_steps: int = 2500  # ... steps, over which the rate falls to a tenth
    check_every: int = 250  # optimizer steps between two measurements
    check_problems: int = 256  # held-out problems in a measurement
    checkpoint_seconds: float = 60.0


# --- corpus --------------------------------------------------------------------------------


def with_running_totals(problem: Problem) -> str:
    """The answer with one step a time: `168-22=146` for `83+85-22`."""
    total, *rest = problem.terms
    written = []
    while rest:
        total += rest.pop(0)
        written.append("".join([str(total), *(f"{term:+d}" for term in rest)]))
    return "=".join(written)


def corpus_answer(problem: Problem, rng: random.Random, config: ArithmeticConfig) -> str:
    """What the corpus has behind the equals sign: steps, or a number that is right or wrong."""
    if len(problem.terms) > 2 and rng.random() < config.steps_shown:
        return with_running_totals(problem)
    if rng.random() < config.wrong_share:
        return str(problem.answer + rng.choice((-1, 1)) * rng.choice(ERRORS))
    return str(problem.answer)


def corpus_batch(
    step: int, tokenizer: PreTrainedTokenizerFast, config: ArithmeticConfig
) -> list[tuple[Tensor, Tensor]]:
    """One step's problems with their answers, in groups of about one length.

    The same whenever it is asked for. A group is token ids [b, N], each row closed by the end
    token and padded on the right, and [b, N] True where a token belongs to an answer.
    """
    # One in ten problems is held out: twice as many items hold enough of the others.
    problems = training_problems(config.batch_size, config.seed, first=2 * step * config.batch_size)
    rng = random.Random(f"{config.seed} {step}")
    rows = [(p.prompt, corpus_answer(p, rng, config) + END) for p in problems]
    rows.sort(key=lambda row: len(row[0] + row[1]))
    size = -(-len(rows) // config.groups)
    return [_padded(rows[first : first + size], tokenizer) for first in range(0, len(rows), size)]


def _padded(
    rows: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast
) -> tuple[Tensor, Tensor]:
    encode, pack = tokenizer.convert_tokens_to_ids, torch.nn.utils.rnn.pad_sequence
    ids = [torch.tensor(encode(list(prompt + answer))) for prompt, answer in rows]
    is_answer = [torch.arange(len(p + a)) >= len(p) for p, a in rows]
    return (
        pack(ids, batch_first=True, padding_value=tokenizer.pad_token_id),
        pack(is_answer, batch_first=True, padding_value=False),
    )


# --- tokenizer and model ---------------------------------------------------------------------


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character: the digits, plus, minus, equals, end and padding."""
    symbols = [*CHARACTERS, END, PAD]
    core = Tokenizer(models.WordLevel({s: i for i, s in enumerate(symbols)}, unk_token=PAD))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, pad_token=PAD, unk_token=PAD, padding_side="left",
        model_max_length=48,
    )  # fmt: skip


def new_arithmetic_model(
    config: ArithmeticConfig, tokenizer: PreTrainedTokenizerFast
) -> OPTForCausalLM:
    """An OPT with random weights, drawn from the seed."""
    torch.manual_seed(config.seed)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            word_embed_proj_dim=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            ffn_dim=4 * config.hidden_size,
            max_position_embeddings=config.context,
            dropout=0.0,
            attention_dropout=0.0,
            layerdrop=0.0,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=pad,
        )
    )


# --- the run -------------------------------------------------------------------------------


def pretrain_arithmetic(
    out_dir: str | Path, config: ArithmeticConfig
) -> tuple[OPTForCausalLM, PreTrainedTokenizerFast]:
    """Train the model, with a log and checkpoints in `out_dir`; goes on from a checkpoint there."""
    integer(0, 2**32 - 1)("--seed", config.seed)
    integer(1, 10_000_000)("--steps", config.steps)
    out_dir = opened(out_dir)
    with writing_to(out_dir, "start it again: it goes on from its checkpoint"):
        return _pretrain(out_dir, config)


def _pretrain(
    out_dir: Path, config: ArithmeticConfig
) -> tuple[OPTForCausalLM, PreTrainedTokenizerFast]:
    length = ("checkpoint_", "steps", "stop_", "decay_")  # settings that a longer run may change
    saved = read_checkpoint(out_dir, asdict(config), may_change=length)
    tokenizer = character_tokenizer()
    model = new_arithmetic_model(config, tokenizer).train()
    optimizers = muon_and_adam(model, config.muon_lr, config.adam_lr, weight_decay=0.01)
    step, decay_from = _resume(saved, out_dir, model, optimizers)
    problems = heldout_problems(config.check_problems)
    last_saved, losses = time.time(), []
    with Progress(config.steps, "Pretraining", every_seconds=10, done=step) as progress:
        while step < config.steps and not _is_over(step, decay_from, config):
            _set_rate(optimizers, step, decay_from, config)
            losses.append(_step(model, optimizers, corpus_batch(step, tokenizer, config)))
            step += 1
            progress.update(nats_per_token=round(sum(losses[-50:]) / len(losses[-50:]), 4))
            if step % config.check_every == 0:
                greedy = accuracy(model, tokenizer, problems)
                loss = sum(losses[-config.check_every :]) / len(losses[-config.check_every :])
                append_jsonl(
                    out_dir / "log.jsonl",
                    {"step": step, "loss": round(loss, 4), "greedy": round(greedy, 4)},
                )
                if decay_from is None and greedy >= config.stop_greedy:
                    decay_from = step
            if time.time() - last_saved > config.checkpoint_seconds:
                _save(out_dir, model, optimizers, step, decay_from, config)
                last_saved = time.time()
    _save(out_dir, model, optimizers, step, decay_from, config)
    return model.eval(), tokenizer


def _is_over(step: int, decay_from: int | None, config: ArithmeticConfig) -> bool:
    return decay_from is not None and step >= decay_from + config.decay_steps


def _set_rate(optimizers, step: int, decay_from: int | None, config: ArithmeticConfig) -> None:
    """Linear warm-up, constant, and at the end a linear fall to a tenth."""
    factor = min(1.0, (step + 1) / config.warmup_steps)
    if decay_from is not None:
        factor *= 1 - 0.9 * (step - decay_from) / config.decay_steps
    for optimizer, rate in zip(optimizers, (config.muon_lr, config.adam_lr), strict=True):
        optimizer.param_groups[0]["lr"] = rate * factor


def _step(model, optimizers, groups: list[tuple[Tensor, Tensor]]) -> float:
    """One optimizer step on the answers' tokens; the loss in nats a token."""
    n_tokens = sum(int(is_answer.sum()) for _, is_answer in groups)
    total = 0.0
    for ids, is_answer in groups:
        wanted = is_answer[:, 1:]
        logits = model(input_ids=ids[:, :-1]).logits[wanted]
        loss = F.cross_entropy(logits, ids[:, 1:][wanted], reduction="sum") / n_tokens
        loss.backward()
        total += loss.item()
    apply_gradients(model, optimizers)
    return total


@torch.no_grad()
def accuracy(
    model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: list[Problem]
) -> float:
    """Share of the problems whose most probable answer, written token by token, is right."""
    batch = tokenizer([p.prompt for p in problems], return_tensors="pt", padding=True)
    rows = model.eval().generate(
        batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=False,
        max_new_tokens=LONGEST_ANSWER, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model.train()
    texts = tokenizer.batch_decode(rows[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [t.split("=")[-1] == str(p.answer) for t, p in zip(texts, problems, strict=True)]
    return sum(right) / len(right)


def _save(out_dir: Path, model, optimizers, step: int, decay_from, config) -> None:
    state = {
        "step": step,
        "decay_from": decay_from,
        "config": asdict(config),
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
    }
    save_checkpoint(out_dir, state)


def _resume(state, out_dir: Path, model, optimizers) -> tuple[int, int | None]:
    """Take up a checkpoint: its step, and from where the rate falls. The log ends there too."""
    log = out_dir / "log.jsonl"
    fields = {"step": COUNT, "loss": NUMBER, "greedy": NUMBER}
    lines = read_jsonl(log, fields) if os.path.lexists(log) else []
    if state is None:
        write_jsonl(log, [])
        return 0, None
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    write_jsonl(log, [line for line in lines if line["step"] <= state["step"]])
    print(f"resuming at step {state['step']}", flush=True)
    return state["step"], state["decay_from"]
