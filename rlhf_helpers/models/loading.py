"""From a configuration, or from what a run left, to a policy in memory."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from rlhf_helpers.config.checks import ConfigError, shown
from rlhf_helpers.config.reading import read_json
from rlhf_helpers.config.sections import ModelConfig, TokenizerConfig
from rlhf_helpers.config.trl_config import TRLConfig
from rlhf_helpers.data.assets import asset_loaded
from rlhf_helpers.data.gguf import model_path, path_and_adapters
from rlhf_helpers.runs.tensors import merge_adapters

from .lora import add_lora
from .policy import Policy
from .precision import default_dtype


def load_tokenizer(config: TokenizerConfig) -> PreTrainedTokenizerBase:
    """The tokenizer by name or path, with pad := eos as trlX sets it."""
    path = model_path(config.tokenizer_path)
    with asset_loaded(config.tokenizer_path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)  # and no question
    tokenizer.padding_side = config.padding_side
    tokenizer.truncation_side = config.truncation_side
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(config: ModelConfig, device: torch.device) -> nn.Module:
    """The pretrained causal model by name or path, in the configured number type.

    An adapter's path stands for its base model with the adapter merged into it. With
    `load_in_4bit` the frozen trunk is quantised while it is read; the top layers, where LoRA lies
    or which learn themselves, keep their number type.
    """
    path, adapters = path_and_adapters(config.model_path)
    dtype = _dtype(config, device)
    if not config.load_in_4bit:
        with asset_loaded(config.model_path, "causal language model"):
            base = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=False)
            merge_adapters(base, adapters)
        return base.to(device)
    if adapters:
        raise ConfigError(
            f"model.load_in_4bit is True and {shown(config.model_path)} is an adapter, which "
            "cannot be merged into 4 bits: set it to false, or give a merged model "
            "(python -m rlhf_helpers merge)."
        )
    kept = unquantised_modules(model_config_of(config), config.num_layers_unfrozen)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "model.load_in_4bit is True: install the package bitsandbytes or set it to false."
        )
    four_bits = BitsAndBytesConfig(  # nf4, as in QLoRA (Dettmers et al. 2023)
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=kept,
    )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, quantization_config=four_bits, device_map={"": device},
        trust_remote_code=False,
    )  # fmt: skip


def unquantised_modules(shape: PretrainedConfig, num_layers_unfrozen: int) -> list[str]:
    """The linear modules that stay as they are beside a 4-bit trunk: top layers, output head.

    ConfigError where that leaves nothing to quantise.
    """
    if not 0 <= num_layers_unfrozen < shape.num_hidden_layers:
        raise ConfigError(
            f"model.num_layers_unfrozen is {num_layers_unfrozen}: with model.load_in_4bit only "
            f"layers below the top are quantised, give less than {shape.num_hidden_layers}."
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    decoder = model.get_decoder()
    layers = decoder.layers if hasattr(decoder, "layers") else decoder.h
    top = layers[len(layers) - max(num_layers_unfrozen, 1) :]
    inside = {id(m) for m in top.modules()} | {id(model.get_output_embeddings())}
    return [name for name, m in model.named_modules() if id(m) in inside and not list(m.children())]


def load_policy(config: TRLConfig, device: torch.device | str | None = None) -> Policy:
    """Base model, LoRA and value head as the configuration says, drawn from `train.seed`."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(config.train.seed)
    return make_policy(load_base(config.model, device), load_tokenizer(config.tokenizer), config)


def make_policy(base: nn.Module, tokenizer: PreTrainedTokenizerBase, config: TRLConfig) -> Policy:
    """A policy around a base model, to which LoRA and value head are added."""
    add_lora(base, config.model)
    policy = Policy(base, tokenizer, config.model.num_layers_unfrozen)
    policy.v_head.to(base.device)
    return policy


def load_trained_policy(directory: str | Path, device=None, to_sample: bool = False) -> Policy:
    """A policy that `train()` left in `directory`; trl_config.json there names its base model.

    `to_sample`: it will not be trained on, so that a value head that is not there is no matter.
    """
    directory = Path(directory)
    if not (directory / "trl_config.json").exists():
        raise ConfigError(
            f"{directory} holds no trained policy (no trl_config.json); run 04_ppo_run first."
        )
    config = TRLConfig.from_dict(read_json(directory / "trl_config.json", {}))
    policy = load_policy(config, device)
    policy.load(directory, to_sample)
    return policy


def model_config_of(config: ModelConfig):
    """The architecture (layers, widths) of the configured model, without loading weights."""
    path = model_path(config.model_path)
    with asset_loaded(config.model_path, "model"):
        return AutoConfig.from_pretrained(path)


def _dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    if config.dtype is not None:
        return getattr(torch, config.dtype)
    return default_dtype(device)
