"""How much memory a PPO run needs, counted part by part from its configuration.

Only what the run itself allocates is counted: Python and its libraries come on top
(`resident_bytes` of a process that has imported them tells how much that is here).

Shapes: C prompts sampled at once (chunk_size), R rollouts kept, B rollouts of a minibatch,
N tokens of a sequence, T response tokens, h width, f feed-forward width, L layers, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import psutil

from .config import PPOConfig, Profile

FLOAT32 = 4
ADAM_BYTES = 16  # of a trained float32 parameter: itself, its gradient, two running moments
PROMPT_TOKENS_PER_WORD = 2.5  # an upper estimate: a prompt of four words has about ten tokens


def memory_parts(
    profile: Profile, model_config: Any, counts: dict[str, int], reward_bytes: int, dtype_bytes: int
) -> dict[str, int]:
    """Bytes by part at the moment of each part's peak.

    `model_config` is the policy's transformers configuration, `counts` holds `total` and
    `trainable_with_value_head` (lora.parameter_report), `reward_bytes` is the reward model's size.
    """
    method, train = profile.config.method, profile.config.train
    new_tokens = method.gen_kwargs["max_new_tokens"]
    prompt_tokens = round(PROMPT_TOKENS_PER_WORD * profile.prompts["words"])
    sequence = min(train.seq_length, prompt_tokens + new_tokens + 1)
    return {
        "policy weights": counts["total"] * dtype_bytes,
        "reward model": reward_bytes,
        "trained parts": counts["trainable_with_value_head"] * ADAM_BYTES,
        "key-value cache": _key_value_cache(method, model_config, sequence, dtype_bytes),
        "logits of a chunk": _logits(method.chunk_size, sequence, model_config),
        "rollouts": method.num_rollouts * sequence * model_config.hidden_size * dtype_bytes,
        "one update": _update(profile, model_config, sequence, new_tokens),
    }


def _key_value_cache(method: PPOConfig, model_config: Any, sequence: int, dtype_bytes: int) -> int:
    """Keys and values of every layer while C sequences are sampled: 2 L C N h numbers."""
    layers, width = model_config.num_hidden_layers, model_config.hidden_size
    return 2 * layers * method.chunk_size * sequence * width * dtype_bytes


def _logits(rows: int, columns: int, model_config: Any) -> int:
    """Scores of every word of the vocabulary at every column, and their log-softmax, float32."""
    return 2 * rows * columns * model_config.vocab_size * FLOAT32


def _update(profile: Profile, model_config: Any, sequence: int, new_tokens: int) -> int:
    """What backpropagation keeps for B rollouts: the top layers' states, and the logits twice."""
    batch = profile.config.train.batch_size
    layers = model_config.num_hidden_layers
    unfrozen = profile.config.model.num_layers_unfrozen
    top = layers if unfrozen < 0 else min(max(unfrozen, 1), layers)
    inner = getattr(model_config, "ffn_dim", None) or getattr(
        model_config, "intermediate_size", 4 * model_config.hidden_size
    )
    # Per token and layer: about ten states of width h, two of the feed-forward's width.
    states = top * batch * sequence * (10 * model_config.hidden_size + 2 * inner) * FLOAT32
    return states + 2 * _logits(batch, new_tokens + 1, model_config)


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
    "policy weights": "model.dtype: bfloat16, or a smaller model.model_path",
    "reward model": "assets.reward: a smaller classifier",
    "trained parts": "a smaller lora_r or model.num_layers_unfrozen",
    "key-value cache": "a smaller method.chunk_size or max_new_tokens",
    "logits of a chunk": "a smaller method.chunk_size",
    "rollouts": "a smaller method.num_rollouts",
    "one update": "a smaller train.batch_size",
}


def largest_part(parts: dict[str, int]) -> tuple[str, str]:
    """The part that weighs most, and the setting that shrinks it."""
    name = max(parts, key=lambda part: parts[part])
    return name, REMEDIES[name]
