"""Masks of attention made here, for models that take them as they are.

Left to make a mask itself, transformers looks at the values of the padding mask, and a GPU's host
waits for the answer each time.
"""

from __future__ import annotations

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from .kv_cache import RoomyLayer, roomy_cache


def takes_ready_masks(base: PreTrainedModel, takes_positions: bool) -> bool:
    """Whether `base` takes a mask of attention as it is. transformers 4 does not, BLOOM makes its
    positions from the mask, and layers with a window have masks of their own."""
    return (
        int(transformers.__version__.split(".")[0]) >= 5
        and takes_positions
        and base.config._attn_implementation == "sdpa"
        and all(type(layer) is RoomyLayer for layer in roomy_cache(base.config, 1).layers)
    )


def causal_mask(mask: Tensor) -> Tensor:
    """What each column may look at: itself, and what lies before it and is no padding.

    [B, N], 1 or 0 -> [B, 1, N, N], true where the second-last index may look at the last.
    """
    width = mask.shape[1]
    itself = torch.eye(width, dtype=torch.bool, device=mask.device)
    before = torch.ones(width, width, dtype=torch.bool, device=mask.device).tril()
    return (before & mask.bool()[:, None, None]) | itself
