"""torch's functions that ask about the machine, or never come to __torch_dispatch__."""

from __future__ import annotations

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.optimizer import _foreach_supported_types as optimizers_types
from torch.utils._device import _device_constructors
from torch.utils._foreach_utils import _foreach_supported_types as norms_types

from .tensors import (
    DeviceMismatch,
    GpuMode,
    GpuTensor,
    changed,
    counts,
    on_gpu,
    place,
    to_gpu,
    to_host,
)


def switch_on() -> None:
    """From here on torch says that there is a GPU, for the rest of this process.

    Called before the package is imported, some of whose modules take functions by name.
    """
    if torch.cuda.is_available():  # it is on
        return
    _answer_for_cuda()
    # Module.to replaces what a parameter holds, so that tied weights stay tied.
    torch.__future__.set_swap_module_params_on_conversion(True)
    _device_constructors()  # `with torch.device(...)` remembers torch's own functions from now on
    torch.tensor, torch.as_tensor = map(_made_on_host_first, (torch.tensor, torch.as_tensor))
    Tensor.tolist = _tolist(Tensor.tolist)
    Tensor.__getitem__, Tensor.__setitem__ = map(
        _with_lists_on_the_device, (Tensor.__getitem__, Tensor.__setitem__)
    )
    torch.save, safetensors.torch.save_file = map(
        _from_the_host, (torch.save, safetensors.torch.save_file)
    )
    # On a CUDA device torch takes all tensors of a list at once, if they are of a type it knows.
    for known in (optimizers_types, norms_types):
        known.append(GpuTensor)
    nn.functional.scaled_dot_product_attention = _fused_attention
    GpuMode().__enter__()


def _answer_for_cuda() -> None:
    class Properties:
        name, total_memory, major, minor, multi_processor_count = "in name only", 80e9, 8, 0, 1

    answers = {
        "_lazy_init": None, "is_available": True, "is_initialized": True, "device_count": 1,
        "current_device": 0, "set_device": None, "synchronize": None, "empty_cache": None,
        "manual_seed": None, "manual_seed_all": None, "set_rng_state_all": None,
        "get_rng_state_all": [], "memory_allocated": 0, "get_device_capability": (8, 0),
        "is_bf16_supported": True, "get_device_properties": Properties,
        "get_device_name": Properties.name, "is_current_stream_capturing": False,
        "reset_peak_memory_stats": None, "max_memory_allocated": 0,
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, _answer=answer, **kwargs: _answer)


# Each of these takes one of torch's functions and gives back what stands in its place.


def _made_on_host_first(function):
    """torch.tensor and torch.as_tensor write Python's numbers straight into the device's memory."""

    def make(data, *, dtype=None, device=None, **kwargs):
        if device is None or torch.device(device).type != "cuda" or isinstance(data, Tensor):
            return function(data, dtype=dtype, device=device, **kwargs)
        return function(data, dtype=dtype, **kwargs).to(device)

    return make


def _tolist(function):
    def tolist(tensor):
        return function(tensor.cpu() if on_gpu(tensor) else tensor)

    return tolist


def _with_lists_on_the_device(function):
    """Indexing by a Python list: the list becomes a tensor on the device."""

    def index(tensor, where, *value):
        if on_gpu(tensor):
            parts = where if isinstance(where, tuple) else (where,)
            parts = tuple(torch.tensor(p, device="cuda") if isinstance(p, list) else p
                          for p in parts)  # fmt: skip
            where = parts if isinstance(where, tuple) else parts[0]
        return function(tensor, where, *value)

    return index


def _from_the_host(function):
    """Files hold numbers, and a file of CUDA tensors can be read on a CPU."""

    def save(content, *args, **kwargs):
        return function(changed(_brought_to_host, content), *args, **kwargs)

    return save


def _brought_to_host(x: Tensor) -> Tensor:
    if on_gpu(x):
        counts.syncs[place()] += 1
    return to_host(x).detach() if on_gpu(x) else x


# --- attention, one kernel as on a GPU -----------------------------------------------------------

_attention_on_host = nn.functional.scaled_dot_product_attention


def _fused_attention(query, key, value, attn_mask=None, dropout_p=0.0, **settings):
    """scaled_dot_product_attention as CUDA has it: one kernel forward, one backward."""
    given = [x for x in (query, key, value, attn_mask) if x is not None]
    if not any(map(on_gpu, given)):
        return _attention_on_host(query, key, value, attn_mask, dropout_p, **settings)
    if not all(map(on_gpu, given)):
        raise DeviceMismatch(f"scaled_dot_product_attention on two devices, at {place()}")
    if len({x.dtype for x in given if x.dtype != torch.bool}) > 1:
        raise RuntimeError("scaled_dot_product_attention on tensors of different types")
    return _FusedAttention.apply(query, key, value, attn_mask, settings)


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, mask, settings):
        ctx.inputs = [to_host(x).detach() for x in (query, key, value)]
        ctx.mask, ctx.settings = to_host(mask), settings
        counts.kernels["attention"] += 1
        return GpuTensor(_attention_on_host(*ctx.inputs, ctx.mask, **settings))

    @staticmethod
    def backward(ctx, upstream):
        counts.kernels["attention, backward"] += 1
        inputs = [x.clone().requires_grad_() for x in ctx.inputs]
        with torch.enable_grad():
            output = _attention_on_host(*inputs, ctx.mask, **ctx.settings)
        gradients = torch.autograd.grad(output, inputs, to_host(upstream))
        return *map(to_gpu, gradients), None, None
