"""Tensors whose numbers lie on the host and which claim to lie on cuda:0.

Every operation on one of them comes to `computed` (PyTorch's __torch_dispatch__, below autograd
and autocast). There it is refused if another tensor of it lies on the CPU, counted, computed on
the host and wrapped again.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
GPU, HOST = torch.device("cuda", 0), torch.device("cpu")


class DeviceMismatch(RuntimeError):
    """Two devices met in one operation: on a GPU this would have been an error of CUDA's."""


class Counts:
    """What a GPU would have been asked to do since the last `reset`, by operation and by place."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything, as a new process does."""
        self.kernels: Counter[str] = Counter()  # by operation
        self.syncs: Counter[str] = Counter()  # the host waits for the device; by line
        self.copies: Counter[str] = Counter()  # from the host to the device; by line
        self.broken = False  # by a device-side assert: then nothing works any more

    def totals(self) -> dict[str, int]:
        """The three numbers."""
        return {name: getattr(self, name).total() for name in ("kernels", "syncs", "copies")}


counts = Counts()


class GpuTensor(Tensor):
    """A tensor on cuda:0, in name; `values` is the tensor on the CPU that holds its numbers."""

    @staticmethod
    def __new__(cls, values: Tensor, requires_grad: bool = False):
        wrapper = Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(),
            dtype=values.dtype, layout=values.layout, device=GPU, requires_grad=requires_grad,
        )  # fmt: skip
        wrapper.values_on_host = values
        return wrapper

    # Functions of torch go on to their operations at once; those come to __torch_dispatch__.
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self) -> str:
        return f"GpuTensor({tuple(self.shape)}, {self.dtype})"

    @property
    def data(self) -> Tensor:
        """The same numbers outside of autograd; assigning to it exchanges the numbers."""
        return GpuTensor(self.values_on_host)

    @data.setter
    def data(self, other: Tensor) -> None:
        Tensor.data.__set__(self, other)
        self.values_on_host = other.values_on_host

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return computed(operation, args, kwargs or {})


class GpuMode(TorchDispatchMode):
    """Catches every operation, also one without a GPU tensor whose result is to lie on the GPU."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        wanted = kwargs.get("device")
        makes_one = wanted is not None and torch.device(wanted).type == "cuda"
        if makes_one or any(map(on_gpu, tensors_in((args, kwargs)))):
            return computed(operation, args, kwargs)
        return operation(*args, **kwargs)


def on_gpu(x: Any) -> bool:
    """Whether this is a tensor that claims to lie on the GPU."""
    return isinstance(x, GpuTensor)


def to_host(x: Any) -> Any:
    """The numbers of a GPU tensor, shared with it; anything else as it is."""
    return x.values_on_host if on_gpu(x) else x


def to_gpu(x: Any) -> Any:
    """A CPU tensor in a GPU tensor's clothes, sharing its numbers; anything else as it is."""
    return GpuTensor(x) if isinstance(x, Tensor) and not on_gpu(x) else x


def tensors_in(x: Any) -> Iterator[Tensor]:
    """All tensors in lists, tuples and dicts."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (list, tuple)):
        for item in x:
            yield from tensors_in(item)
    elif isinstance(x, dict):
        yield from tensors_in(list(x.values()))


def changed(change: Callable[[Any], Any], x: Any) -> Any:
    """The same lists, tuples and dicts with each tensor in them changed."""
    if isinstance(x, (list, tuple)):
        return type(x)([changed(change, item) for item in x])
    if isinstance(x, dict):
        return {name: changed(change, value) for name, value in x.items()}
    return change(x) if isinstance(x, Tensor) else x


# --- one operation ---------------------------------------------------------------------------


def computed(operation, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The result of an operation that has a GPU tensor in it or makes one."""
    tensors = list(tensors_in((args, kwargs)))
    wanted = kwargs.get("device")
    on_device = torch.device(wanted).type == "cuda" if wanted is not None else True
    refuse_two_devices(operation, args, tensors, kwargs.get("generator"))
    refuse_no_probabilities(operation, args)
    count(operation, args, tensors, on_device)
    host_args, host_kwargs = changed(to_host, args), changed(to_host, kwargs)
    if wanted is not None:
        host_kwargs["device"] = HOST
    result = _on_host(operation, host_args, host_kwargs)
    written = _written(operation, args, kwargs)
    if written:  # in place: the tensor itself comes back
        return written[0] if len(written) == 1 else tuple(written)
    if operation is aten._to_copy.default and result is host_args[0]:
        result = result.clone()
    return changed(to_gpu, result) if on_device else result


SOFTMAX = {aten._softmax.default, aten._log_softmax.default}
SOFTMAX_BACKWARD = {aten._softmax_backward_data.default, aten._log_softmax_backward_data.default}


def _on_host(operation, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The operation on the CPU, also where only CUDA goes from half to float32 in one kernel."""
    if operation in SOFTMAX and args[2]:
        return operation(args[0].float(), args[1], False)
    if operation in SOFTMAX_BACKWARD and args[0].dtype != args[3]:
        return operation(*args[:3], args[0].dtype).to(args[3])
    return operation(*args, **kwargs)


def _written(operation, args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an operation writes into and gives back."""
    schema = operation._schema
    values = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
    aliases = [r.alias_info.before_set for r in schema.returns
               if r.alias_info is not None and r.alias_info.is_write]  # fmt: skip
    return [
        values[a.name]
        for alias in aliases
        for a in schema.arguments
        if a.alias_info is not None and a.alias_info.before_set == alias
    ]


# --- what CUDA would refuse --------------------------------------------------------------------

COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
            aten._index_put_impl_.default, aten._unsafe_index.Tensor}  # fmt: skip


def refuse_two_devices(operation, args: tuple, tensors: list[Tensor], generator) -> None:
    """Raise DeviceMismatch where tensors of two devices meet.

    As CUDA has it, a number on the CPU (a tensor without dimensions) may meet anything, a GPU
    tensor may be indexed by a CPU tensor, and a copy is what crosses from one device to the other.
    """
    strangers = [x for x in tensors if not on_gpu(x) and x.ndim > 0]
    if operation in INDEXING and on_gpu(args[0]):
        strangers = []
    if strangers and len(strangers) < len(tensors) and operation not in COPIES:
        shapes = [tuple(x.shape) for x in tensors]
        places = ["cuda" if on_gpu(x) else "cpu" for x in tensors]
        raise DeviceMismatch(f"{operation} on tensors {shapes} of {places}, at {place()}")
    if generator is not None and generator.device.type == "cpu":
        raise DeviceMismatch(f"{operation} on the GPU with a generator of the CPU, at {place()}")


def refuse_no_probabilities(operation, args: tuple) -> None:
    """What CUDA does where torch.multinomial meets no numbers, and with all that comes after it."""
    if operation is aten.multinomial.default:
        p = to_host(args[0])
        counts.broken |= not (torch.isfinite(p).all() and (p >= 0).all() and (p.sum(-1) > 0).all())
    if counts.broken:
        raise RuntimeError(
            "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously "
            "reported at some other API call, so the stacktrace below might be incorrect."
        )


# --- what it would cost ------------------------------------------------------------------------

# Their result's size or value decides what the host does next.
WAITED_FOR = {aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default,
              aten.nonzero.default, aten.masked_select.default}  # fmt: skip
NO_KERNEL = {aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default,
             aten.new_empty.default, aten.new_empty_strided.default,
             aten._local_scalar_dense.default, aten.detach.default, aten.alias.default,
             aten.lift_fresh.default, aten._unsafe_view.default}  # fmt: skip


def count(operation, args: tuple, tensors: list[Tensor], on_device: bool) -> None:
    """Count an operation as CUDA would run it."""
    by_mask = operation in INDEXING and any(x.dtype == torch.bool for x in tensors[1:])
    if operation in COPIES:
        target = on_device if operation is aten._to_copy.default else on_gpu(args[0])
        source = on_gpu(args[0] if operation is aten._to_copy.default else args[1])
        if source != target:
            (counts.copies if target else counts.syncs)[place()] += 1
            return
    if operation in WAITED_FOR or by_mask:
        counts.syncs[place()] += 1
    if not is_view(operation) and operation not in NO_KERNEL:
        counts.kernels[operation.name().removeprefix("aten::")] += 1


def is_view(operation) -> bool:
    """Whether the result only looks at memory that is there already."""
    returned = operation._schema.returns
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returned)


def place() -> str:
    """The innermost line of the package that is being run, as file.py:line."""
    frame = sys._getframe(1)
    while frame is not None:
        if "/rlhf_helpers/" in frame.f_code.co_filename:
            return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside of the package"
