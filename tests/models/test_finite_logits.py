"""The look at logits while sampling: what it lets through, and what it says afterwards."""

import math

import pytest
import torch
from tiny_runs import policy_with_lora

from rlhf_helpers.models.finite_logits import FiniteLogits, NotFiniteError

IDS = torch.zeros(2, 1, dtype=torch.long)


def test_numbers_pass_as_they_are_and_so_do_forbidden_tokens():
    guard = FiniteLogits()
    scores = torch.tensor([[1.0, -math.inf, 3e38], [-2.0, 0.5, -3e38]])
    assert torch.equal(guard(IDS, scores.clone()), scores)
    guard.check()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_can_be_drawn_from_and_is_said_at_the_end(bad):
    guard = FiniteLogits()
    guard(IDS, torch.zeros(2, 3))
    scores = guard(IDS, torch.tensor([[1.0, bad, -math.inf], [bad, bad, bad]]))
    torch.multinomial(scores.softmax(-1), 1)  # raises nothing
    guard(IDS, torch.zeros(2, 3))  # later steps do not hide it
    with pytest.raises(NotFiniteError, match="not finite numbers"):
        guard.check()


def test_it_changes_no_sample(tmp_path, monkeypatch):
    policy = policy_with_lora(tmp_path)
    policy.set_dropout(active=False)
    ids = torch.tensor([[80, 81, 82]] * 4)
    samples = []
    for processors in ([], [FiniteLogits()]):
        torch.manual_seed(7)
        settings = dict(max_new_tokens=8, do_sample=True, top_k=0)
        samples.append(policy.generate(ids, **settings, logits_processor=processors))
    assert torch.equal(*samples)
