"""Rows of about one length computed together: less work, the same numbers."""

import pytest
import torch
from tiny_runs import policy_with_lora

from rlhf_helpers.algorithms import length_groups as module
from rlhf_helpers.algorithms.length_groups import in_length_groups, length_groups


def ragged(lengths, width, left=0):
    """A mask [B, width]: row i attends `lengths[i]` columns, after `left` of padding in row 0."""
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    mask[0, :left] = 0
    return mask


def test_groups_hold_every_row_once_and_all_that_it_attends():
    lengths = torch.randint(3, 21, (50,), generator=torch.Generator().manual_seed(1)).tolist()
    groups = length_groups(ragged(lengths, 40))
    assert len(groups) == module.GROUPS
    rows = torch.cat([rows for rows, _ in groups]).tolist()
    assert sorted(rows) == list(range(50))
    for rows, width in groups:
        assert width == max(lengths[i] for i in rows.tolist())
    assert sum(len(rows) * width for rows, width in groups) < 50 * 20


@pytest.mark.parametrize("lengths", [[20] * 50, [3, 20], [20] * 45 + [3] * 5])
def test_one_group_where_little_is_saved(lengths):
    ((rows, width),) = length_groups(ragged(lengths, 20))
    assert rows.tolist() == list(range(len(lengths))) and width == 20


def test_results_come_back_in_order_and_are_zero_behind_a_group():
    lengths = [2 + i % 17 for i in range(64)]
    mask = ragged(lengths, 30)
    tokens = torch.arange(64 * 30).view(64, 30)

    def compute(width, mask, tokens, missing):
        assert missing is None and tokens.shape == mask.shape
        return tokens[:, 1 : 1 + width], -tokens[:, 1 : 1 + width]

    plain, negative = in_length_groups(compute, 1, 28, mask, tokens, None)
    assert torch.equal(plain, -negative) and plain.shape == (64, 28)
    for row, length in enumerate(lengths):  # columns 1 .. length - 2 predict an attended token
        assert torch.equal(plain[row, : length - 2], tokens[row, 1 : length - 1])
    assert (plain[:, 20:] == 0).all()


@pytest.mark.parametrize("kept", [True, False])
def test_a_policy_says_the_same_in_groups(tmp_path, monkeypatch, kept):
    """Log-probabilities, values, and the gradient of what a loss reads of them."""
    policy = policy_with_lora(tmp_path)
    generator = torch.Generator().manual_seed(2)
    start, lengths = 4, [6 + i % 13 for i in range(40)]
    mask = ragged(lengths, 30, left=3)
    tokens = torch.randint(4, 300, mask.shape, generator=generator) * mask
    trunk = policy.trunk(tokens, mask) if kept else None
    read = (torch.arange(25) < torch.tensor(lengths)[:, None] - start - 1).float()

    def numbers():
        scored = policy.score(tokens, mask, start, trunk)
        logprobs, values = policy(tokens, mask, start, 25, trunk)
        loss = ((logprobs + values) * read).sum()
        parameters = list(policy.trainable_parameters().values())
        gradients = torch.autograd.grad(loss, parameters)
        return [x * read for x in (*scored[:3], logprobs, values)], gradients

    assert len(length_groups(mask)) == module.GROUPS
    in_groups = numbers()
    monkeypatch.setattr(module, "GROUPS", 1)
    assert len(length_groups(mask)) == 1
    together = numbers()
    for ours, theirs in zip(in_groups[0], together[0], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    for ours, theirs in zip(in_groups[1], together[1], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-3, rtol=1e-4)
