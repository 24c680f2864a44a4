"""Frozen weights, kept a second time in the order in which a processor multiplies them fastest.

torch's plain product of a few rows with a large matrix reads that matrix line by line. oneDNN,
which torch brings along, can reorder a matrix once and then multiply faster; that pays for weights
that never change, which here are all but LoRA's. A second packing, of the transpose, serves the
backward pass. float32 on a CPU only.

The operators are torch's own but not public. Everything stays as it is where they are missing,
where they gain less than a tenth in a short measurement (`packing_pays`), and where the copies
would take more than half of the memory that is free. RLHF_PACKED=1 or 0 in the environment decides
without measuring. Packed and plain products differ in the last bits: a run that must repeat another
one to the last bit on another machine needs the same decision, which RLHF_PACKED can fix.

Layers with LoRA are not packed: their weights change while LoRA is merged for sampling.

Shapes: [..., in] times a weight [out, in] gives [..., out].
"""

from __future__ import annotations

import functools
import os
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .lora_state import lora_sites

SWITCH = "RLHF_PACKED"
SMALLEST = 500_000  # numbers of a matrix; smaller ones stay in the cache and gain nothing
GAIN = 1.1  # packed products are used where they are so many times as fast
ROWS = 16  # for which oneDNN chooses the order; the order serves other numbers of rows as well


class PackedWeight:
    """A frozen weight [out, in], packed for products with it and, once needed, its transpose."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, transposed: bool = False):
        """`weight` [out, in] (or [in, out] where `transposed`, as GPT-2 has it), `bias` [out]."""
        self.weight, self.bias, self.transposed = weight, bias, transposed
        self.version = _version(weight)
        self.forward_order = _packed(weight.t() if transposed else weight)
        self.backward_order: Tensor | None = None

    def __deepcopy__(self, memo) -> PackedWeight:
        return self  # a copied module has another weight, and `serves` sees that

    def serves(self, weight: Tensor, x: Tensor) -> bool:
        """Whether it is this very weight, unchanged, and x can be multiplied with it.

        torch counts the changes of a tensor, but not those through `.data`: nobody makes one here.
        """
        return (
            _IN_USE[0] and self.weight is weight and self.version == _version(weight)
            and x.dtype == torch.float32 and x.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
        )  # fmt: skip

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., in] -> x W^T + b [..., out], with a gradient for x."""
        return _PackedProduct.apply(x, self) if x.requires_grad else self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """The same without gradients."""
        return torch.ops.mkldnn._linear_pointwise(x, self.forward_order, self.bias, "none", [], "")

    def product_back(self, gradient: Tensor) -> Tensor:
        """gradient [..., out] -> gradient W [..., in], without gradients."""
        if self.backward_order is None:
            self.backward_order = _packed(self.weight if self.transposed else self.weight.t())
        return torch.ops.mkldnn._linear_pointwise(
            gradient, self.backward_order, None, "none", [], ""
        )


class _PackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, packed: PackedWeight) -> Tensor:
        ctx.packed = packed
        return packed.product(x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return ctx.packed.product_back(gradient.contiguous()), None


def _packed(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)


def _version(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), weight._version


# --- in a model --------------------------------------------------------------------------------


def pack_frozen(*models: nn.Module, measured: bool = True) -> int:
    """Pack what `packable_modules` names, where that pays here; returns how many modules.

    Without `measured` a run that goes on is packed as it was before, if this torch can.
    """
    modules = [m for model in models for m in packable_modules(model) if "packed" not in vars(m)]
    modules = [m for m in modules if m.weight.device.type == "cpu"]
    needed = sum(module.weight.nbytes for module in modules)
    if not modules or not (packing_pays() if measured else _operators_work()):
        return 0
    if measured and needed > psutil.virtual_memory().available / 2:
        return 0
    for module in modules:
        module.packed = PackedWeight(module.weight, module.bias, isinstance(module, Conv1D))
        # A method, not a closure: a copy of the module must not compute with this one's weight.
        module.forward = types.MethodType(_forward, module)
    return len(modules)


def packable_modules(model: nn.Module) -> list[nn.Module]:
    """Linear layers whose weight is large, float32, and never changes."""
    changing = {id(site.weight) for site in lora_sites(model)}
    return [
        module
        for module in model.modules()
        if type(module) in (nn.Linear, Conv1D) and "forward" not in vars(module)
        and id(module.weight) not in changing and module.weight.dtype == torch.float32
        and module.weight.numel() >= SMALLEST
        and not any(p.requires_grad for p in module.parameters())
    ]  # fmt: skip


def packed_of(module: nn.Module, x: Tensor) -> PackedWeight | None:
    """The module's packed weight, where it has one that serves x."""
    packed = vars(module).get("packed")
    return packed if packed is not None and packed.serves(module.weight, x) else None


def _forward(module: nn.Module, x: Tensor) -> Tensor:
    packed = packed_of(module, x)
    return type(module).forward(module, x) if packed is None else packed(x)


_IN_USE = [True]


@contextmanager
def plain_products() -> Iterator[None]:
    """Within it, nothing is multiplied with packed weights."""
    before, _IN_USE[0] = _IN_USE[0], False
    try:
        yield
    finally:
        _IN_USE[0] = before


# --- whether it pays ---------------------------------------------------------------------------


def packing_pays() -> bool:
    """Whether packed products are used: as RLHF_PACKED says, else measured once a process."""
    if not _operators_work():
        return False
    switch = os.environ.get(SWITCH)
    if switch in ("0", "1"):
        return switch == "1"
    return measured_gain() >= GAIN


@functools.cache
def _operators_work() -> bool:
    """Whether this torch has the operators and they compute the product."""
    x, weight = torch.ones(2, 3), torch.arange(12.0).view(4, 3)
    try:
        found = PackedWeight(weight).product(x)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return torch.allclose(found, x @ weight.t())


@functools.cache
def measured_gain(pairs: int = 7) -> float:
    """Time of plain products over that of packed ones: the median of pairs taken in turn.

    16 rows with four matrices of 512 x 2048, 16 MB together: they do not fit a processor's second
    cache, as a model's layers do not.
    """
    with torch.no_grad():
        x = torch.ones(ROWS, 512)
        weights = [torch.ones(2048, 512) for _ in range(4)]
        packed = [PackedWeight(weight) for weight in weights]
        gains = []
        for _ in range(pairs):
            plain = _seconds(lambda: [F.linear(x, weight) for weight in weights])
            gains.append(plain / _seconds(lambda: [p.product(x) for p in packed]))
    return sorted(gains)[pairs // 2]


def _seconds(work: Callable[[], object]) -> float:
    """Computing time of this process: what else runs on the machine does not count."""
    started = time.process_time()
    work()
    return max(time.process_time() - started, 1e-9)
