"""Direct preference optimisation of a policy: preferences without a reward model and without RL.

The loss is in algorithms/preferences.py (Rafailov et al. 2023, equation 7). The reference policy
is the same model with LoRA off, so that its log-probabilities are computed once.

Shapes: n pairs, B of them in a batch, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rlhf_helpers.algorithms.preferences import dpo_loss
from rlhf_helpers.making.kept_texts import KeptTexts
from rlhf_helpers.models.policy import Policy
from rlhf_helpers.progress import Progress
from rlhf_helpers.rewards.preferences import Pair


class ResponseTexts:
    """Prompts with a response each, and the log-probabilities of the responses."""

    def __init__(self, policy: Policy, prompts: Sequence[str], responses: Sequence[str],
                 add_special_tokens: bool):  # fmt: skip
        """Tokenise prompts and responses apart, as sampling does; no end-of-text is added.

        Responses that were cut at a number of tokens did not end; a response that ended lacks
        that one decision. Of an empty response, ending is the only decision.
        """
        self.policy, tokenizer = policy, policy.tokenizer
        before = tokenizer(list(prompts), add_special_tokens=add_special_tokens)["input_ids"]
        after = tokenizer(list(responses), add_special_tokens=False)["input_ids"]
        after = [row or [tokenizer.eos_token_id] for row in after]
        self.starts = [len(row) for row in before]
        self.lengths = [len(row) for row in after]
        rows = [p + r for p, r in zip(before, after, strict=True)]
        self.kept = KeptTexts(policy, rows, "Trunk states")

    def logprobs(self, indices: Sequence[int], reference: bool = False) -> Tensor:
        """Summed log-probability of the responses of these texts, [B] nats."""
        tokens, mask, trunk = self.kept.batch(indices)
        run = self.policy.reference_top if reference else self.policy.top
        hidden = run(trunk, tokens, mask)[:, :-1]
        each = self.policy.label_logprobs(hidden, tokens[:, 1:])  # [B, N - 1]
        first = torch.tensor([self.starts[i] - 1 for i in indices], device=tokens.device)
        columns = torch.arange(each.shape[1], device=tokens.device)
        return (each * (mask[:, 1:] * (columns >= first.unsqueeze(1)))).sum(1)

    @torch.no_grad()
    def reference_logprobs(self, size: int = 64) -> Tensor:
        """Of every text, under the reference policy, [n] nats."""
        n, parts = len(self.starts), []
        with Progress(n, "Reference", unit="text") as progress:
            for first in range(0, n, size):
                indices = range(first, min(first + size, n))
                parts.append(self.logprobs(indices, reference=True))
                progress.update(n=len(indices))
        return torch.cat(parts)


def train_dpo(
    policy: Policy,
    pairs: Sequence[Pair],
    beta: float,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    add_special_tokens: bool,
) -> list[dict[str, float]]:
    """Train the policy's LoRA on pairs, in place; the losses, accuracies and margins by step.

    AdamW at a rate that falls linearly to 0; the pairs in a new order at each pass.
    """
    prompts, n = [pair.prompt for pair in pairs], len(pairs)
    responses = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    texts = ResponseTexts(policy, prompts * 2, responses, add_special_tokens)
    reference = texts.reference_logprobs()
    parameters = [p for n, p in policy.trainable_parameters().items() if not n.startswith("v_head")]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    torch.manual_seed(seed)  # of the dropout
    order = _order(n, steps * batch_size, seed)
    course = []
    policy.set_dropout(active=True)
    with Progress(steps, "DPO") as progress:
        for step in range(steps):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            indices = [*chosen, *(n + i for i in chosen)]
            ref_chosen, ref_rejected = reference[indices].chunk(2)
            found = dpo_loss(*texts.logprobs(indices).chunk(2), ref_chosen, ref_rejected, beta)
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
            optimizer.zero_grad()
            found.loss.backward()
            optimizer.step()
            course.append({name: value.item() for name, value in found._asdict().items()})
            progress.update(loss=course[-1]["loss"], accuracy=course[-1]["accuracy"])
    policy.set_dropout(active=False)
    return course


def _order(n: int, needed: int, seed: int) -> list[int]:
    """`needed` indices: every pair once before any comes again."""
    order: list[int] = []
    for k in range(-(-needed // n)):
        order += np.random.default_rng([seed, k]).permutation(n).tolist()
    return order[:needed]
