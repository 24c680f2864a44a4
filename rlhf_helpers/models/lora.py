"""Low-rank adaptation (LoRA) of a language model, and what it changes, in numbers and as a tree.

`add_lora` takes trlX's configuration: `model.delta_kwargs` (OpenDelta, trlX 0.6) or
`model.peft_config` (peft, trlX 0.7). Both compute the same function from the same parameters.
"""

from __future__ import annotations

import dataclasses
import io
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rlhf_helpers.config.checks import ConfigError

from .lora_state import (
    LoraSite,
    load_adapter,
    lora_disabled,
    lora_parameters,
    lora_sites,
    merged_lora,
    merged_weight,
    own_opendelta_forward,
    save_adapter,
    set_lora_dropout,
)
from .lora_targets import (
    PRESET_NAMES,
    candidate_names,
    expand_modified_modules,
    layer_indices,
    layer_of,
    leave_out,
    matches,
    preset_modules,
    select_modules,
)
from .opendelta_import import LoraBackendError, import_opendelta
from .peft_import import torchao_unseen
from .precision import lora_in_float32

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from rlhf_helpers.config.sections import ModelConfig

__all__ = [
    "LoraBackendError",
    "LoraHandle",
    "LoraSite",
    "add_lora",
    "count_table",
    "layer_indices",
    "load_adapter",
    "lora_disabled",
    "lora_parameters",
    "lora_sites",
    "merged_lora",
    "merged_weight",
    "meta_report",
    "opt_1_3b_config",
    "parameter_report",
    "save_adapter",
    "set_lora_dropout",
    "structure_tree",
    "value_head_parameter_count",
]

@dataclasses.dataclass(frozen=True)
class LoraHandle:
    """What add_lora did."""

    backend: str  # "opendelta", "peft" or "none"
    layers: list[int]  # the layers that may change
    patterns: list[str]  # modified_modules after expansion, as trlX passed them to OpenDelta
    modules: list[str]  # dotted names of the linear modules that carry LoRA
    delta_model: Any = None  # OpenDelta's own object, for instance for delta_model.log()


def add_lora(model: PreTrainedModel, model_config: ModelConfig) -> LoraHandle:
    """Adds LoRA to `model` in place, as the configuration says, and freezes everything else.

    delta_kwargs and peft_config are read, never changed (trlX changed them). LoRA's dropout is
    left active and the base model's mode untouched, as in trlX (see set_lora_dropout). On a
    float16 or bfloat16 model LoRA's own parameters are kept and computed in float32 (precision.py).
    With neither field set, the model stays as it is; with num_layers_unfrozen=0 it is frozen.
    ConfigError for settings that fit no module, LoraBackendError for a library that is missing.
    """
    delta_kwargs, peft_config = model_config.delta_kwargs, model_config.peft_config
    if delta_kwargs is None and peft_config is None:
        return LoraHandle("none", [], [], [])
    if lora_sites(model):
        raise ConfigError("The model has LoRA already; load it again before calling add_lora.")
    unfrozen = model_config.num_layers_unfrozen
    layers = layer_indices(model.config.num_hidden_layers, unfrozen)
    if not layers:
        warnings.warn(
            "model.num_layers_unfrozen=0 leaves no layer for LoRA: only the value head learns.",
            stacklevel=2,
        )
        model.requires_grad_(False)
        return LoraHandle("none", [], [], [])
    if delta_kwargs is not None:
        handle = _add_with_opendelta(model, delta_kwargs, unfrozen)
    else:
        handle = _add_with_peft(model, peft_config, layers)
    trained = {id(parameter) for parameter in lora_parameters(model).values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    lora_in_float32(model)
    return handle


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """nn.Linear and GPT-2's Conv1D modules by dotted name, in model order."""
    from transformers.pytorch_utils import Conv1D

    return {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))}


# ---- OpenDelta (trlX 0.6: delta_kwargs)


def _add_with_opendelta(
    model: PreTrainedModel, delta_kwargs: Mapping[str, Any], unfrozen: int
) -> LoraHandle:
    linears = linear_modules(model)
    patterns, names = _delta_targets(model.config, list(linears), delta_kwargs, unfrozen)
    opendelta = import_opendelta()
    for name in names:
        _name_sizes_like_linear(linears[name])
    # What is not given stays at OpenDelta's default (8, 16, 0.0), as in trlX.
    settings = ("lora_r", "lora_alpha", "lora_dropout")
    delta_model = opendelta.LoraModel(
        model,
        modified_modules=names,
        **{key: delta_kwargs[key] for key in settings if key in delta_kwargs},
    )
    # set_state_dict=False: trlX let OpenDelta hide the base weights from state_dict(), which is
    # why its save_pretrained left them out.
    delta_model.freeze_module(exclude=["deltas"], set_state_dict=False)
    for name in names:
        own_opendelta_forward(linears[name])
    layers = layer_indices(model.config.num_hidden_layers, unfrozen)
    return LoraHandle("opendelta", layers, patterns, names, delta_model)


def _delta_targets(
    config: PretrainedConfig,
    linear_names: list[str],
    delta_kwargs: Mapping[str, Any],
    unfrozen: int,
) -> tuple[list[str], list[str]]:
    """(patterns as trlX expanded them, names of the linear modules that they address)."""
    patterns = expand_modified_modules(
        delta_kwargs.get("modified_modules", "all"),
        config.model_type,
        config.num_hidden_layers,
        unfrozen,
    )
    layers = layer_indices(config.num_hidden_layers, unfrozen)
    field = "model.delta_kwargs.modified_modules"
    names = select_modules(linear_names, patterns, layers, field)
    return patterns, leave_out(names, delta_kwargs.get("exclude_modules"), "model.delta_kwargs")


def _name_sizes_like_linear(module: nn.Module) -> None:
    """GPT-2's Conv1D calls its sizes nx and nf; OpenDelta asks for nn.Linear's names."""
    if not isinstance(module, nn.Linear):
        module.in_features, module.out_features = module.nx, module.nf


# ---- peft (trlX 0.7: peft_config)


def _add_with_peft(
    model: PreTrainedModel, peft_config: Mapping[str, Any], layers: list[int]
) -> LoraHandle:
    linears = linear_modules(model)
    try:
        # Imported here only: whoever uses OpenDelta need not have a peft that works.
        from peft import LoraConfig, inject_adapter_in_model

        names = _peft_targets(model.config.model_type, list(linears), peft_config, layers)
        settings = ("r", "lora_alpha", "lora_dropout", "use_rslora")
        lora_config = LoraConfig(
            target_modules=names,
            fan_in_fan_out=not isinstance(linears[names[0]], nn.Linear),
            **{key: peft_config[key] for key in settings if key in peft_config},
        )
        # Without peft's wrapper the base model keeps its class, its methods and its module names.
        with torchao_unseen():
            inject_adapter_in_model(lora_config, model)
    except ImportError as error:
        raise LoraBackendError(
            f"model.peft_config needs peft, which cannot be used here ({error}); "
            f"install another version of peft, or set model.delta_kwargs instead."
        ) from error
    return LoraHandle("peft", layers, names, names)


def _peft_targets(
    model_type: str, linear_names: list[str], peft_config: Mapping[str, Any], layers: list[int]
) -> list[str]:
    """Names of the linear modules in the top layers that peft's target_modules addresses.

    target_modules: names, a regular expression for the whole name, "all-linear", one of trlX's
    presets, or None for peft's own choice for the architecture.
    """
    wanted = peft_config.get("layers_to_transform")
    wanted = layers if wanted is None else [wanted] if isinstance(wanted, int) else list(wanted)
    if not set(wanted) <= set(layers):
        raise ConfigError(
            f"model.peft_config.layers_to_transform={wanted} is not within the layers {layers} "
            f"that model.num_layers_unfrozen lets change; make the two agree."
        )
    inside = [name for name in linear_names if layer_of(name) in wanted]
    targets = peft_config.get("target_modules")
    if targets is None:
        from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as BY_TYPE

        targets = list(BY_TYPE.get(model_type, []))
    if targets == "all-linear":
        names = inside
    elif isinstance(targets, str) and targets not in PRESET_NAMES:
        names = [name for name in inside if re.fullmatch(targets, name)]
    else:
        patterns = preset_modules(model_type, targets) if isinstance(targets, str) else targets
        names = [name for name in inside if any(matches(name, pattern) for pattern in patterns)]
    if not names:
        raise ConfigError(
            f"model.peft_config.target_modules={targets!r} matches no linear module in layers "
            f"{wanted}; candidates are {', '.join(candidate_names(linear_names))}."
        )
    return leave_out(names, peft_config.get("exclude_modules"), "model.peft_config")


# ---- reports


def structure_tree(model: nn.Module) -> str:
    """The model as OpenDelta draws it: equal layers folded ("0-21"), shapes, LoRA; plain text."""
    try:
        from bigmodelvis import Visualization
        from rich.console import Console
    except ImportError as error:
        raise LoraBackendError(
            f"structure_tree draws with bigmodelvis, which cannot be imported ({error}); install "
            f"it with pip install bigmodelvis rich."
        ) from error
    drawing = Visualization(model).structure_graph(printTree=False)
    text = io.StringIO()
    # force_jupyter: inside a notebook rich would show the tree at once and write nothing.
    console = Console(
        file=text, width=200, color_system=None, highlight=False, force_jupyter=False
    )
    console.print(drawing)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def parameter_report(model: PreTrainedModel) -> dict[str, Any]:
    """Counts of `model` (base model with LoRA, no value head in it) and OpenDelta's two lines.

    The post's "Trainable Ratio" leaves the value head out; `value_head` and
    `trainable_with_value_head` give the true number of trained parameters.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lora = sum(parameter.numel() for parameter in lora_parameters(model).values())
    value_head = value_head_parameter_count(model.config.hidden_size)
    return {
        "total": total,
        "trainable": trainable,
        "lora": lora,
        "trainable_percent": 100 * trainable / total,
        "trainable_line": f"Trainable Ratio: {trainable}/{total}={100 * trainable / total:.6f}%",
        "lora_line": f"Delta Parameter Ratio: {lora}/{total}={100 * lora / total:.6f}%",
        "value_head": value_head,
        "trainable_with_value_head": trainable + value_head,
    }


def value_head_parameter_count(hidden: int) -> int:
    """Weights and biases of trlX's value head, Linear(h, 2h), ReLU, Linear(2h, 1)."""
    return (hidden * 2 * hidden + 2 * hidden) + (2 * hidden + 1)


def opt_1_3b_config() -> PretrainedConfig:
    """facebook/opt-1.3b's architecture, without asking the hub."""
    from transformers import OPTConfig

    return OPTConfig(
        vocab_size=50272,
        hidden_size=2048,
        num_hidden_layers=24,
        ffn_dim=8192,
        num_attention_heads=32,
        max_position_embeddings=2048,
        word_embed_proj_dim=2048,
    )


def _meta_model(config: PretrainedConfig | str) -> PreTrainedModel:
    """The model on the meta device: every shape and not one weight, so no memory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if config == "facebook/opt-1.3b":
        config = opt_1_3b_config()
    elif isinstance(config, str):
        config = AutoConfig.from_pretrained(config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def meta_report(config: PretrainedConfig | str, model_config: ModelConfig) -> dict[str, Any]:
    """parameter_report and `tree` of a model that is never loaded.

    `config`: a transformers configuration, a local path, or "facebook/opt-1.3b" (no hub needed).
    """
    model = _meta_model(config)
    add_lora(model, model_config)
    return {**parameter_report(model), "tree": structure_tree(model)}


def count_table(
    config: PretrainedConfig | str,
    model_config: ModelConfig,
    ranks: Iterable[int] = (1, 2, 4, 8, 16, 32),
    layers: Iterable[int] = (1, 2, 4, 8, -1),
) -> list[dict[str, Any]]:
    """How rank and number of layers change the count, for delta_kwargs with these two varied.

    Each linear module [out, in] costs rank * (in + out). One row per pair: rank,
    num_layers_unfrozen, layers (their number), lora, base, percent (of base + lora). Choices of
    `layers` that exceed the model's depth are left out.
    """
    model = _meta_model(config)
    base = sum(parameter.numel() for parameter in model.parameters())
    sizes = {name: sum(module.weight.shape) for name, module in linear_modules(model).items()}
    delta_kwargs = model_config.delta_kwargs or {}
    depth = model.config.num_hidden_layers
    rows = []
    for unfrozen in [count for count in layers if count <= depth]:
        indices = layer_indices(depth, unfrozen)
        _, names = _delta_targets(model.config, list(sizes), delta_kwargs, unfrozen)
        for rank in ranks:
            lora = rank * sum(sizes[name] for name in names)
            rows.append(
                {
                    "rank": rank,
                    "num_layers_unfrozen": unfrozen,
                    "layers": len(indices),
                    "lora": lora,
                    "base": base,
                    "percent": 100 * lora / (base + lora),
                }
            )
    return rows
