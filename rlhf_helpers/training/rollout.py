"""From prompts to rollouts: what the policy wrote, how it scored, and what PPO keeps of it.

Two ways of turning samples into rollouts live here, chosen by `method.semantics`:

* `trlx` decodes each output to text and tokenises it again, as trlX v0.6.0 does. Special tokens
  come back in the process, padding and end of text share one id, and masks are `token != pad`.
* `corrected` keeps the very token ids that were drawn, with an explicit mask.

Shapes: n sequences of one chunk, Q padded prompt length, R padded response length, N = Q + R.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_helpers.algorithms.ppo import kl_k3, kl_trlx
from rlhf_helpers.models.policy import Policy, Scored


@dataclass
class Rollout:
    """One sampled response and everything PPO needs to learn from it.

    `logprobs`, `ref_logprobs`, `values`, `rewards` and `loss_mask` have one entry a stored
    column; the first stored column is the last prompt token, which predicts the response's first.
    """

    query: Tensor  # [Q] prompt ids, padded on the left
    response: Tensor  # [R] response ids, padded on the right
    attention_mask: Tensor  # [Q + R] 1 where a token can be attended to
    logprobs: Tensor  # [T] of the policy that sampled, nats
    ref_logprobs: Tensor  # [T] of the reference policy, nats
    values: Tensor  # [T] value head at sampling time
    rewards: Tensor  # [T] KL penalty per token, plus the score
    loss_mask: Tensor  # [T] 1 on the columns that enter the loss
    score: float  # what the reward function returned (dense rewards: their sum)
    trunk: Tensor | None = None  # [Q + R, h] states that enter the top
    advantage: float = 0.0  # of the whole response among its prompt's (RLOO and GRPO only)


@dataclass
class Minibatch:
    """Rollouts collated for one optimizer step. B rollouts, T stored columns, N = Q + R tokens."""

    tokens: Tensor  # [B, N]
    attention_mask: Tensor  # [B, N]
    start: int  # index of the first stored column, Q - 1
    logprobs: Tensor  # [B, T]
    values: Tensor  # [B, T]
    rewards: Tensor  # [B, T]
    loss_mask: Tensor  # [B, T]
    trunk: Tensor | None  # [B, N, h]
    ref_logprobs: Tensor  # [B, T]
    advantages: Tensor  # [B] of whole responses (RLOO and GRPO only)


@dataclass
class Decoded:
    """Texts of one chunk, in trlX's three views."""

    samples: list[str]  # prompt + output
    prompts: list[str]
    outputs: list[str]


# --- text ----------------------------------------------------------------------------------


def to_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Decode without special tokens and with the space clean-up of transformers 4."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return tokenizer.clean_up_tokenization(text)


def cut_at_stop(text: str, stop_sequences: Sequence[str]) -> tuple[str, bool]:
    """Cut at each stop sequence in turn, at its first place; strip on the right where cut."""
    trimmed = False
    for stop in stop_sequences:
        place = text.find(stop)
        if place >= 0:
            text, trimmed = text[:place].rstrip(), True
    return text, trimmed


def decode(
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Tensor,
    sample_ids: Tensor,
    stop_sequences: Sequence[str] = (),
    append_eos_token: bool = False,
) -> Decoded:
    """Texts of prompts [n, Q] and samples [n, Q + new tokens].

    With `append_eos_token` the text of the end-of-text token closes an output that was cut at a
    stop sequence or whose last token is end-of-text or padding (trlX, during rollouts only).
    """
    width = prompt_ids.shape[1]
    decoded = Decoded([], [], [])
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    for prompt, sample in zip(prompt_ids.tolist(), sample_ids.tolist(), strict=True):
        prompt_text = to_text(tokenizer, prompt)
        output, trimmed = cut_at_stop(to_text(tokenizer, sample[width:]), stop_sequences)
        if append_eos_token and (trimmed or sample[-1] in ends):
            output += tokenizer.eos_token
        decoded.samples.append(prompt_text + output)
        decoded.prompts.append(prompt_text)
        decoded.outputs.append(output)
    return decoded


# --- samples -> token ids and masks ----------------------------------------------------------


@dataclass
class Tokenised:
    """Token ids of whole sequences of one chunk, with masks."""

    tokens: Tensor  # [n, N]
    attention_mask: Tensor  # [n, N]
    query_width: int  # Q
    ends: list[int]  # exclusive end of each sequence's stored columns
    loss_mask: Tensor  # [n, N - 1] 1 on the columns that enter the loss


def retokenise(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: Tensor, outputs: Sequence[str]
) -> Tokenised:
    """trlX's way: tokenise the outputs' texts again, with special tokens; mask := token != pad."""
    ids = [torch.tensor(row, dtype=torch.long) for row in tokenizer(list(outputs))["input_ids"]]
    width = max(1, max(map(len, ids)))
    pad = tokenizer.pad_token_id
    responses = torch.stack([F.pad(row, (0, width - len(row)), value=pad) for row in ids])
    tokens = torch.cat([prompt_ids, responses.to(prompt_ids.device)], dim=1)
    mask = (tokens != pad).long()
    start = prompt_ids.shape[1] - 1
    ends = (start + mask[:, start:].sum(1) + 1).clamp(max=tokens.shape[1] - 1)
    return Tokenised(tokens, mask, prompt_ids.shape[1], ends.tolist(), mask[:, :-1])


def keep_sampled_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    sample_ids: Tensor,
    stop_sequences: Sequence[str] = (),
) -> Tokenised:
    """The corrected way: the ids that were drawn, up to and with end-of-text, explicitly masked.

    Where a stop sequence cuts the text, the response ends with the last token before the cut.
    """
    width = prompt_ids.shape[1]
    lengths = []
    for row in sample_ids[:, width:].tolist():
        eos = tokenizer.eos_token_id
        length = row.index(eos) + 1 if eos in row else len(row)
        lengths.append(_length_before_stop(tokenizer, row[:length], stop_sequences))
    n, total = len(lengths), width + max(lengths)
    columns = torch.arange(total - width, device=sample_ids.device)
    response_mask = (columns < torch.tensor(lengths, device=columns.device).unsqueeze(1)).long()
    tokens = sample_ids[:, :total].clone()
    tokens[:, width:].masked_fill_(response_mask == 0, tokenizer.pad_token_id)
    loss_mask = torch.cat([prompt_mask.new_zeros(n, width - 1), response_mask], dim=1)
    ends = [width - 1 + length for length in lengths]
    return Tokenised(tokens, torch.cat([prompt_mask, response_mask], 1), width, ends, loss_mask)


def _length_before_stop(tokenizer, ids: list[int], stop_sequences: Sequence[str]) -> int:
    """Tokens of `ids` whose text lies before the first stop sequence; 1 at least."""
    if not stop_sequences:
        return len(ids)
    kept, trimmed = cut_at_stop(to_text(tokenizer, ids), stop_sequences)
    if not trimmed:
        return len(ids)
    length = len(ids)
    while length > 1 and len(to_text(tokenizer, ids[:length])) > len(kept):
        length -= 1
    return length


# --- rollouts ------------------------------------------------------------------------------


@dataclass
class ChunkStatistics:
    """Divergence of the policy from the reference over one chunk."""

    mean_kl: float | None  # what the controller and `policy/sqrt_kl` get, nats; None: not asked for
    kl_per_sequence: float  # mean over samples of the sum over response columns of k1, nats


@torch.no_grad()
def build_rollouts(
    policy: Policy,
    sequences: Tokenised,
    scores: Sequence[float] | Sequence[Sequence[float]],
    kl_coef: float,
    corrected: bool = False,
    keep_trunk: bool = True,
    trunk: Tensor | None = None,
    wants_mean_kl: bool = True,
) -> tuple[list[Rollout], ChunkStatistics]:
    """Log-probabilities, values and per-token rewards of scored sequences.

    `scores` are already scaled and clipped: one number a sequence, put on its last stored column,
    or a list of numbers, put on its first columns one by one (dense rewards, trlX 0.7).
    `trunk` [n, N, h]: states kept from sampling. trlX's mean_kl runs over the prompt's columns
    too, which nothing else needs: without `wants_mean_kl` they stay out of the output head.
    """
    start = sequences.query_width - 1
    first = 0 if wants_mean_kl and not corrected else start  # of the columns to score
    scored = policy.score(sequences.tokens, sequences.attention_mask, first, trunk)
    counted = sequences.loss_mask if corrected else sequences.attention_mask[:, :-1]
    statistics = _chunk_statistics(
        scored, counted[:, first:], start - first, corrected, wants_mean_kl
    )
    columns = {  # [n, N - 1 - start], on the host in one go each
        "logprobs": scored.logprobs[:, start - first :].cpu(),
        "ref_logprobs": scored.ref_logprobs[:, start - first :].cpu(),
        "values": scored.values[:, start - first :].cpu(),
        "loss_mask": sequences.loss_mask[:, start:].cpu(),
    }
    log_ratio = columns["logprobs"] - columns["ref_logprobs"]
    penalties = -kl_coef * log_ratio * counted[:, start:].cpu()
    tokens, mask = sequences.tokens.cpu(), sequences.attention_mask.cpu()
    rollouts = []
    for i, end in enumerate(sequences.ends):
        rewards, total = _with_score(penalties[i, : end - start].clone(), scores[i])
        rollouts.append(
            Rollout(
                query=tokens[i, : start + 1],
                response=tokens[i, start + 1 :],
                attention_mask=mask[i],
                rewards=rewards,
                score=total,
                trunk=scored.trunk[i].clone() if keep_trunk else None,
                **{name: x[i, : end - start] for name, x in columns.items()},
            )
        )
    return rollouts, statistics


def _with_score(rewards: Tensor, score: float | Sequence[float]) -> tuple[Tensor, float]:
    """Rewards [T] with a sequence's score added, and the score's sum."""
    score = torch.as_tensor(score, dtype=rewards.dtype)
    if score.ndim == 0:
        rewards[-1] += score
    elif len(score):
        rewards[: len(score)] += score[: len(rewards)]
        rewards[-1] += score[len(rewards) :].sum()  # of tokens that are not stored
    return rewards, float(score.sum())


def _chunk_statistics(
    scored: Scored, mask: Tensor, prompt_columns: int, corrected: bool, wants_mean_kl: bool
) -> ChunkStatistics:
    policy_logprobs, reference = scored.logprobs * mask, scored.ref_logprobs * mask  # masked: 0
    per_sequence = (policy_logprobs - reference)[:, prompt_columns:].sum(1).mean().item()
    if corrected:
        mean_kl = kl_k3(policy_logprobs, reference).sum(1).mean().item()
    else:
        # trlX: the mean over every entry of the chunk, prompt and padding included.
        mean_kl = kl_trlx(policy_logprobs, reference).mean().item() if wants_mean_kl else None
    return ChunkStatistics(mean_kl, per_sequence)


# --- collation -----------------------------------------------------------------------------


def collate(
    rollouts: Sequence[Rollout], pad_id: int, device: torch.device | str, corrected: bool = False
) -> Minibatch:
    """Queries padded on the left, responses on the right, numbers with 0."""
    query_width = max(len(r.query) for r in rollouts)
    response_width = max(len(r.response) for r in rollouts)

    def widen(row: Tensor, r: Rollout, value: int) -> Tensor:
        left, right = query_width - len(r.query), response_width - len(r.response)
        return F.pad(row, (left, right), value=value)

    tokens = [widen(torch.cat([r.query, r.response]), r, pad_id) for r in rollouts]
    masks = [widen(r.attention_mask, r, 0) for r in rollouts]
    trunk = None
    if all(r.trunk is not None for r in rollouts):
        trunk = torch.stack([_widen_trunk(r, query_width, response_width) for r in rollouts])
        trunk = trunk.to(device)

    def columns(name: str) -> Tensor:
        rows = [getattr(r, name) for r in rollouts]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)

    attention_mask, rewards = torch.stack(masks).to(device), columns("rewards")
    start = query_width - 1
    # trlX masks by the input token, also past the columns that it stored for a full-width sample.
    seen = attention_mask[:, start : start + rewards.shape[1]]
    return Minibatch(
        tokens=torch.stack(tokens).to(device),
        attention_mask=attention_mask,
        start=start,
        logprobs=columns("logprobs"),
        values=columns("values"),
        rewards=rewards,
        loss_mask=columns("loss_mask") if corrected else seen,
        trunk=trunk,
        ref_logprobs=columns("ref_logprobs"),
        advantages=torch.tensor([r.advantage for r in rollouts], device=device),
    )


def _widen_trunk(r: Rollout, query_width: int, response_width: int) -> Tensor:
    # Nothing attends to a padding column and no loss reads it: any finite state does.
    left, right = query_width - len(r.query), response_width - len(r.response)
    return F.pad(r.trunk, (0, 0, left, right))


def shuffled_minibatches(
    n: int, batch_size: int, generator: torch.Generator
) -> Iterator[list[int]]:
    """Indices of each minibatch of one pass over n rollouts; the last may be short."""
    order = torch.randperm(n, generator=generator).tolist()
    for first in range(0, n, batch_size):
        yield order[first : first + batch_size]
