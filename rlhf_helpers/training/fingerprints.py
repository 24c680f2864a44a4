"""What a run is made of beside its configuration: base weights and prompts, as short digests.

A checkpoint holds neither, so that going on with others would be a silent mixture of two runs.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf_helpers.config.checks import ConfigError, ConfigWarning
from rlhf_helpers.data.prompts import Prompt

SAMPLED = 256  # numbers of each tensor: training, of any kind, changes all of them


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of token ids and metadata, in order."""
    rows = [[p.input_ids, p.metadata] for p in prompts]
    # Metadata may be any object: of one that JSON does not know the type has to do.
    text = json.dumps(rows, default=lambda value: type(value).__name__, skipkeys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@torch.no_grad()
def frozen_weights_digest(base: nn.Module) -> str:
    """SHA-256 of the names and shapes of all frozen parameters, and of SAMPLED numbers of each."""
    digest = hashlib.sha256()
    for name, parameter in sorted(base.named_parameters()):
        if parameter.requires_grad:
            continue
        flat = parameter.detach().reshape(-1)
        numbers = flat[:: max(1, flat.numel() // SAMPLED)][:SAMPLED].cpu()
        if numbers.is_floating_point():
            numbers = numbers.float()
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(numbers.contiguous().numpy().tobytes())
    return digest.hexdigest()


def fingerprints(trainer) -> dict[str, Any]:
    """Digests of this process's trainer, as a checkpoint keeps them."""
    return {
        "number_type": str(trainer.policy.base.dtype),
        "weights": frozen_weights_digest(trainer.policy.base),
        "prompts": prompts_digest(trainer.experience.prompts.prompts),
        "eval_prompts": prompts_digest(trainer.eval_prompts),
    }


def check_same_material(saved: dict[str, Any], now: dict[str, Any], directory: Path) -> None:
    """ConfigError where base weights or prompts differ from those of the checkpoint's run.

    Other evaluation prompts change what is measured and not what is learnt: a ConfigWarning. In
    another number type the same weights are other numbers, and are not compared.
    """
    same_type = saved.get("number_type") == now["number_type"]
    for name, what in (("weights", "base weights"), ("prompts", "prompts")):
        if (name != "weights" or same_type) and saved.get(name, now[name]) != now[name]:
            raise ConfigError(
                f"{directory} holds a run that began with other {what}: give those, or choose "
                "another directory."
            )
    if saved.get("eval_prompts", now["eval_prompts"]) != now["eval_prompts"]:
        warnings.warn(
            f"the run in {directory} was evaluated on other prompts until now", ConfigWarning,
            stacklevel=2,
        )  # fmt: skip
