"""Log-probabilities through the frozen head: values and gradients of the ordinary way."""

import pytest
import torch
from tiny_runs import policy_with_lora
from torch import nn

import rlhf_helpers.models.frozen_head as frozen_head
from rlhf_helpers.models.frozen_head import frozen_head_logprobs, is_frozen_linear


@pytest.mark.parametrize("rows", [1, 3, 5, 1000])
@pytest.mark.parametrize("bias, temperature", [(False, 1.0), (True, 1.0), (True, 0.6)])
def test_values_and_gradients_are_those_of_log_softmax(monkeypatch, rows, bias, temperature):
    monkeypatch.setattr(frozen_head, "ROWS_ON_CPU", rows)
    torch.manual_seed(0)
    head = nn.Linear(6, 11, bias=bias).double().requires_grad_(False)
    hidden = torch.randn(2, 5, 6, dtype=torch.double, requires_grad=True)
    labels, weights = torch.randint(11, (2, 5)), torch.randn(2, 5)
    distribution = torch.log_softmax(head(hidden) / temperature, -1)
    usual = distribution.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    ours = frozen_head_logprobs(hidden, head, labels, temperature)
    torch.testing.assert_close(ours.double(), usual, atol=1e-6, rtol=0)
    gradients = [torch.autograd.grad((x * weights).sum(), hidden)[0] for x in (usual, ours)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)


def test_by_hand():
    """Two words, W = [[1], [0]], h = ln 3: p = (3/4, 1/4), d log p_0 / dh = 1 - 3/4."""
    head = nn.Linear(1, 2, bias=False).requires_grad_(False)
    head.weight.copy_(torch.tensor([[1.0], [0.0]]))
    hidden = torch.tensor([[[3.0]]]).log().requires_grad_()
    logprob = frozen_head_logprobs(hidden, head, torch.tensor([[0]]))
    logprob.sum().backward()
    assert logprob.item() == pytest.approx(torch.tensor(0.75).log().item())
    assert hidden.grad.item() == pytest.approx(0.25)


def test_the_logits_are_not_kept(tmp_path):
    """Nothing as wide as the vocabulary outlives the forward pass."""
    policy = policy_with_lora(tmp_path)
    vocabulary = policy.base.config.vocab_size
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: saved.append(x.shape) or x, lambda x: x
    ):
        tokens = torch.randint(10, 100, (4, 12))
        policy(tokens, torch.ones_like(tokens), 3, 8, None)
    # The head's own weight [V, h] is not needed either.
    assert saved and not any(vocabulary in shape for shape in saved)


def test_a_head_that_learns_or_is_wrapped_goes_the_ordinary_way():
    head = nn.Linear(2, 3)
    assert not is_frozen_linear(head)
    head.requires_grad_(False)
    assert is_frozen_linear(head)
    head.forward = head.forward  # as OpenDelta wraps a layer
    assert not is_frozen_linear(head)
    assert not is_frozen_linear(nn.Sequential(head))
