"""Architectures by name, for measuring speed and memory without any weights to download."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_helpers.config.checks import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_OPT = dict(model_type="opt", max_position_embeddings=2048, bos_token_id=2, eos_token_id=2,
            pad_token_id=1)  # fmt: skip

# Widths as the models' own config.json gives them; `deep` is ours: depth without a wide head.
SHAPES: dict[str, dict[str, Any]] = {
    "opt-125m": dict(_OPT, hidden_size=768, word_embed_proj_dim=768, num_hidden_layers=12,
                     num_attention_heads=12, ffn_dim=3072, vocab_size=50272),
    "opt-1.3b": dict(_OPT, hidden_size=2048, word_embed_proj_dim=2048, num_hidden_layers=24,
                     num_attention_heads=32, ffn_dim=8192, vocab_size=50272),
    "deep": dict(_OPT, hidden_size=512, word_embed_proj_dim=512, num_hidden_layers=24,
                 num_attention_heads=8, ffn_dim=2048, vocab_size=8192),
    "llama-7b": dict(model_type="llama", hidden_size=4096, num_hidden_layers=32,
                     num_attention_heads=32, num_key_value_heads=32, intermediate_size=11008,
                     max_position_embeddings=2048, vocab_size=32000, bos_token_id=1,
                     eos_token_id=2, tie_word_embeddings=False),
    "smollm2-135m": dict(model_type="llama", hidden_size=576, num_hidden_layers=30,
                         num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536,
                         max_position_embeddings=8192, vocab_size=49152, bos_token_id=1,
                         eos_token_id=2, tie_word_embeddings=True),
    "qwen3-0.6b": dict(model_type="qwen3", hidden_size=1024, num_hidden_layers=28,
                       num_attention_heads=16, num_key_value_heads=8, head_dim=128,
                       intermediate_size=3072, max_position_embeddings=40960, vocab_size=151936,
                       bos_token_id=151643, eos_token_id=151645, tie_word_embeddings=True),
}  # fmt: skip

# Models by the names that profiles give them: memory is predicted without their files.
KNOWN_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "facebook/opt-125m": ("opt-125m", {}),
    "facebook/opt-1.3b": ("opt-1.3b", {}),
    "smollm2-135m-instruct": ("smollm2-135m", {}),
    "smollm2-135m-reviews": ("smollm2-135m", {}),
    "Qwen/Qwen3-0.6B": ("qwen3-0.6b", {}),
    "chavinlo/alpaca-native": ("llama-7b", {"vocab_size": 32001}),  # and a padding token
}
# Parameters and width of classifiers; `parameters` of others are taken from their files.
VERIFIER = {"parameters": 0, "width": 0}  # a program that checks answers holds no model
CLASSIFIERS = {
    "chain-sum": VERIFIER,
    "openai/gsm8k": VERIFIER,
    "sentiment-minilm": {"parameters": 22_713_986, "width": 384},
    "lvwerra/distilbert-imdb": {"parameters": 66_955_010, "width": 768},
}


def shape_config(name: str, **changes: Any) -> PretrainedConfig:
    """The transformers configuration of a shape; `changes` replace fields of it.

    Raises ConfigError for a name that is not among SHAPES.
    """
    from transformers import AutoConfig

    if name not in SHAPES:
        raise ConfigError(f"shape is {name!r}: choose one of {', '.join(SHAPES)}.")
    fields = {**SHAPES[name], **changes}
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def known_shape(model_path: str) -> PretrainedConfig | None:
    """The shape of a model whose name is known here, else None."""
    if model_path not in KNOWN_MODELS:
        return None
    name, changes = KNOWN_MODELS[model_path]
    return shape_config(name, **changes)


def classifier_parameters(name: str) -> dict[str, int]:
    """`parameters` and `width` of a reward model; of an unknown one by the size of its files."""
    if name in CLASSIFIERS:
        return CLASSIFIERS[name]
    from rlhf_helpers.data.assets import AssetError, find_asset

    try:
        return {"parameters": find_asset(name).bytes // 4, "width": 768}
    except AssetError:  # not there to be looked at: taken for the post's
        return CLASSIFIERS["lvwerra/distilbert-imdb"]
