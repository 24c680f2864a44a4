"""How much memory a PPO run needs, counted part by part from its configuration alone.

    python -m rlhf_helpers memory --profile seed

Some parts last from the first iteration to the last; others belong to one phase, and phases come
one after another. So the peak is what lasts plus the largest phase. On a CPU, Python, its libraries
and the reviews come on top (`with_libraries`); on a GPU the counts are of what torch allocates,
without the driver's context (about half a gigabyte).

Shapes: C prompts sampled at once (chunk_size), R rollouts kept, B rollouts of a minibatch,
Q prompt tokens, T new tokens, N = Q + T, h width, f feed-forward width, L layers of which the top
U may change, V vocabulary, kv = width of keys (all heads together). A number of the model takes
`model.dtype`'s bytes, everything trained and every log-probability four. Without LoRA the top
layers themselves learn: they, the reference policy's copy of them and their states take four, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil

from rlhf_helpers.config.profiles import Profile
from rlhf_helpers.config.trl_config import TRLConfig
from rlhf_helpers.models.frozen_head import ROWS_ON_CPU, ROWS_ON_GPU

from .shapes import classifier_parameters, known_shape

FLOAT32 = 4
ADAM_BYTES = 16  # of a trained float32 parameter: itself, its gradient, two running moments
KEPT_BYTES = 12  # of its copy that the watchdog can go back to: itself and the moments
PROMPT_TOKENS_PER_WORD = 2.5  # an upper estimate: a prompt of four words has about ten tokens
TEMPLATE_TOKENS_PER_WORD = 1.6  # plain English with some punctuation has fewer
# bitsandbytes' nf4 with double quantisation: half a byte a weight, one byte for each 64 of them
# and one float32 for each 256 of those (Dettmers et al. 2023, section 3).
BYTES_IN_4BIT = 0.5 + 1 / 64 + 4 / (64 * 256)
# Backpropagation frees what the forward pass kept piece by piece, and the C library's heap on a CPU
# does not fill all the holes: what was kept was measured to take about 1.6 times what it holds
# (figures/bench/memory_cpu.csv).
HEAP_GROWTH = 1.6
# A process that has imported everything and read the reviews, before any model: measured on Linux
# with the profile cpu, 0.40 GB of it after the imports.
PROCESS_BYTES = round(0.65e9)
TEXT_TOKENS = 64  # of a text as the reward model reads it
REWARD_BATCH = 64  # texts that the reward model reads at once (reward.sentiment_reward)


@dataclass(frozen=True)
class MemoryPrediction:
    """Bytes by part: what lasts, and what each phase needs beside it."""

    lasting: dict[str, int]
    phases: dict[str, dict[str, int]]  # "sampling", "scoring", "reward", "update"

    @property
    def peak_phase(self) -> str:
        """The phase with the highest need."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def parts(self) -> dict[str, int]:
        """What is held at the peak, by part."""
        return self.lasting | self.phases[self.peak_phase]

    @property
    def peak(self) -> int:
        """Bytes in all at the highest moment, without Python and its libraries."""
        return sum(self.parts.values())


def predict(
    config: TRLConfig,
    shape: Any,
    prompt_tokens: int,
    reward_parameters: int = 0,
    reward_width: int = 0,
    on_gpu: bool = False,
) -> MemoryPrediction:
    """Peak memory of a run of `config` whose policy has the transformers configuration `shape`."""
    sizes = _Sizes.of(config, shape, prompt_tokens, on_gpu)
    lasting = {
        "policy weights": sizes.weights,
        "policy weights, packed": sizes.packed,
        "trained parts": sizes.trained * ADAM_BYTES,
        "trained parts, kept": sizes.trained * (KEPT_BYTES if _is_watched(config) else 0),
        # Those of the last iteration are kept until the new ones are complete.
        "rollouts": 2 * config.method.num_rollouts * sizes.tokens * sizes.h * sizes.bytes,
        "reward model": reward_parameters * FLOAT32,
    }
    phases = {
        "sampling": _sampling(sizes),
        "scoring": _scoring(sizes),
        # Per token three states of four widths: queries, keys, values; feed-forward; residuals.
        "reward": {"reward model's states": REWARD_BATCH * TEXT_TOKENS * 12 * reward_width * 4},
        "update": _update(sizes),
    }
    return MemoryPrediction(lasting, phases)


@dataclass(frozen=True)
class _Sizes:
    """The numbers of the module's docstring."""

    C: int
    B: int
    prompt: int  # Q
    new: int  # T
    h: int
    f: int
    L: int
    U: int
    V: int
    kv: int
    gated: bool  # feed-forward with a gate (LLaMA): one wide state more
    in_4bit: bool
    bytes: int  # of a number of the model
    top_bytes: int  # of a number of the top layers
    lora_inputs: int  # widths of what LoRA reads in one layer, added up
    dropout: bool  # of LoRA
    weights: int  # bytes
    packed: int  # bytes
    trained: int  # parameters
    on_gpu: bool

    @property
    def tokens(self) -> int:
        return self.prompt + self.new

    @classmethod
    def of(cls, config: TRLConfig, shape: Any, prompt_tokens: int, on_gpu: bool) -> _Sizes:
        model, method = config.model, config.method
        new = method.gen_kwargs["max_new_tokens"]
        prompt = min(prompt_tokens, config.train.seq_length - new)
        h, depth = shape.hidden_size, shape.num_hidden_layers
        heads = shape.num_attention_heads
        inner = getattr(shape, "ffn_dim", None) or getattr(shape, "intermediate_size", 4 * h)
        number = number_bytes(model.dtype, on_gpu)
        unfrozen = model.num_layers_unfrozen
        counts = _parameters(shape, model)
        return cls(
            C=min(method.chunk_size, method.num_rollouts),
            B=min(config.train.batch_size, method.num_rollouts),
            prompt=prompt, new=new, h=h, f=inner, L=depth,
            U=depth if unfrozen < 0 else min(max(unfrozen, 1), depth), V=shape.vocab_size,
            kv=(getattr(shape, "num_key_value_heads", None) or heads) * h // heads,
            gated=shape.model_type in ("llama", "mistral", "qwen2", "qwen3"),
            in_4bit=model.load_in_4bit,
            bytes=number, top_bytes=FLOAT32 if counts["learning_layers"] else number,
            lora_inputs=counts["lora_inputs"], dropout=_lora_dropout(model) > 0,
            weights=_weight_bytes(counts, shape, model, number),
            packed=0 if on_gpu else FLOAT32 * (
                counts["packed"] if number == FLOAT32 else counts["packed_reference"]
            ),
            trained=counts["trained"], on_gpu=on_gpu,
        )  # fmt: skip


def number_bytes(dtype: str | None, on_gpu: bool) -> int:
    """Bytes of a number of the model; without a dtype a CPU takes four and a GPU two."""
    half = dtype in ("float16", "bfloat16") or (dtype is None and on_gpu)
    return 2 if half else FLOAT32


def _parameters(shape: Any, model: Any) -> dict[str, int]:
    """`base` parameters of the model, `trained` ones: LoRA (or top layers) and value head, and
    `packed` ones, kept a second time, those that gradients pass through a third (packed.py).
    `learning_layers` are those of the top without LoRA; `packed_reference` of their copy."""
    import torch
    from transformers import AutoModelForCausalLM

    from rlhf_helpers.models.lora import add_lora, lora_sites, parameter_report
    from rlhf_helpers.models.lora_targets import layer_indices, layer_of
    from rlhf_helpers.models.packed import packable_modules

    with torch.device("meta"):  # every shape and not one weight
        empty = AutoModelForCausalLM.from_config(shape)
    handle = add_lora(empty, model)
    report = parameter_report(empty)
    top = set(handle.layers)
    if not report["lora"]:
        empty.requires_grad_(False)  # the reference policy's copy of what learns is packed instead
    packable = {id(m): m.weight.numel() for m in packable_modules(empty)}
    packed = sum(
        packable.get(id(m), 0) * (1 if layer_of(name) not in top | {None} else 2)
        for name, m in empty.named_modules()
    )
    read = sum(site.lora_A.shape[-1] for site in lora_sites(empty))  # A is [r, width]
    learning = packed_reference = 0
    trained = report["trainable_with_value_head"]
    if not report["lora"]:
        depth = shape.num_hidden_layers
        layers = layer_indices(depth, min(model.num_layers_unfrozen, depth))
        learning = sum(p.numel() for n, p in empty.named_parameters() if layer_of(n) in layers)
        packed_reference = sum(
            packable.get(id(m), 0) for name, m in empty.named_modules() if layer_of(name) in layers
        )
        trained = report["value_head"] + learning
    inputs = read // len(handle.layers) if read else 3 * shape.hidden_size
    base = report["total"] - report["lora"]
    return {"base": base, "trained": trained, "lora_inputs": inputs, "packed": packed,
            "learning_layers": learning, "packed_reference": packed_reference}  # fmt: skip


def _is_watched(config: TRLConfig) -> bool:
    return config.train.watchdog["action"] != "off"


def _lora_dropout(model: Any) -> float:
    return (model.delta_kwargs or model.peft_config or {}).get("lora_dropout", 0.0)


def _weight_bytes(counts: dict[str, int], shape: Any, model: Any, number: int) -> int:
    """Frozen weights, the reference policy's copy of layers that learn among them, in float32.

    In 4 bits is the trunk only; top layers, embeddings and head keep the dtype.
    """
    base, learning = counts["base"], counts["learning_layers"]
    if not model.load_in_4bit:
        return (base - learning) * number + learning * FLOAT32
    tied = getattr(shape, "tie_word_embeddings", True)
    embeddings = shape.vocab_size * shape.hidden_size * (1 if tied else 2)
    depth, top = shape.num_hidden_layers, max(model.num_layers_unfrozen, 1)
    trunk = (base - embeddings) * (depth - top) // depth
    rest = (base - trunk - learning) * number + learning * FLOAT32
    return round(trunk * BYTES_IN_4BIT) + rest


# --- phases ----------------------------------------------------------------------------------


def _sampling(s: _Sizes) -> dict[str, int]:
    cache = 2 * s.C * s.tokens * s.kv * ((s.L - s.U) * s.bytes + s.U * s.top_bytes)
    states = s.C * s.tokens * s.h * s.bytes
    return {
        "key-value cache": cache,  # takes its room once: see kv_cache.py
        "trunk states while sampling": 2 * states,  # as they come, and as scoring wants them
        # The next token's: in the model's type, in float32, their softmax, and a copy to draw from.
        "logits": s.C * s.V * (s.bytes + 3 * FLOAT32),
        "layer at work": _layer_at_work(s, s.C * s.prompt),
    }


def _rows_at_once(s: _Sizes) -> int:
    """Hidden states that pass through the output head together."""
    return ROWS_ON_GPU if s.on_gpu else ROWS_ON_CPU


def _scoring(s: _Sizes) -> dict[str, int]:
    rows = min(s.C * s.tokens, _rows_at_once(s))
    return {
        # Of the trunk, of the policy's top and of the reference's, and the trunk's copies.
        "states of a chunk": 4 * s.C * s.tokens * s.h * s.bytes,
        "logits": rows * s.V * (s.bytes + 2 * FLOAT32),
        "layer at work": _layer_at_work(s, s.C * s.tokens),
    }


def _layer_at_work(s: _Sizes, tokens: int) -> int:
    """A layer's largest moment without gradients: two wide states, and the residual stream."""
    unpacked = s.f * s.h * s.bytes if s.in_4bit else 0  # one matrix at a time
    return tokens * ((3 if s.gated else 2) * s.f + 4 * s.h) * s.top_bytes + unpacked


def _update(s: _Sizes) -> dict[str, int]:
    tokens, columns = s.B * s.tokens, s.B * (s.new + 1)
    # What backpropagation keeps of a top layer: two states of the residual stream, queries, keys
    # and values, attention's output, one or three wide states; and what LoRA reads, in float32,
    # where it has dropout together with its mask (of floats on a CPU, of bytes on a GPU).
    mask = (1 if s.on_gpu else FLOAT32) if s.dropout else 0
    kept = (6 * s.h + (3 if s.gated else 1) * s.f) * s.top_bytes
    kept += s.lora_inputs * (FLOAT32 + mask)
    states = round(s.U * tokens * kept * (1 if s.on_gpu else HEAP_GROWTH))
    rows = min(columns, _rows_at_once(s))
    return {
        "states for the gradients": states,
        "states of a minibatch": 3 * tokens * s.h * s.bytes + _layer_at_work(s, tokens),
        # In the model's type, in float32, one temporary of the softmax, and back.
        "logits": rows * s.V * (s.bytes + 2 * FLOAT32 + (s.bytes if s.bytes == 2 else 0)),
        "value head": columns * 4 * s.h * FLOAT32,
        # When it begins, the states for the gradients are gone: what it needs beyond them.
        "optimizer at work": max(0, 2 * s.trained * FLOAT32 - states),
    }


# --- a profile, a machine ----------------------------------------------------------------------


def predict_profile(profile: Profile, on_gpu: bool | None = None) -> MemoryPrediction:
    """The prediction for a profile; nothing is loaded, and no hub is asked for known models.

    `on_gpu` None: as this machine is.
    """
    if on_gpu is None:
        import torch

        on_gpu = torch.cuda.is_available()
    template_words = len(profile.prompts.get("template", "").split())
    prompt_tokens = round(
        PROMPT_TOKENS_PER_WORD * profile.prompts["words"]
        + TEMPLATE_TOKENS_PER_WORD * template_words
    )
    reward = classifier_parameters(profile.assets["reward"])
    return predict(
        profile.config, profile_shape(profile), prompt_tokens, reward["parameters"],
        reward["width"], on_gpu,
    )  # fmt: skip


def profile_shape(profile: Profile) -> Any:
    """The policy's transformers configuration: from shapes.py, or from its own config.json."""
    from rlhf_helpers.models.loading import model_config_of

    known = known_shape(profile.config.model.model_path)
    return known if known is not None else model_config_of(profile.config.model)


def resident_bytes() -> int:
    """Main memory that this Python process occupies now."""
    return psutil.Process().memory_info().rss


def available_bytes() -> int:
    """Memory of the GPU if there is one, else the main memory that is free, in bytes."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return psutil.virtual_memory().available


# Which setting shrinks which part.
REMEDIES = {
    "policy weights": "model.dtype: bfloat16 or model.load_in_4bit (on a GPU), or a smaller "
                      "model.model_path",
    "policy weights, packed": "RLHF_PACKED=0 in the environment, which is slower",
    "reward model": "assets.reward: a smaller classifier",
    "trained parts": "a smaller lora_r or model.num_layers_unfrozen",
    "trained parts, kept": "train.watchdog.action: off",
    "rollouts": "a smaller method.num_rollouts",
    "key-value cache": "a smaller method.chunk_size or max_new_tokens",
    "trunk states while sampling": "a smaller method.chunk_size",
    "states of a chunk": "a smaller method.chunk_size",
    "layer at work": "a smaller method.chunk_size",
    "logits": "a smaller method.chunk_size or train.batch_size",
    "reward model's states": "a smaller batch_size of the reward function",
    "states for the gradients": "a smaller train.batch_size or model.num_layers_unfrozen",
    "states of a minibatch": "a smaller train.batch_size",
    "value head": "a smaller train.batch_size",
    "optimizer at work": "a smaller lora_r or model.num_layers_unfrozen",
}  # fmt: skip


def largest_part(parts: dict[str, int]) -> tuple[str, str]:
    """The part that weighs most, and the setting that shrinks it."""
    name = max((part for part in parts if part in REMEDIES), key=lambda part: parts[part])
    return name, REMEDIES[name]


def with_libraries(parts: dict[str, int]) -> dict[str, int]:
    """The parts, and what is there before a run counts: this process, or the GPU's context."""
    import torch

    if torch.cuda.is_available():
        return parts | {"GPU context": round(0.5e9)}  # CUDA's own, about half a gigabyte
    return parts | {"Python, libraries, reviews": max(resident_bytes(), PROCESS_BYTES)}


def advice(parts: dict[str, int], available: int) -> str:
    """Whether it fits, and which setting to lower first."""
    missing = sum(parts.values()) - available
    name, remedy = largest_part(parts)
    verdict = f"It does not fit: {missing / 1e9:.2f} GB too much." if missing > 0 else "It fits."
    return f"{verdict} The largest part that settings change is {name!r}; to need less: {remedy}."
