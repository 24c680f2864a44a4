"""The precision policy: which number of a run has which type, all of it on one page.

`model.dtype` is the type of what is frozen. Whatever learns is float32 and computes in float32.

    what                                         kept in      computes in
    -------------------------------------------  -----------  -----------------------------------
    embeddings, frozen layers and norms, head    model.dtype  model.dtype
    LoRA's matrices A and B                      float32      float32; its sum with the frozen
                                                              layer is rounded to model.dtype
    top layers that learn (a run without LoRA),  float32      float32; states are widened as they
    and the reference policy's copy of them                   enter and rounded as they leave
    value head                                   float32      float32
    logits                                       float32      model.dtype (the head is frozen)
    log-softmax, KL, advantages, losses          float32      float32
    gradients, the optimizer's moments           float32      float32
    trunk states kept for later passes           model.dtype

Why float32 where something learns: bfloat16 has 8 bits, so that two neighbouring numbers near 0.02
are 1e-4 apart, and a step of 3e-5 rounds to no step. In float16 the step is not lost, but its
gradients need a scaled loss (torch's GradScaler), and that wants float32 gradients.

There is no autocast: every module is handed numbers of the type of its weights. Autocast asks
again at each operation, copies what it casts (246 of 660 kernels of a sampled token), and would
compute in half precision what is float32 here. LoRA that is merged into the frozen weights for
sampling is rounded to model.dtype with them; the samples' log-probabilities are then taken with
LoRA beside the weights, as it learns.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn

from .lora_state import lora_sites

BFLOAT16_CAPABILITY = 8  # of NVIDIA GPUs that have it in hardware: A100, RTX 30, L4 and newer


def default_dtype(device: torch.device) -> torch.dtype:
    """What `model.dtype: null` means: float32 on a CPU, a GPU's own half precision.

    A T4 or V100 can only emulate bfloat16, slowly; torch counts that as support. They get float16.
    """
    if device.type != "cuda":
        return torch.float32
    major, _minor = torch.cuda.get_device_capability(device)
    return torch.bfloat16 if major >= BFLOAT16_CAPABILITY else torch.float16


# --- LoRA ----------------------------------------------------------------------------------------


def lora_in_float32(model: nn.Module) -> None:
    """Keep LoRA's matrices of a float16 or bfloat16 model in float32, and compute in it.

    peft's forward does that with float32 matrices by itself; OpenDelta's gets one that does.
    """
    for site in lora_sites(model):
        if site.lora_A.dtype == torch.float32:
            continue
        site.lora_A.data, site.lora_B.data = site.lora_A.data.float(), site.lora_B.data.float()
        if site.backend == "opendelta":
            low_rank = site.module.lora
            low_rank.forward = types.MethodType(_low_rank_in_float32, low_rank)


def _low_rank_in_float32(low_rank: nn.Module, x: Tensor) -> Tensor:
    """scaling * B A dropout(x): [..., in] of any type -> [..., out] in float32."""
    wide = low_rank.lora_dropout(x.float())
    return wide @ low_rank.lora_A.T @ low_rank.lora_B.T * low_rank.scaling


# --- layers that learn ---------------------------------------------------------------------------


def layers_in_float32(layers: nn.ModuleList) -> None:
    """Turn consecutive decoder layers of a half-precision model to float32, in place.

    Whatever calls them stays as it is: the first layer widens what it is given, the last one
    rounds what it gives back to the type that the layers had. Copies of the layers do the same.
    """
    outside = next(layers.parameters()).dtype
    if outside == torch.float32:
        return
    layers.float()
    for layer in layers:  # each one: masks, positions and ALiBi come to every layer anew
        layer.register_forward_pre_hook(_widen_inputs, with_kwargs=True)
    layers[-1].register_forward_hook(_Rounded(outside))


def _widen_inputs(_layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    return _cast(args, torch.float32), {k: _cast(v, torch.float32) for k, v in kwargs.items()}


class _Rounded:
    """A forward hook that gives a layer's output the type that the rest of the model has."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype

    def __call__(self, _layer: nn.Module, _args: tuple, output: Any) -> Any:
        return _cast(output, self.dtype)


def _cast(x: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors, alone or in tuples, in another type; all else (a cache) as it is."""
    if isinstance(x, tuple):
        return tuple(_cast(item, dtype) for item in x)
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
