"""What one PPO iteration has to compute, counted from sizes alone: FLOPs, bytes, tokens.

A multiplication with a weight matrix of p numbers costs 2 p FLOPs a token forward, and 2 p more
where a gradient passes back through it; a matrix that learns costs another 2 p for its own
gradient. Attention of one token to n others costs 4 n w FLOPs forward (w: width of all heads
together) and twice that back. Everything else (norms, softmax, sampling, Adam) is left out.

With the shortcuts, the frozen trunk is computed while sampling only (`trlx` semantics: once more
while scoring, unless the text tokenises to the ids that were drawn), scoring and updates pass
through the top alone, and only response columns enter the output head. Without them every pass
goes through all layers and all columns. Gradients stop at the top in both; nothing passes back
through q, k and v of its first layer, whose input does not learn.

Decoding one token reads all weights and the key-value cache once for a whole chunk: on most
machines those bytes, not its FLOPs, take the time, so both are counted. A cache that grows by
concatenation is read and written once more for every token; with the shortcuts it has its room
from the start (kv_cache.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from rlhf_helpers.models.policy import Policy

PHASES = ("generate", "score", "update")


@dataclass(frozen=True)
class Task:
    """The sizes of an iteration: how much is sampled and learnt from."""

    rollouts: int
    chunk: int  # prompts sampled at once
    batch: int  # rollouts of an optimizer step
    epochs: int  # ppo_epochs
    prompt_tokens: int
    new_tokens: int
    corrected: bool = True  # semantics
    kept: bool = True  # whether states of sampling serve scoring (under `corrected`)
    inserted: int = 0  # tokens that re-tokenising puts between prompt and response (trlx)

    @property
    def tokens(self) -> int:
        """Of one sequence that is scored."""
        return self.prompt_tokens + self.inserted + self.new_tokens

    @property
    def columns(self) -> int:
        """Of one sequence that enter the loss."""
        return self.inserted + self.new_tokens


@dataclass(frozen=True)
class ModelSizes:
    """Numbers of weights, by what passes through them."""

    layers: int
    top: int  # layers of the top
    layer: int  # weights of one layer's matrices
    qkv: int  # of them, those that the layer's input enters attention by
    attention_width: int  # all query heads together
    cache_width: int  # keys and values of one token in one layer
    head: int
    lora: int  # in all layers of the top together
    value_head: int
    hidden: int
    feed_forward: int  # width of the widest matrix of a layer
    number_bytes: int


@dataclass(frozen=True)
class Work:
    """Work of one phase."""

    flops: float
    steps: int = 0  # passes that read all weights for a single token of each sequence
    step_bytes: float = 0.0  # what each of them reads

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The least time at these rates: a decoding step takes its FLOPs or its bytes."""
        return max(self.flops / flops_per_second, self.steps * self.step_bytes / bytes_per_second)


def sizes_of(policy: Policy) -> ModelSizes:
    """The sizes of a model, from its modules."""
    config = policy.base.config.get_text_config()
    matrices = {
        name: module.weight.numel()
        for name, module in policy.layers[0].named_modules()
        if isinstance(module, nn.Linear) and "lora" not in name
    }
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    top = len(policy.layers) - policy.branch
    lora = sum(p.numel() for n, p in policy.trainable_parameters().items() if "v_head" not in n)
    entering = ("q_proj", "k_proj", "v_proj", "query_key_value", "c_attn")
    return ModelSizes(
        layers=len(policy.layers),
        top=top,
        layer=sum(matrices.values()),
        qkv=sum(n for name, n in matrices.items() if name.endswith(entering)),
        attention_width=heads * head_width,
        cache_width=2 * kv_heads * head_width,
        head=policy.base.get_output_embeddings().weight.numel(),
        lora=lora,
        value_head=sum(p.numel() for p in policy.v_head.parameters() if p.ndim == 2),
        hidden=config.hidden_size,
        feed_forward=max(matrices.values()) // config.hidden_size,
        number_bytes=next(policy.layers.parameters()).element_size(),
    )


def counted_work(sizes: ModelSizes, task: Task, shortcuts: bool) -> dict[str, Work]:
    """Work by phase of one iteration, with the shortcuts or without any."""
    parts = {"generate": _generate, "score": _score, "update": _update}
    return {phase: parts[phase](sizes, task, shortcuts) for phase in PHASES}


def _pass(sizes: ModelSizes, task: Task, layers: int) -> float:
    """FLOPs of one forward pass of all rollouts through some layers."""
    n = task.tokens
    per_token = 2 * sizes.layer + 4 * sizes.attention_width * n
    return task.rollouts * n * layers * per_token


def _generate(sizes: ModelSizes, task: Task, shortcuts: bool) -> Work:
    fed = task.prompt_tokens + task.new_tokens - 1  # the last token drawn is not fed
    per_layer = 2 * sizes.layer * fed + 4 * sizes.attention_width * _contexts(task)
    lora = 0 if shortcuts else 2 * sizes.lora * fed  # merged, or beside the weights
    flops = sizes.layers * per_layer + 2 * sizes.head * task.new_tokens + lora
    chunks = -(-task.rollouts // task.chunk)
    mean_context = task.prompt_tokens + task.new_tokens / 2
    weights = sizes.layers * sizes.layer + sizes.head
    cache = min(task.chunk, task.rollouts) * mean_context * sizes.layers * sizes.cache_width
    moved = weights + (cache if shortcuts else 3 * cache)  # read, or read, copied and written
    return Work(flops * task.rollouts, chunks * task.new_tokens, moved * sizes.number_bytes)


def _contexts(task: Task) -> float:
    """Pairs of a token and one it attends to, in one sequence that is sampled."""
    first = task.prompt_tokens
    decoded = task.new_tokens - 1
    return first * first + sum(first + i + 1 for i in range(decoded))


def _score(sizes: ModelSizes, task: Task, shortcuts: bool) -> Work:
    lora = 2 * sizes.lora * task.tokens
    if shortcuts and task.corrected and task.kept:  # the policy ran while it sampled
        layers, columns, lora = sizes.top, task.columns, 0
    elif shortcuts:
        layers, columns = sizes.layers + sizes.top, task.columns
    else:
        layers, columns = 2 * sizes.layers, task.tokens
    # trlX's mean_kl runs over all columns of the iteration's last chunk.
    everywhere = 0 if task.corrected or not shortcuts else (task.rollouts - 1) % task.chunk + 1
    head = 2 * sizes.head * (
        columns * (task.rollouts - everywhere) + (task.tokens - 1) * everywhere
    )  # fmt: skip
    value = 2 * sizes.value_head * columns
    return Work(_pass(sizes, task, layers) + 2 * head + task.rollouts * (lora + value))


def _update(sizes: ModelSizes, task: Task, shortcuts: bool) -> Work:
    n = task.tokens
    columns = task.columns if shortcuts else n
    forward = _pass(sizes, task, sizes.top if shortcuts else sizes.layers)
    through = sizes.top * (2 * sizes.layer + 8 * sizes.attention_width * n) - 2 * sizes.qkv
    backward = task.rollouts * n * through
    lora = task.rollouts * n * 6 * sizes.lora
    ends = task.rollouts * columns * (4 * sizes.head + 6 * sizes.value_head)
    return Work(task.epochs * (forward + backward + lora + ends))


def kept_bytes(sizes: ModelSizes, task: Task) -> int:
    """Trunk states that the updates of one iteration use again."""
    return task.rollouts * task.tokens * sizes.hidden * sizes.number_bytes


def counted_ratio(
    naive_seconds: dict[str, float],
    naive: dict[str, Work],
    fast: dict[str, Work],
    flops_per_second: float,
    bytes_per_second: float,
) -> float:
    """How much faster an iteration must be, if each phase keeps the naive one's measured rate.

    naive_seconds: measured, by phase; phases that are not counted take the same time in both.
    The rates are the machine's: they say whether FLOPs or bytes decide about a phase.
    """
    rates = flops_per_second, bytes_per_second
    expected = sum(
        seconds * (fast[phase].seconds(*rates) / naive[phase].seconds(*rates))
        if phase in fast
        else seconds
        for phase, seconds in naive_seconds.items()
    )
    return sum(naive_seconds.values()) / expected


def flop_ratio(naive: dict[str, Work], fast: dict[str, Work]) -> float:
    """FLOPs without shortcuts / with them."""
    return sum(w.flops for w in naive.values()) / sum(w.flops for w in fast.values())


def as_numbers(work: dict[str, Work]) -> dict[str, dict[str, Any]]:
    """For a JSON file."""
    return {phase: {"flops": w.flops, "bytes": w.steps * w.step_bytes} for phase, w in work.items()}
