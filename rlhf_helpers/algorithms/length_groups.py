"""Rows of about one length together, so that a processor does not compute much padding.

Texts of one batch end where they will; padded to the longest, most columns of short ones are
padding. A GPU computes them beside the others; a CPU computes them one after the other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

GROUPS = 4
WORTH_IT = 0.8  # columns left, as a share of all, below which rows are grouped


def length_groups(attention_mask: Tensor) -> list[tuple[Tensor, int]]:
    """Indices of rows of about one length, and their width: mask [B, N] -> at most GROUPS groups.

    One group of all rows where that saves little, or on a GPU.
    """
    n_rows, n_columns = attention_mask.shape
    everything = [(torch.arange(n_rows, device=attention_mask.device), n_columns)]
    if attention_mask.device.type != "cpu" or n_rows < 4 * GROUPS:
        return everything
    columns = torch.arange(1, n_columns + 1)
    widths, order = (attention_mask * columns).amax(dim=1).sort(stable=True)
    groups = [
        (rows, max(1, int(ends[-1])))
        for rows, ends in zip(order.tensor_split(GROUPS), widths.tensor_split(GROUPS), strict=True)
    ]
    cost = sum(len(rows) * width for rows, width in groups)
    return groups if cost < WORTH_IT * n_rows * n_columns else everything


def in_length_groups(
    compute: Callable[..., tuple[Tensor, ...]], start: int, width: int, attention_mask: Tensor,
    *tensors: Tensor | None,
) -> tuple[Tensor, ...]:
    """`compute` of each group's rows, put together: tensors [B, width], 0 behind a row's group.

    `compute(width, attention_mask, *tensors)` gets the group's rows of the mask [B, N] and of the
    tensors [B, N, ...] (or None), cut to the group's width, and how many columns from `start` on
    it shall return.
    """
    groups = length_groups(attention_mask)
    if len(groups) == 1:
        return compute(width, attention_mask, *tensors)
    parts = []
    for rows, end in groups:
        own = max(1, min(width, end - 1 - start))
        cut = [None if x is None else x[rows, : max(end, start + 2)]
               for x in (attention_mask, *tensors)]  # fmt: skip
        parts.append([F.pad(x, (0, width - own)) for x in compute(own, *cut)])
    back = torch.cat([rows for rows, _ in groups]).argsort()
    return tuple(torch.cat(column)[back] for column in zip(*parts, strict=True))
