"""LoRA inside a model: where it sits, switching it off, merging it, saving and loading it.

Works on any module that `lora.add_lora` has prepared, with OpenDelta or with peft.
The arithmetic is LoRA's (Hu et al. 2022): y = W x + b + scaling * B A dropout(x), with
scaling = alpha / r.
"""

from __future__ import annotations

import copy
import json
import os
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rlhf_helpers.config.checks import ConfigError, shown
from rlhf_helpers.config.reading import NUMBER, read_json, unreadable
from rlhf_helpers.data.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, lora_scale
from rlhf_helpers.runs.tensors import read_tensors

_SETTINGS = {"lora_alpha": NUMBER}


@dataclass(frozen=True)
class LoraSite:
    """One linear module that carries LoRA."""

    name: str  # dotted name of the linear module, as in the untouched model
    module: nn.Module  # the module that adds LoRA in its forward
    weight: nn.Parameter  # frozen: [out, in], or [in, out] where `transposed`
    lora_A: nn.Parameter  # [r, in]
    lora_B: nn.Parameter  # [out, r]
    scaling: float  # alpha / r
    dropout: nn.Module | None
    transposed: bool  # GPT-2's Conv1D keeps its weight as [in, out]
    backend: str  # "opendelta" or "peft"


def lora_sites(model: nn.Module) -> list[LoraSite]:
    """All LoRA modules of `model` in model order; empty for a model without LoRA."""
    sites = []
    for name, module in model.named_modules():
        children = module._modules
        if hasattr(children.get("lora"), "lora_A"):
            sites.append(_opendelta_site(name, module))
        elif "base_layer" in children and "lora_A" in children:
            sites.append(_peft_site(name, module))
    return sites


def _opendelta_site(name: str, module: nn.Module) -> LoraSite:
    low_rank = module.lora
    dropout = low_rank.lora_dropout
    return LoraSite(
        name=name,
        module=module,
        weight=module.weight,
        lora_A=low_rank.lora_A,
        lora_B=low_rank.lora_B,
        scaling=low_rank.scaling,
        dropout=dropout if isinstance(dropout, nn.Dropout) else None,
        transposed=not isinstance(module, nn.Linear),
        backend="opendelta",
    )


def _peft_site(name: str, module: nn.Module) -> LoraSite:
    adapter = module.active_adapters[0]
    dropout = module.lora_dropout[adapter]
    return LoraSite(
        name=name,
        module=module,
        weight=module.base_layer.weight,
        lora_A=module.lora_A[adapter].weight,
        lora_B=module.lora_B[adapter].weight,
        scaling=module.scaling[adapter],
        dropout=dropout if isinstance(dropout, nn.Dropout) else None,
        transposed=not isinstance(module.base_layer, nn.Linear),
        backend="peft",
    )


def lora_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """LoRA's parameters by name, the same names for OpenDelta and peft, in model order.

    "model.decoder.layers.2.self_attn.k_proj.lora.lora_A" [r, in], "....lora.lora_B" [out, r].
    """
    named = {}
    for site in lora_sites(model):
        named[f"{site.name}.lora.lora_A"] = site.lora_A
        named[f"{site.name}.lora.lora_B"] = site.lora_B
    return named


# ---- switching off, merging, dropout


def lora_enabled(site: LoraSite) -> bool:
    """Whether the forward pass of this module adds LoRA now."""
    if site.backend == "peft":
        return not site.module._disable_adapters
    return getattr(site.module.forward, "__func__", None) is _forward_with_lora


def own_opendelta_forward(module: nn.Module) -> None:
    """Puts a method where OpenDelta put a closure around forward; same arithmetic.

    The closure keeps the module that it was made for: a deep copy of the model would compute with
    the original's weights. A bound method is copied together with its module.
    """
    module._forward_without_lora = module.forward.__wrapped__
    module.forward = types.MethodType(_forward_with_lora, module)


def _forward_with_lora(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """W x + b + scaling * B A dropout(x): [..., in] -> [..., out].

    LoRA's part of a half-precision model is float32 (precision.py): the sum is rounded, once.
    """
    frozen = module._forward_without_lora(x)
    return (frozen + module.lora.forward(x)).to(frozen.dtype)


def _set_enabled(site: LoraSite, enabled: bool) -> None:
    if lora_enabled(site) == enabled:
        return
    module = site.module
    if site.backend == "peft":
        # peft's own switch (enable_adapters) would also change requires_grad.
        module._disable_adapters = not enabled
    elif enabled:
        module.forward = types.MethodType(_forward_with_lora, module)
    else:
        module.forward = module._forward_without_lora


@contextmanager
def lora_disabled(model: nn.Module) -> Iterator[None]:
    """Within it, `model` is the reference model: LoRA is off, bit for bit the original weights."""
    switched = [site for site in lora_sites(model) if lora_enabled(site)]
    for site in switched:
        _set_enabled(site, False)
    try:
        yield
    finally:
        for site in switched:
            _set_enabled(site, True)


@contextmanager
def merged_lora(model: nn.Module) -> Iterator[None]:
    """Within it, scaling * B A is part of the frozen weights: the same function, fewer operations.

    For sampling without LoRA dropout only: a merged model has none. At the end the weights are
    restored from a copy, bit for bit. In bfloat16 and float16 the sum is rounded, so that merged
    and unmerged outputs differ by that rounding. TypeError on quantised weights.
    """
    sites = [site for site in lora_sites(model) if lora_enabled(site)]
    for site in sites:
        if not site.weight.is_floating_point():
            raise TypeError(
                f"LoRA cannot be merged into {site.name}: its weight is quantised "
                f"({site.weight.dtype}); sample with LoRA unmerged."
            )
    originals = [site.weight.detach().clone() for site in sites]
    try:
        for site in sites:
            # .data: a graph that holds this weight stays valid, because its bits come back.
            site.weight.data.copy_(merged_weight(site))
            _set_enabled(site, False)
        yield
    finally:
        for site, original in zip(sites, originals, strict=True):
            site.weight.data.copy_(original)
            _set_enabled(site, True)


@torch.no_grad()
def merged_weight(site: LoraSite) -> torch.Tensor:
    """W + scaling * B A, summed in float32; shape and dtype of the site's weight."""
    delta = site.scaling * (site.lora_B.float() @ site.lora_A.float())  # [out, in]
    if site.transposed:
        delta = delta.T
    return (site.weight.float() + delta).to(site.weight.dtype)


@torch.no_grad()
def merged_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model without LoRA that computes the same, by the names it has there.

    For a model without LoRA: its own state_dict().
    """
    sites = lora_sites(model)
    inside = tuple(f"{site.name}.lora" for site in sites)  # .lora.lora_A, .lora_A.default, ...
    state = {
        name.replace(".base_layer.", "."): tensor.detach()
        for name, tensor in model.state_dict().items()
        if not name.startswith(inside)
    }
    return state | {f"{site.name}.weight": merged_weight(site) for site in sites}


def set_lora_dropout(model: nn.Module, active: bool) -> None:
    """Turns LoRA's dropout on or off, and nothing else (the base model's dropout stays as it is).

    trlX calls neither train() nor eval(): there LoRA's dropout is active always, the base model's
    never. That is the state in which add_lora leaves a model that was loaded in eval mode.
    """
    for site in lora_sites(model):
        if site.dropout is not None:
            site.dropout.train(active)


# ---- files


def save_adapter(model: nn.Module, directory: str | Path, base_model: str = "") -> None:
    """Writes LoRA as peft's files: adapter_config.json and adapter_model.safetensors.

    `peft.PeftModel.from_pretrained(base, directory)` gives the same logits, and load_adapter reads
    them back. `base_model`: name or path of the base model, for the record.
    ConfigError when `model` has no LoRA.
    """
    sites = lora_sites(model)
    if not sites:
        raise ConfigError("The model has no LoRA to save; set model.delta_kwargs first.")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for site in sites:
        tensors[f"base_model.model.{site.name}.lora_A.weight"] = site.lora_A.detach().contiguous()
        tensors[f"base_model.model.{site.name}.lora_B.weight"] = site.lora_B.detach().contiguous()
    weights_tmp = directory / (ADAPTER_WEIGHTS + ".tmp")
    save_file(tensors, weights_tmp, metadata={"format": "pt"})
    config_tmp = directory / (ADAPTER_CONFIG + ".tmp")
    config_tmp.write_text(json.dumps(_adapter_config(sites, base_model), indent=2) + "\n")
    os.replace(weights_tmp, directory / ADAPTER_WEIGHTS)
    os.replace(config_tmp, directory / ADAPTER_CONFIG)


def _adapter_config(sites: list[LoraSite], base_model: str) -> dict[str, object]:
    """The fields that peft needs to rebuild these modules, and no others (versions differ)."""
    rank = sites[0].lora_A.shape[0]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": round(sites[0].scaling * rank, 6),
        "lora_dropout": sites[0].dropout.p if sites[0].dropout is not None else 0.0,
        "bias": "none",
        "fan_in_fan_out": sites[0].transposed,
        # Full names, so that exactly these layers are rebuilt.
        "target_modules": [site.name for site in sites],
    }


def load_adapter(model: nn.Module, directory: str | Path) -> None:
    """Reads what save_adapter (or peft) wrote into the LoRA that `model` already has.

    ConfigError, before anything is changed, when modules, rank or scaling differ.
    """
    directory = Path(directory)
    weights, settings = directory / ADAPTER_WEIGHTS, directory / ADAPTER_CONFIG
    for path in (weights, settings):
        if not path.is_file():
            raise ConfigError(f"{directory} holds no adapter: {path.name} is missing.")
    tensors = {_site_name(key): tensor for key, tensor in read_tensors(weights).items()}
    parameters = lora_parameters(model)
    _check_same_lora(tensors, parameters, directory)
    _check_same_scaling(read_json(settings, _SETTINGS), lora_sites(model), directory)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def _site_name(key: str) -> str:
    """peft's key -> the name of lora_parameters."""
    name = key.removeprefix("base_model.model.").removesuffix(".weight")
    module, _, matrix = name.rpartition(".")
    return f"{module}.lora.{matrix}"


def _check_same_lora(
    tensors: dict[str, torch.Tensor], parameters: dict[str, nn.Parameter], directory: Path
) -> None:
    if odd := sorted(set(tensors) ^ set(parameters)):
        where = "adapter" if odd[0] in tensors else "model"
        raise ConfigError(
            f"The adapter in {directory} and the model have LoRA on different modules: {odd[0]} is "
            f"only in the {where}; use the num_layers_unfrozen and modified_modules it was "
            f"trained with."
        )
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            raise ConfigError(
                f"The adapter in {directory} has {name} of shape {list(tensors[name].shape)} where "
                f"the model has {list(parameter.shape)}; use the lora_r it was trained with."
            )


def _check_same_scaling(
    settings: dict[str, object], sites: list[LoraSite], directory: Path
) -> None:
    rank = sites[0].lora_A.shape[0]
    saved = lora_scale(settings, rank)
    if abs(saved - sites[0].scaling) > 1e-6 * saved:
        raise ConfigError(
            f"The adapter in {directory} was trained with LoRA scaling {saved:g} and the model has "
            f"{sites[0].scaling:g}; set lora_alpha={saved * rank:g} for rank {rank}."
        )


# ---- files


def write_plain_model(base: nn.Module, directory: str | Path) -> None:
    """Write `base` with its LoRA merged in, as a model that transformers loads alone."""
    if getattr(base, "is_loaded_in_4bit", False):
        raise ConfigError(
            "model.load_in_4bit is True: a merged model needs weights in full; save the policy "
            "without merge and load it with load_in_4bit false first."
        )
    plain = _without_weights(base)
    plain.load_state_dict(merged_state_dict(base), strict=False, assign=True)
    plain.tie_weights()
    plain.generation_config = copy.deepcopy(base.generation_config)
    plain.save_pretrained(directory)


def _without_weights(model: nn.Module) -> nn.Module:
    """A model of the same class and number type, without LoRA and without memory for weights."""
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)  # that of a GGUF file which was expanded
    with torch.device("meta"):
        return type(model)(type(model.config).from_dict(settings)).to(model.dtype)


def fitting(
    tensors: dict[str, Tensor], wanted: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """The tensors if they are the wanted ones, in name and shape; else UnreadableFileError."""
    shapes = [{name: tuple(t.shape) for name, t in each.items()} for each in (tensors, wanted)]
    odd = sorted(dict(shapes[0].items() ^ shapes[1].items()))
    if odd:
        raise unreadable(path, f"{shown(odd[0])} is not as this model has it")
    return tensors


def contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as a safetensors file takes them."""
    return {name: t.detach().contiguous() for name, t in tensors.items()}
