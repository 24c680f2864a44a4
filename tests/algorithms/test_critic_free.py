"""RLOO and GRPO: numbers by hand, slow twins, gradients, and whole small runs of the trainer."""

import math

import pytest
import torch
from tiny_runs import assert_same_run, one_by_one, run_config, tiny_train

from rlhf_helpers.algorithms.critic_free import (
    group_normalised_advantages,
    grpo_loss,
    leave_one_out_advantages,
    rloo_loss,
)
from rlhf_helpers.config.checks import ConfigError
from rlhf_helpers.config.sections import GRPOConfig, PPOConfig, RLOOConfig
from rlhf_helpers.runs.files import read_jsonl

# Two epochs: so many optimizer steps do the runs below have an iteration.
GROUP = {"method__samples_per_prompt": 2, "method__ppo_epochs": 2}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("RLHF_QUIET_PROGRESS", "1")


def random_tensors(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


# --- advantages ----------------------------------------------------------------------------


def test_leave_one_out_by_hand():
    # 1 - (2 + 6) / 2 = -3;  2 - (1 + 6) / 2 = -1.5;  6 - (1 + 2) / 2 = 4.5
    advantages = leave_one_out_advantages(torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]]))
    torch.testing.assert_close(advantages, torch.tensor([[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]))


def test_group_normalisation_by_hand():
    # mean 2, squared deviations 1 + 1 + 0 + 0 over 3: deviation sqrt(2 / 3)
    advantages = group_normalised_advantages(torch.tensor([[1.0, 3.0, 2.0, 2.0], [7.0] * 4]))
    unit = math.sqrt(1.5)
    torch.testing.assert_close(
        advantages, torch.tensor([[-unit, unit, 0.0, 0.0], [0.0] * 4]), atol=3e-4, rtol=0
    )


def test_leave_one_out_baseline_adds_nothing_to_the_gradient_in_expectation():
    """All outcomes of two draws from a coin, weighted: E[A_1 grad log p] = grad E[R], exactly."""
    logit = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    rewards = (2.0, 5.0)
    p = [torch.sigmoid(logit), 1 - torch.sigmoid(logit)]
    expected = torch.autograd.grad(p[0] * rewards[0] + p[1] * rewards[1], logit, retain_graph=True)
    total = 0.0
    for first in (0, 1):
        for second in (0, 1):
            pair = torch.tensor([[rewards[first], rewards[second]]], dtype=torch.float64)
            advantage = leave_one_out_advantages(pair)[0, 0]
            score = torch.autograd.grad(p[first].log(), logit, retain_graph=True)[0]
            total += (p[first] * p[second]).detach() * advantage * score
    torch.testing.assert_close(total, expected[0])


# --- losses --------------------------------------------------------------------------------


def test_rloo_loss_by_hand():
    # Sequence 1: A = 2, ratios 1 and e^0.5; sequence 2: A = -1, one token that counts, ratio 1.
    logprobs = torch.tensor([[-1.0, -0.5], [-2.0, -9.0]])
    old = torch.tensor([[-1.0, -1.0], [-2.0, -3.0]])
    mask = torch.tensor([[1, 1], [1, 0]])
    loss = rloo_loss(logprobs, old, torch.tensor([2.0, -1.0]), mask)
    assert loss.total.item() == pytest.approx(-(2 * (1 + math.exp(0.5)) - 1) / 2)
    assert loss.stats["ratio"].item() == pytest.approx((1 + math.exp(0.5) + 1) / 3)


def test_rloo_gradient_on_fresh_samples_is_the_estimator_s():
    """-1/B sum_i A_i grad log pi(y_i): each token's logprob gets -A_i / B where it counts."""
    (logprobs,) = random_tensors(1, (3, 4))
    logprobs.requires_grad_()
    advantages = torch.tensor([1.5, -2.0, 0.25], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    rloo_loss(logprobs, logprobs.detach().clone(), advantages, mask).total.backward()
    torch.testing.assert_close(logprobs.grad, -advantages.unsqueeze(1) / 3 * mask)


def test_grpo_loss_by_hand():
    # One sequence of two tokens, A = 1, ratios 1.5 (clipped at 1.2) and 0.5; the reference is
    # twice as likely at the first token, equal at the second: k3 = 2 - 1 - ln 2 and 0.
    old = torch.tensor([[0.2, 0.4]]).log()
    logprobs = torch.tensor([[0.3, 0.2]]).log()
    ref = torch.tensor([[0.6, 0.2]]).log()
    loss = grpo_loss(logprobs, old, ref, torch.tensor([1.0]), torch.ones(1, 2),
                     cliprange=0.2, kl_coef=0.1)  # fmt: skip
    penalty = (1 - math.log(2)) / 2
    assert loss.total.item() == pytest.approx(0.1 * penalty - (1.2 + 0.5) / 2)
    assert loss.stats["losses/kl_penalty"].item() == pytest.approx(penalty)
    assert loss.stats["policy/clipfrac"].item() == 0.5


def test_grpo_loss_weighs_sequences_alike_whatever_their_length():
    """A twin in loops over random tensors, masks of several lengths."""
    logprobs, noise, ref_noise = random_tensors(2, (4, 6), (4, 6), (4, 6))
    old, ref = logprobs + 0.3 * noise, logprobs + 0.3 * ref_noise
    advantages = torch.tensor([1.0, -0.5, 2.0, -3.0], dtype=torch.float64)
    lengths = [6, 1, 3, 4]
    mask = torch.tensor([[1] * n + [0] * (6 - n) for n in lengths])
    expected = 0.0
    for i, n in enumerate(lengths):
        for t in range(n):
            ratio = math.exp(logprobs[i, t] - old[i, t])
            a = advantages[i].item()
            gain = min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
            r = math.exp(ref[i, t] - logprobs[i, t])
            expected += (0.05 * (r - math.log(r) - 1) - gain) / n / 4
    loss = grpo_loss(logprobs, old, ref, advantages, mask, cliprange=0.2, kl_coef=0.05)
    assert loss.total.item() == pytest.approx(expected)


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_gradients_agree_with_finite_differences(method):
    logprobs, noise, ref = random_tensors(3, (3, 5), (3, 5), (3, 5))
    old, ref = logprobs + 0.05 * noise, logprobs + 0.5 * ref
    advantages = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])

    def loss(x):
        if method == "rloo":
            return rloo_loss(x, old, advantages, mask).total
        return grpo_loss(x, old, ref, advantages, mask, cliprange=0.5, kl_coef=0.3).total

    assert torch.autograd.gradcheck(loss, (logprobs.requires_grad_(),))


# --- the trainer ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RLOO", "GRPO"])
def test_the_trainer_learns_with_it_and_leaves_the_value_head_alone(tmp_path, name):
    settings = GROUP | {"method__name": name, "method__num_rollouts": 32,
                        "method__chunk_size": 32, "train__batch_size": 16,
                        "train__total_steps": 40, "method__init_kl_coef": 0.0,
                        "optimizer__kwargs__lr": 0.02, "method__samples_per_prompt": 4}  # fmt: skip
    trainer = tiny_train(tmp_path, **settings)
    assert not any(n.startswith("v_head") for n in trainer.trained)
    rewards = [r["exp_scores/mean"] for r in read_jsonl(tmp_path / "run" / "metrics.jsonl")
               if "exp_scores/mean" in r]  # fmt: skip
    assert rewards[-1] > rewards[0] + 0.02


@pytest.mark.parametrize("name", ["RLOO", "GRPO"])
def test_samples_of_one_prompt_stand_together_and_share_a_baseline(tmp_path, name):
    trainer = tiny_train(tmp_path, **GROUP, method__name=name)
    assert len(trainer.store) == 8
    rollouts = one_by_one(trainer.store)
    for first, second in zip(rollouts[::2], rollouts[1::2], strict=True):
        prompts = [r.query[r.attention_mask[: len(r.query)] == 1].tolist() for r in (first, second)]
        assert prompts[0] == prompts[1]
        total = [r.rewards.sum().item() for r in (first, second)]
        if name == "RLOO":
            assert first.advantages.item() == pytest.approx(total[0] - total[1], abs=1e-6)
        elif abs(total[0] - total[1]) > 0.01:
            unit = math.copysign(1 / math.sqrt(2), total[0] - total[1])
            assert first.advantages.item() == pytest.approx(unit, abs=0.03)
        assert first.advantages.item() == pytest.approx(-second.advantages.item(), abs=1e-5)


def test_penalty_is_in_the_reward_of_rloo_and_in_the_loss_of_grpo(tmp_path):
    for name in ("RLOO", "GRPO"):
        trainer = tiny_train(tmp_path / name, **GROUP, method__name=name, train__total_steps=8)
        extra = [abs(r.rewards.sum().item() - r.score) for r in one_by_one(trainer.store)]
        assert (max(extra) > 1e-4) == (name == "RLOO")
        lines = read_jsonl(tmp_path / name / "run" / "metrics.jsonl")
        assert any("losses/kl_penalty" in line for line in lines) == (name == "GRPO")


@pytest.mark.parametrize("name", ["RLOO", "GRPO"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path, name):
    settings = GROUP | {"method__name": name, "train__checkpoint_interval": 3}
    tiny_train(tmp_path / "whole", **settings)

    class Stop(BaseException):  # like a kill: nothing catches it
        pass

    def stop(record):
        if record["step"] == 4 and "exp_scores/mean" not in record:
            raise Stop

    settings["train__total_steps"] = 4
    with pytest.raises(Stop):
        tiny_train(tmp_path / "cut", callback=stop, **settings)
    tiny_train(tmp_path / "cut", **settings)
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "cut" / "run")


# --- configuration -------------------------------------------------------------------------


def test_a_configuration_changes_its_method_by_name(tmp_path):
    assert isinstance(run_config(tmp_path, method__name="RLOO").method, RLOOConfig)
    assert isinstance(run_config(tmp_path, method__name="grpoconfig").method, GRPOConfig)
    for name in ("RLOO", "GRPO"):
        assert run_config(tmp_path, method__name=name).method.semantics == "corrected"
    with pytest.raises(ConfigError, match="samples_per_prompt, which is 3"):
        run_config(tmp_path, method__name="RLOO", method__samples_per_prompt=3)
    with pytest.raises(ConfigError, match="samples_per_prompt"):
        run_config(tmp_path, method__samples_per_prompt=2)


@pytest.mark.parametrize("name", ["PPO", "rlooconfig", "GRPOConfig"])
def test_the_progress_is_called_as_the_method_is(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr("rlhf_helpers.progress.FIRST_LINE_SECONDS", 0.0)  # else short runs say none
    monkeypatch.delenv("RLHF_QUIET_PROGRESS", raising=False)
    tiny_train(tmp_path, method__name=name)
    printed = capsys.readouterr()
    assert f"{name.upper().removesuffix('CONFIG')} 4/4 · 100 %" in printed.out + printed.err


def test_their_defaults_are_not_trlxs():
    assert (RLOOConfig().semantics, RLOOConfig().ppo_epochs) == ("corrected", 1)
    assert (GRPOConfig().semantics, GRPOConfig().ppo_epochs) == ("corrected", 4)
    assert (PPOConfig().semantics, PPOConfig().ppo_epochs) == ("trlx", 4)


@pytest.mark.parametrize("cls", [RLOOConfig, GRPOConfig])
def test_there_is_nothing_of_trlxs_to_repeat(cls):
    with pytest.raises(ConfigError, match="method.semantics is 'trlx': give 'corrected', trlX has "
                       "neither RLOO nor GRPO"):  # fmt: skip
        cls(semantics="trlx")
    with pytest.raises(ConfigError, match="did you mean 'corrected'"):
        cls(semantics="correct")
