"""PPO's functions: by hand, against slow twins, and their properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_helpers.algorithms.ppo import (
    RunningMoments,
    gae,
    kl_controller,
    kl_k1,
    kl_k3,
    kl_trlx,
    logprobs_of_labels,
    policy_loss,
    ppo_loss,
    value_loss,
    whiten,
)


def random_tensors(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


# --- advantages ----------------------------------------------------------------------------


def test_advantages_of_two_columns_by_hand():
    # delta_1 = 2 - 1 = 1;  delta_0 = 0 + 0.5 * 1 - 3 = -2.5;  A_0 = -2.5 + 0.5 * 0.8 * 1 = -2.1
    advantages, returns = gae(torch.tensor([[3.0, 1.0]]), torch.tensor([[0.0, 2.0]]), 0.5, 0.8)
    torch.testing.assert_close(advantages, torch.tensor([[-2.1, 1.0]]))
    torch.testing.assert_close(returns, torch.tensor([[0.9, 2.0]]))


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.0), (0.5, 1.0), (0.97, 0.6)])
def test_advantages_equal_the_double_sum(gamma, lam):
    values, rewards = random_tensors(1, (3, 7), (3, 7))
    advantages, _ = gae(values, rewards, gamma, lam)
    for b in range(3):
        for t in range(7):
            expected = 0.0
            for later in range(t, 7):
                next_value = values[b, later + 1] if later < 6 else 0.0
                surprise = rewards[b, later] + gamma * next_value - values[b, later]
                expected += (gamma * lam) ** (later - t) * surprise
            assert advantages[b, t].item() == pytest.approx(float(expected), abs=1e-12)


def test_with_lambda_one_the_return_is_the_discounted_sum_of_rewards():
    values, rewards = random_tensors(2, (2, 5), (2, 5))
    _, returns = gae(values, rewards, gamma=0.9, lam=1.0)
    discounts = 0.9 ** torch.arange(5, dtype=torch.float64)
    for t in range(5):
        torch.testing.assert_close(returns[:, t], (rewards[:, t:] * discounts[: 5 - t]).sum(1))


# --- whitening -----------------------------------------------------------------------------


def test_masked_whitening_has_mean_zero_and_variance_one_where_the_mask_is():
    xs, noise = random_tensors(3, (4, 6), (4, 6))
    mask = (noise > -0.5).double()
    whitened = whiten(xs * 3 + 5, mask)
    chosen = whitened[mask.bool()]
    assert chosen.mean().abs() < 1e-12
    assert chosen.var().item() == pytest.approx(1, abs=1e-6)
    assert (whitened[mask == 0] == 0).all()


def test_masked_whitening_does_not_see_what_is_masked():
    xs, other = random_tensors(4, (3, 5), (3, 5))
    mask = torch.ones(3, 5, dtype=torch.float64)
    mask[:, 3:] = 0
    torch.testing.assert_close(whiten(xs, mask), whiten(torch.where(mask > 0, xs, other), mask))
    # Without a mask, as in trlX, padding moves everything.
    assert not torch.allclose(whiten(xs), whiten(torch.where(mask > 0, xs, other)), atol=1e-3)


def test_whitening_can_keep_the_mean():
    (xs,) = random_tensors(5, (3, 4))
    kept = whiten(xs + 7, shift_mean=False)
    assert kept.mean().item() == pytest.approx((xs + 7).mean().item())
    assert kept.var().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("mask", [None, torch.ones(1, 1)])
def test_one_entry_has_no_spread_and_whitens_to_zero(mask):
    assert whiten(torch.tensor([[3.0]]), mask).tolist() == [[0.0]]


# --- KL estimators ---------------------------------------------------------------------------


def test_estimators_are_unbiased_and_trlx_estimates_something_else():
    pi = torch.tensor([0.6, 0.25, 0.1, 0.05], dtype=torch.float64)
    ref = torch.tensor([0.25, 0.25, 0.25, 0.25], dtype=torch.float64)
    exact = (pi * (pi / ref).log()).sum().item()
    draws = torch.multinomial(pi, 400_000, True, generator=torch.Generator().manual_seed(0))
    logprobs, ref_logprobs = pi.log()[draws], ref.log()[draws]
    k1, k3 = kl_k1(logprobs, ref_logprobs), kl_k3(logprobs, ref_logprobs)
    for estimate in (k1, k3):
        error = estimate.std().item() / math.sqrt(len(draws))
        assert abs(estimate.mean().item() - exact) < 5 * error
    assert k3.std() < k1.std()
    # The expectation of exp(d) - 1 - d under pi is chi-squared divergence less KL.
    chi_squared = ((pi - ref) ** 2 / ref).sum().item()
    trlx = kl_trlx(logprobs, ref_logprobs).mean().item()
    assert trlx == pytest.approx(chi_squared - exact, rel=0.02)
    assert abs(trlx - exact) > 0.02


@given(st.floats(-30, 0), st.floats(-30, 0))
def test_k3_is_never_negative_and_zero_only_without_difference(logprob, ref_logprob):
    pair = torch.tensor([logprob]).double(), torch.tensor([ref_logprob]).double()
    k3 = kl_k3(*pair).item()
    assert k3 >= 0
    assert kl_k3(pair[0], pair[0]).item() == 0


def test_k3_keeps_its_digits_where_policies_nearly_agree():
    # k3 = d^2 / 2 for small d. exp(d) - 1 - d in float32 would give 0 or 1e-7 here.
    k3 = kl_k3(torch.tensor([-2.0]), torch.tensor([-2.0 + 2**-12])).item()
    assert k3 == pytest.approx(2**-25, rel=1e-2)


# --- controllers ---------------------------------------------------------------------------


def test_adaptive_controller_by_hand():
    controller = kl_controller(0.1, target=6.0, horizon=100)
    controller.update(6.6, n_steps=10)  # error 0.1
    assert controller.value == pytest.approx(0.1 * 1.01)
    controller.update(60.0, n_steps=10)  # error 9, clipped to 0.2
    assert controller.value == pytest.approx(0.1 * 1.01 * 1.02)
    controller.update(0.0, n_steps=10)  # error -1, clipped to -0.2
    assert controller.value == pytest.approx(0.1 * 1.01 * 1.02 * 0.98)
    controller.update(6.0, n_steps=10)
    assert controller.value == pytest.approx(0.1 * 1.01 * 1.02 * 0.98)


def test_no_target_means_a_fixed_coefficient():
    controller = kl_controller(0.1, target=None, horizon=100)
    controller.update(1e9, n_steps=1000)
    assert controller.value == 0.1


# --- moments ---------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=6), min_size=1, max_size=5))
def test_running_moments_equal_those_of_all_scores_at_once(batches):
    moments = RunningMoments()
    for batch in batches:
        moments.update(torch.tensor(batch))
    scores = torch.tensor([x for batch in batches for x in batch]).double()
    assert moments.mean == pytest.approx(scores.mean().item(), abs=1e-6)
    assert moments.var == pytest.approx(scores.var(correction=0).item(), abs=1e-6)
    if len(scores) > 1:
        assert moments.std == pytest.approx(scores.std().item(), abs=1e-6)


# --- losses ----------------------------------------------------------------------------------


def test_logprobs_are_those_of_a_categorical_distribution():
    logits, _ = random_tensors(6, (2, 3, 5), (1,))
    labels = torch.tensor([[0, 4, 2], [1, 1, 3]])
    expected = torch.distributions.Categorical(logits=logits).log_prob(labels)
    torch.testing.assert_close(logprobs_of_labels(logits, labels), expected)


def losses(logprobs, values, mask, advantages=None, **kwargs):
    """ppo_loss around old log-probabilities, old values and returns of 0."""
    zeros = torch.zeros_like(logprobs)
    advantages = torch.ones_like(logprobs) if advantages is None else advantages
    limits = {"cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 1.0, **kwargs}
    return ppo_loss(logprobs, values, zeros, zeros, advantages, zeros, mask, **limits)


def test_gradient_is_zero_where_the_ratio_is_clipped_for_the_better_and_only_there():
    # ratio: 1.5 and 0.6 are outside [0.8, 1.2]; clipping acts where the advantage says "further".
    ratio = torch.tensor([[1.5, 1.5, 0.6, 0.6, 1.1]])
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0]])
    logprobs = ratio.log().requires_grad_()
    mask = torch.ones(1, 5)
    loss, clipfrac, _ = policy_loss(logprobs, torch.zeros(1, 5), advantages, mask, 0.2)
    loss.backward()
    assert (logprobs.grad == 0).tolist() == [[True, False, False, True, False]]
    assert clipfrac.item() == pytest.approx(2 / 5)
    # by hand: (-1.2 + 1.5 - 0.6 + 0.8 - 1.1) / 5
    assert loss.item() == pytest.approx(-0.12)


def test_first_step_has_the_policy_gradient():
    """At ratio 1 the surrogate's gradient is -advantage / number of columns."""
    advantages, noise = random_tensors(7, (2, 3), (2, 3))
    old = noise - 2
    logprobs = old.clone().requires_grad_()
    mask = torch.ones(2, 3, dtype=torch.float64)
    policy_loss(logprobs, old, advantages, mask, 0.2)[0].backward()
    torch.testing.assert_close(logprobs.grad, -advantages / 6)


def test_value_loss_by_hand():
    # returns 1, old value 0: a new value of 0.5 is clipped to 0.2, and the larger error counts.
    values = torch.tensor([[0.5, -0.1]], requires_grad=True)
    zeros, ones = torch.zeros(1, 2), torch.ones(1, 2)
    loss, clipfrac = value_loss(values, zeros, ones, ones, 0.2)
    assert loss.item() == pytest.approx(0.5 * (0.8**2 + 1.1**2) / 2)
    assert clipfrac.item() == 0.5
    loss.backward()
    torch.testing.assert_close(values.grad, torch.tensor([[0.0, -0.55]]))


def test_masked_columns_change_nothing():
    logprobs, values, other = random_tensors(8, (2, 4), (2, 4), (2, 4))
    mask = torch.ones(2, 4, dtype=torch.float64)
    mask[:, 2:] = 0
    seen = mask.bool()
    first = losses(logprobs, values, mask, masked_kl=True)
    second = losses(logprobs.where(seen, other), values.where(seen, other), mask, masked_kl=True)
    torch.testing.assert_close(first.total, second.total)
    assert first.stats == pytest.approx({k: v.item() for k, v in second.stats.items()})


def test_value_coefficient_scales_the_value_loss_only():
    logprobs, values = random_tensors(9, (2, 3), (2, 3))
    mask = torch.ones(2, 3, dtype=torch.float64)
    half = losses(logprobs, values, mask, vf_coef=0.5)
    none = losses(logprobs, values, mask, vf_coef=0.0)
    assert none.total == none.stats["losses/policy_loss"]
    torch.testing.assert_close(half.total - none.total, 0.5 * half.stats["losses/value_loss"])


def test_statistics_by_hand():
    values = torch.tensor([[1.0, 3.0, 100.0]])
    mask = torch.tensor([[1, 1, 0]])
    stats = losses(torch.zeros(1, 3), values, mask).stats
    assert stats["values/mean"] == 2 and stats["values/std"] == 1
    assert stats["values/min"] == 1 and stats["values/max"] == 3
    assert stats["padding_percentage"].item() == pytest.approx(2 / 3)
    assert stats["ratio"] == 1 and stats["policy/approx_kl"] == 0
