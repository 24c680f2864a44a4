"""What trlX v0.6.0 does, and what its correction does instead: every difference, on this page.

`method.semantics` chooses. Both classes answer the same questions in the same order, which is the
order of the table in docs/coming_from_trlx.md; the reasons stand there. Nothing else in this
project asks which of the two is at work.

Shapes: n sequences of one chunk, Q padded prompt length, R padded response length, N = Q + R.
Column j of [n, N - 1] is the decision that predicts token j + 1; the response's first is Q - 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_helpers.algorithms.ppo import kl_k3, kl_trlx
from rlhf_helpers.config.sections import PPOConfig
from rlhf_helpers.config.trl_config import warn_of_truncation
from rlhf_helpers.models.policy import Policy

from .sequences import Sequences, response_lengths, tokenised_again


class TrlxSemantics:
    """trlX v0.6.0, quirks included, number for number."""

    # 1. Beginning of text: prompts get no special tokens, although OPT expects `</s>` in front.
    adds_special_tokens = False

    # 2. Response tokens: the output's text, tokenised again, special tokens included.
    keeps_drawn_ids = False

    def responses(
        self, tokenizer: PreTrainedTokenizerBase, drawn: Tensor, outputs: Sequence[str],
        stop_sequences: Sequence[str], ends: Sequence[int] | None = None,
    ) -> tuple[Tensor, list[int] | None]:  # fmt: skip
        """Ids [n, R] that the update sees, and how many of each row are real, if that is known.

        `ends`: the token ids that end a sample.
        """
        return tokenised_again(tokenizer, outputs).to(drawn.device), None

    # 3. Attention mask: whatever is not padding; since pad is eos, a real end is masked too.
    def attention_mask(
        self, tokens: Tensor, prompt_mask: Tensor, lengths: list[int] | None, pad_id: int
    ) -> Tensor:
        """1 where a token can be attended to: [n, N]."""
        return (tokens != pad_id).long()

    # 4. Columns in the loss: by the mask of the input token, also past the stored columns.
    def loss_mask(self, attention_mask: Tensor, query_width: int) -> Tensor:
        """1 on the columns that enter the loss: [n, N - 1]."""
        return attention_mask[:, :-1]

    def minibatch_mask(self, loss_mask: Tensor, seen: Tensor) -> Tensor:
        """The same in a minibatch [B, T], where `seen` is the attention mask of its columns."""
        return seen

    # 5. Score: on the last stored column, which can lie one past the end, outside the loss.
    def ends(self, attention_mask: Tensor, query_width: int) -> list[int]:
        """Exclusive end of each sequence's stored columns."""
        start = query_width - 1
        ends = start + attention_mask[:, start:].sum(1) + 1
        return ends.clamp(max=attention_mask.shape[1] - 1).tolist()

    # 6. Text for reward_fn: ends in a literal `</s>` during rollouts.
    appends_eos_text = True

    # 7. Divergence: per entry of the whole chunk, prompt and padding too, ratio turned round.
    def counted(self, sequences: Sequences) -> Tensor:
        """1 on the columns whose log-probabilities count in penalty and divergence: [n, N - 1]."""
        return sequences.attention_mask[:, :-1]

    def needs_prompt_columns(self, is_last_chunk: bool) -> bool:
        """Whether the prompt's columns have to be scored: a chunk's divergence runs over them."""
        return is_last_chunk

    def measured(self, n: int, kl_coef: float) -> range:
        """Which of a chunk's n rollouts are compared with the reference policy: all."""
        return range(n)

    def divergence(self, logprobs: Tensor, ref_logprobs: Tensor) -> float:
        """What the controller compares with its target; masked entries are 0 in both [n, C].

        Of chunks before the last one, whose prompts were not scored, nobody asks for it.
        """
        return kl_trlx(logprobs, ref_logprobs).mean().item()

    # 8. KL controller: moves once a minibatch, by the last chunk's divergence.
    def controller_input(self, chunk_divergences: Sequence[float], sizes: Sequence[int]) -> float:
        """The divergence of an iteration, from those of its chunks of so many rollouts."""
        return chunk_divergences[-1]

    def mean_of_chunks(self, means: Sequence[float], sizes: Sequence[int]) -> float:
        """The mean of an iteration, from those of its chunks: a short chunk counts as a whole."""
        return sum(means) / len(means)

    def controller_steps(
        self, position: int, steps: int, epochs: int, batch_size: int, rollouts: int
    ) -> int | None:
        """How many samples the controller counts after step `position` of `steps`; None: none."""
        return batch_size if position % epochs == 0 else None

    # 9. Whitening, approx_kl: moments over padding too; every process by itself.
    def statistics_mask(self, loss_mask: Tensor) -> Tensor | None:
        """The entries [B, T] that enter whitening and approx_kl; None: all."""
        return None

    shares_mask_between_processes = False

    # 10. Epochs: each minibatch ppo_epochs times in a row.
    def plan(
        self, n: int, batch_size: int, epochs: int, generator: torch.Generator
    ) -> list[list[int]]:
        """Which of n rollouts enter each optimizer step of an iteration."""
        batches = shuffled_minibatches(n, batch_size, generator)
        return [batch for batch in batches for _ in range(epochs)]

    # 11. LoRA's dropout: active always.
    dropout_outside_updates = True

    # 12. Temperature: log-probabilities at 1, whatever the samples were drawn at.
    def logprob_temperature(self, policy: Policy, method: PPOConfig) -> float:
        """T of the distribution softmax(logits / T) whose log-probabilities are taken."""
        return 1.0


class CorrectedSemantics:
    """The same algorithm with each of trlX's quirks mended."""

    # 1. Beginning of text: where the tokenizer puts it.
    adds_special_tokens = True

    # 2. Response tokens: the very ids that were drawn, up to and with end-of-text.
    keeps_drawn_ids = True

    def responses(
        self, tokenizer: PreTrainedTokenizerBase, drawn: Tensor, outputs: Sequence[str],
        stop_sequences: Sequence[str], ends: Sequence[int] | None = None,
    ) -> tuple[Tensor, list[int] | None]:  # fmt: skip
        """Ids [n, R] that the update sees, and how many of each row are real."""
        lengths = response_lengths(tokenizer, drawn, stop_sequences, ends)
        ids = drawn[:, : max(lengths)].clone()
        ids.masked_fill_(_first(lengths, ids) == 0, tokenizer.pad_token_id)
        return ids, lengths

    # 3. Attention mask: explicit, so that a real end of text is seen.
    def attention_mask(
        self, tokens: Tensor, prompt_mask: Tensor, lengths: list[int] | None, pad_id: int
    ) -> Tensor:
        """1 where a token can be attended to: [n, N]."""
        return torch.cat([prompt_mask, _first(lengths, tokens[:, prompt_mask.shape[1] :])], 1)

    # 4. Columns in the loss: those that predict a token that was drawn.
    def loss_mask(self, attention_mask: Tensor, query_width: int) -> Tensor:
        """1 on the columns that enter the loss: [n, N - 1]."""
        prompt = attention_mask.new_zeros(len(attention_mask), query_width - 1)
        return torch.cat([prompt, attention_mask[:, query_width:]], 1)

    def minibatch_mask(self, loss_mask: Tensor, seen: Tensor) -> Tensor:
        """The same in a minibatch: [B, T]."""
        return loss_mask

    # 5. Score: on the column that predicts the last real token.
    def ends(self, attention_mask: Tensor, query_width: int) -> list[int]:
        """Exclusive end of each sequence's stored columns."""
        return (query_width - 1 + attention_mask[:, query_width:].sum(1)).tolist()

    # 6. Text for reward_fn: never a special token.
    appends_eos_text = False

    # 7. Divergence: k3 over the response's columns, in nats a sequence.
    def counted(self, sequences: Sequences) -> Tensor:
        """1 on the columns whose log-probabilities count in penalty and divergence: [n, N - 1]."""
        return sequences.loss_mask

    def needs_prompt_columns(self, is_last_chunk: bool) -> bool:
        """Never: only the response's columns count."""
        return False

    def measured(self, n: int, kl_coef: float) -> range:
        """Which of a chunk's n rollouts are compared with the reference policy.

        All, as long as a coefficient makes use of it. At 0 the divergence is only looked at: every
        fourth rollout gives the same mean without bias, from 32 rollouts at least.
        """
        return range(n) if kl_coef else range(0, n, min(4, max(1, n // 32)))

    def divergence(self, logprobs: Tensor, ref_logprobs: Tensor) -> float:
        """What the controller compares with its target; masked entries are 0 in both [n, C]."""
        return kl_k3(logprobs, ref_logprobs).sum(1).mean().item()

    # 8. KL controller: moves once an iteration, by all rollouts.
    def controller_input(self, chunk_divergences: Sequence[float], sizes: Sequence[int]) -> float:
        """The divergence of an iteration, from those of its chunks of so many rollouts."""
        return self.mean_of_chunks(chunk_divergences, sizes)

    def mean_of_chunks(self, means: Sequence[float], sizes: Sequence[int]) -> float:
        """The mean of an iteration, from those of its chunks: every rollout counts the same."""
        return sum(m * size for m, size in zip(means, sizes, strict=True)) / sum(sizes)

    def controller_steps(
        self, position: int, steps: int, epochs: int, batch_size: int, rollouts: int
    ) -> int | None:
        """How many samples the controller counts after step `position` of `steps`; None: none."""
        return rollouts if position == steps else None

    # 9. Whitening, approx_kl: over response tokens, of all processes together.
    def statistics_mask(self, loss_mask: Tensor) -> Tensor | None:
        """The entries [B, T] that enter whitening and approx_kl."""
        return loss_mask

    shares_mask_between_processes = True

    # 10. Epochs: each passes over all rollouts, reshuffled.
    def plan(
        self, n: int, batch_size: int, epochs: int, generator: torch.Generator
    ) -> list[list[int]]:
        """Which of n rollouts enter each optimizer step of an iteration."""
        passes = (shuffled_minibatches(n, batch_size, generator) for _ in range(epochs))
        return [batch for one_pass in passes for batch in one_pass]

    # 11. LoRA's dropout: active in updates only.
    dropout_outside_updates = False

    # 12. Temperature: log-probabilities at that of the samples, the reference policy's too.
    def logprob_temperature(self, policy: Policy, method: PPOConfig) -> float:
        """T of the distribution softmax(logits / T) whose log-probabilities are taken.

        ConfigWarning where the samples leave out tokens (top_k ...), which no T describes.
        """
        from rlhf_helpers.models.decoding import settings_in_effect  # not above: see Policy

        settings = method.gen_experience_kwargs or method.gen_kwargs
        warn_of_truncation(method, settings_in_effect(policy.base, settings))
        return policy.sampling_temperature(settings)


Semantics = TrlxSemantics | CorrectedSemantics


def semantics_of(name: str) -> Semantics:
    """The object for a value of `method.semantics`, which the configuration has checked."""
    return {"trlx": TrlxSemantics, "corrected": CorrectedSemantics}[name]()


def sequences_of(
    semantics: Semantics,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    samples: Tensor,
    outputs: Sequence[str] = (),
    stop_sequences: Sequence[str] = (),
    ends: Sequence[int] | None = None,
) -> Sequences:
    """Prompts [n, Q] and samples [n, Q + new tokens], as the update will see them.

    `outputs`: the texts of the responses, which trlX tokenises again. `ends`: the token ids that
    end a sample (`end_ids`); None: end-of-text.
    """
    width = prompt_ids.shape[1]
    responses, lengths = semantics.responses(
        tokenizer, samples[:, width:], outputs, stop_sequences, ends
    )
    tokens = torch.cat([prompt_ids, responses], dim=1)
    mask = semantics.attention_mask(tokens, prompt_mask, lengths, tokenizer.pad_token_id)
    ends = semantics.ends(mask, width)
    return Sequences(tokens, mask, width, ends, semantics.loss_mask(mask, width))


def shuffled_minibatches(n: int, batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """Indices of each minibatch of one pass over n rollouts; the last may be short."""
    order = torch.randperm(n, generator=generator).tolist()
    return [order[first : first + batch_size] for first in range(0, n, batch_size)]


def _first(lengths: Sequence[int], like: Tensor) -> Tensor:
    """1 on the first `lengths[i]` columns of row i: [n, R], of the shape of `like`."""
    columns = torch.arange(like.shape[1], device=like.device)
    return (columns < torch.tensor(lengths, device=like.device).unsqueeze(1)).long()
