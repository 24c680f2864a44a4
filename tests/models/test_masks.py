"""Masks of attention that are made here, beside those that transformers makes."""

import pytest
import tiny_runs
import torch

from rlhf_helpers.models import masks
from rlhf_helpers.models.loading import load_policy


def test_a_column_sees_itself_and_what_is_no_padding_before_it():
    seen = masks.causal_mask(torch.tensor([[0, 1, 1], [1, 1, 0]]))
    assert seen.shape == (2, 1, 3, 3)
    assert seen[0, 0].int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert seen[1, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("family", ["opt", "gpt2", "gpt_neox", "llama"])
def test_hidden_states_are_those_of_transformers_own_masks(tmp_path, family, monkeypatch):
    policy = load_policy(tiny_runs.run_config(tmp_path, family))
    assert masks.takes_ready_masks(policy.base, policy.takes_positions)
    tokens = torch.randint(5, 300, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[0, :4], mask[1, 7:] = 0, 0  # padding before and behind
    with torch.no_grad():
        theirs = policy._decode(tokens, mask)
        monkeypatch.setattr(type(policy), "device", torch.device("cuda"))
        handed = []
        policy.decoder.register_forward_pre_hook(
            lambda _, args, kwargs: handed.append(kwargs["attention_mask"].ndim), with_kwargs=True
        )
        ours = policy._decode(tokens, mask)
    assert handed == [4]
    torch.testing.assert_close(ours[mask == 1], theirs[mask == 1], rtol=0, atol=2e-6)


def test_bloom_takes_none(tmp_path):
    policy = load_policy(tiny_runs.run_config(tmp_path, "bloom"))
    assert not masks.takes_ready_masks(policy.base, policy.takes_positions)
