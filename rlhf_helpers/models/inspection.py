"""What 03_lora_parameter_inspection looks at: the file lora_report.json of a run directory."""

from __future__ import annotations

from typing import Any

import torch

from rlhf_helpers.config.sections import ModelConfig

from .lora import count_table, parameter_report, structure_tree
from .lora_state import LoraSite, lora_sites
from .policy import Policy

PROBE_TEXT = "This movie was terrible. Really? I loved it."


def lora_report(policy: Policy, model_config: ModelConfig) -> dict[str, Any]:
    """Tree, counts, matrices, what B = 0 means, and how rank and layers change the count."""
    return {
        **parameter_report(policy.base),
        "tree": structure_tree(policy.base),
        "matrices": matrix_rows(policy),
        "equality": equality_report(policy),
        "counts": count_table(policy.base.config, model_config),
    }


def matrix_rows(policy: Policy) -> list[dict[str, Any]]:
    """One row for each LoRA matrix: its name, shape, size, and largest absolute entry."""
    rows = []
    for site in lora_sites(policy.base):
        for letter, matrix in (("A", site.lora_A), ("B", site.lora_B)):
            rows.append({
                "name": f"{site.name}.lora.lora_{letter}",
                "shape": list(matrix.shape),
                "parameters": matrix.numel(),
                "largest": matrix.detach().abs().max().item(),
            })  # fmt: skip
    return rows


@torch.no_grad()
def equality_report(policy: Policy, text: str = PROBE_TEXT, size: float = 0.01) -> dict[str, Any]:
    """Largest difference between policy and reference, in nats, over the tokens of `text`:
    as they are, and with every entry of one B set to `size` for a moment."""
    site = lora_sites(policy.base)[0]
    as_is = largest_difference(policy, text)
    kept = site.lora_B.detach().clone()
    try:
        site.lora_B.fill_(size)
        moved = largest_difference(policy, text)
    finally:
        site.lora_B.copy_(kept)
    return {"text": text, "as_is": as_is, "moved": moved, "moved_module": _short(site),
            "size": size, "put_back": largest_difference(policy, text)}  # fmt: skip


@torch.no_grad()
def largest_difference(policy: Policy, text: str) -> float:
    """max over tokens of |log pi - log pi_ref| on `text`, in nats, LoRA's dropout off."""
    was_active = policy.lora_dropout_active
    policy.set_dropout(active=False)
    try:
        tokens = policy.tokenizer(text, return_tensors="pt")["input_ids"].to(policy.device)
        scored = policy.score(tokens, torch.ones_like(tokens))
    finally:
        policy.set_dropout(was_active)
    return (scored.logprobs - scored.ref_logprobs).abs().max().item()


def _short(site: LoraSite) -> str:
    return ".".join(site.name.split(".")[-3:])
