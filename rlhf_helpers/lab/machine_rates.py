"""How fast this machine multiplies matrices of the given sizes, and copies memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

COPY_BYTES = 1 << 28  # more than any processor's cache holds
SECONDS = 0.25  # for each measurement


Clock = Callable[[], float]


def matmul_rate(
    rows: int, inner: int, columns: int, dtype: torch.dtype, device: str, clock: Clock
) -> float:
    """FLOP/s of [rows, inner] x [inner, columns], laid out as a linear layer has them."""
    x = torch.randn(rows, inner, device=device, dtype=dtype)
    weight = torch.randn(columns, inner, device=device, dtype=dtype)
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    seconds = _median_seconds(lambda: torch.mm(x, weight.t(), out=out), device, clock)
    return 2 * rows * inner * columns / seconds


def copy_rate(device: str, clock: Clock) -> float:
    """Bytes a second that a copy in memory reads and writes, both counted."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _median_seconds(lambda: target.copy_(source), device, clock)


def _median_seconds(work: Callable[[], object], device: str, clock: Clock) -> float:
    work()
    times: list[float] = []
    while sum(times) < SECONDS or len(times) < 3:
        synchronize(device)
        started = clock()
        work()
        synchronize(device)
        times.append(clock() - started)
    return statistics.median(times)


def synchronize(device: str) -> None:
    """Wait until a GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
