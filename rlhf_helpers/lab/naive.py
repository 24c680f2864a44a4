"""PPO's passes with every shortcut off: the other half of the benchmark.

The same mathematics as `Policy`, done as a plain implementation does it (trlX v0.6.0 too): the
reference policy is a second forward pass through the whole model, every update passes through all
layers, the output head and its log-softmax run over all columns, LoRA stays unmerged, and the
key-value cache grows by concatenation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from rlhf_helpers.models.lora import lora_disabled
from rlhf_helpers.models.packed import plain_products
from rlhf_helpers.models.policy import Policy, Scored


class NaivePolicy(Policy):
    """A policy that shares nothing between its passes. Results are those of `Policy`."""

    own_decoding = False
    packs_weights = False

    @plain_products()  # the model may be another policy's, which packed its weights
    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        """transformers' own `generate`: [B, Q] -> [B, Q + new tokens]."""
        return super().generate(input_ids, attention_mask, **kwargs)

    @plain_products()
    def forward(
        self, tokens: Tensor, attention_mask: Tensor, start: int, width: int, trunk: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """All layers and all columns; those asked for are cut out at the end. Two [B, width]."""
        hidden = self._decode(tokens, attention_mask)
        logprobs, values = self._logprobs(hidden, tokens), self.value(hidden)
        return logprobs[:, start : start + width], values[:, start : start + width]

    @plain_products()
    @torch.no_grad()
    def score(
        self, tokens: Tensor, attention_mask: Tensor, start: int = 0, trunk: Tensor | None = None,
        hidden: Tensor | None = None, measured: Sequence[int] | None = None,
    ) -> Scored:  # fmt: skip
        """Two whole forward passes: with LoRA, and without it as the reference policy."""
        hidden = self._decode(tokens, attention_mask)
        logprobs, values = self._logprobs(hidden, tokens), self.value(hidden)[:, :-1]
        with lora_disabled(self.base):
            ref_hidden = self._decode(tokens, attention_mask)
        ref_logprobs = self._logprobs(ref_hidden, tokens)
        nothing = hidden[:, :0]  # no trunk states to keep
        return Scored(logprobs[:, start:], ref_logprobs[:, start:], values[:, start:], nothing)

    def _logprobs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        logits = self.base.get_output_embeddings()(hidden)[:, :-1]
        labels = tokens[:, 1:].unsqueeze(-1)
        logits = logits.float() / self.logit_divisor
        return logits.log_softmax(-1).gather(-1, labels).squeeze(-1)

    @contextmanager
    def merged_for_sampling(self) -> Iterator[None]:
        """LoRA stays beside the weights."""
        yield
