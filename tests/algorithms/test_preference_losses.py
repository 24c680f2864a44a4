"""Bradley-Terry and DPO: numbers by hand, gradients by brute force, and trl's own losses."""

import math

import pytest
import torch

from rlhf_helpers.algorithms.preferences import (
    accuracy_ceiling,
    bradley_terry_loss,
    dpo_loss,
    preference_accuracy,
    preference_probability,
)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


# --- who prefers what ----------------------------------------------------------------------


def test_three_to_one_odds_are_three_quarters():
    """A difference of log 3 means odds of 3 : 1; at temperature 2 it takes twice as much."""
    gap = numbers(math.log(3), 0.0, -math.log(3))
    assert preference_probability(gap).tolist() == pytest.approx([0.75, 0.5, 0.25])
    assert preference_probability(2 * gap, temperature=2.0).tolist() == pytest.approx(
        [0.75, 0.5, 0.25]
    )


def test_a_fifth_of_random_answers_pulls_towards_one_half():
    # 4 of 5 look (3/4 of them say "first"), 1 of 5 throws a coin: 0.6 + 0.1.
    p = preference_probability(numbers(math.log(3)), random_share=0.2)
    assert p.item() == pytest.approx(0.7)
    assert preference_probability(numbers(5.0), random_share=1.0).item() == pytest.approx(0.5)


def test_at_temperature_zero_the_better_text_always_wins_and_equals_are_a_coin():
    p = preference_probability(numbers(0.001, 0.0, -3.0), temperature=0.0)
    assert p.tolist() == [1.0, 0.5, 0.0]


def test_the_ceiling_is_what_one_who_knows_the_truth_reaches():
    gap = numbers(math.log(3), -math.log(9), 0.0)  # the likelier answer: 3/4, 9/10, 1/2
    assert accuracy_ceiling(gap).item() == pytest.approx((0.75 + 0.9 + 0.5) / 3)
    assert accuracy_ceiling(gap, random_share=1.0).item() == pytest.approx(0.5)


def test_the_ceiling_is_reached_in_a_simulation():
    generator = torch.Generator().manual_seed(0)
    gap = torch.randn(100_000, generator=generator, dtype=torch.float64) * 3
    p = preference_probability(gap, 1.5, 0.1)
    said_first = torch.rand(len(gap), generator=generator, dtype=torch.float64) < p
    right = (said_first == (gap > 0)).double().mean()
    assert accuracy_ceiling(gap, 1.5, 0.1).item() == pytest.approx(right.item(), abs=0.005)


# --- the reward model's loss -------------------------------------------------------------------


def test_the_loss_of_one_who_knows_nothing_is_log_two():
    assert bradley_terry_loss(numbers(1, 2), numbers(1, 2)).item() == pytest.approx(math.log(2))


def test_the_loss_is_the_mean_of_minus_log_probability():
    chosen, rejected = numbers(math.log(3), 0.0), numbers(0.0, math.log(9))
    expected = (-math.log(3 / 4) - math.log(1 / 10)) / 2
    assert bradley_terry_loss(chosen, rejected).item() == pytest.approx(expected)


def test_an_impossible_answer_costs_its_difference_and_nothing_overflows():
    assert bradley_terry_loss(numbers(-1e4), numbers(0)).item() == pytest.approx(1e4)
    assert bradley_terry_loss(numbers(1e4), numbers(0)).item() == 0


def test_equal_rewards_are_half_right():
    assert preference_accuracy(numbers(1, 0, 2), numbers(0, 0, 3)).item() == pytest.approx(0.5)


def by_brute_force(function, point, step=1e-6):
    """The gradient at `point` by central differences, entry by entry."""
    gradient = torch.zeros_like(point)
    for i in range(len(point)):
        offset = torch.zeros_like(point)
        offset[i] = step
        gradient[i] = (function(point + offset) - function(point - offset)) / (2 * step)
    return gradient


def test_the_gradient_of_the_reward_models_loss():
    torch.manual_seed(1)
    chosen, rejected = (torch.randn(5, dtype=torch.float64) for _ in range(2))
    chosen.requires_grad_()
    bradley_terry_loss(chosen, rejected).backward()
    slow = by_brute_force(lambda c: bradley_terry_loss(c, rejected), chosen.detach())
    assert torch.allclose(chosen.grad, slow, atol=1e-8)
    # A pair weighs by the probability that the model gives to the other answer.
    weights = 1 / (1 + torch.exp(chosen.detach() - rejected)) / 5
    assert torch.allclose(chosen.grad, -weights)


# --- DPO -----------------------------------------------------------------------------------


def test_dpo_at_the_start_is_log_two_and_its_pairs_are_half_right():
    logprobs = numbers(-3, -5), numbers(-4, -4)
    found = dpo_loss(*logprobs, *logprobs, beta=0.1)
    assert found.loss.item() == pytest.approx(math.log(2))
    assert found.accuracy.item() == 0.5 and found.margin.item() == 0


def test_dpo_by_hand():
    """log pi/ref is 2 for the chosen text and -1 for the other: beta 0.5 makes 1.5 of it."""
    found = dpo_loss(numbers(-8), numbers(-11), numbers(-10), numbers(-10), beta=0.5)
    assert found.margin.item() == pytest.approx(1.5)
    assert found.loss.item() == pytest.approx(math.log(1 + math.exp(-1.5)))
    assert found.accuracy.item() == 1


def test_the_gradient_of_dpo():
    """Also against the form in the paper's section 4: beta times the weight, up and down."""
    torch.manual_seed(2)
    policy = [torch.randn(4, dtype=torch.float64).requires_grad_() for _ in range(2)]
    ref = [torch.randn(4, dtype=torch.float64) for _ in range(2)]
    dpo_loss(*policy, *ref, beta=0.3).loss.backward()
    for i in range(2):

        def loss(x, i=i):
            both = [p.detach() for p in policy]
            both[i] = x
            return dpo_loss(*both, *ref, beta=0.3).loss

        assert torch.allclose(policy[i].grad, by_brute_force(loss, policy[i].detach()), atol=1e-8)
    rewards = [0.3 * (p.detach() - r) for p, r in zip(policy, ref, strict=True)]
    weight = torch.sigmoid(rewards[1] - rewards[0])
    assert torch.allclose(policy[0].grad, -0.3 * weight / 4)
    assert torch.allclose(policy[1].grad, 0.3 * weight / 4)


# --- trl -----------------------------------------------------------------------------------

DIALOGUES = {
    "prompt": ["the model", "every human"],
    "chosen": [" policy data", " feedback code"],
    "rejected": [" value batch a", " data"],
}


@pytest.fixture
def trl_world(tmp_path, monkeypatch):
    """trl, a tiny model, and a data set of two pairs."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from tiny_runs import model_dir
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = model_dir(tmp_path, "llama")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    common = dict(output_dir=str(tmp_path / "out"), per_device_train_batch_size=2, report_to=[],
                  use_cpu=True, bf16=False, gradient_checkpointing=False)  # fmt: skip
    return trl, path, model, tokenizer, Dataset.from_dict(DIALOGUES), common


def summed_logprobs(model, ids, mask, responses):
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    each = logits.gather(-1, ids[:, 1:, None]).squeeze(-1)
    return (each * responses[:, 1:]).sum(1)


def test_dpo_agrees_with_trl(trl_world):
    trl, path, model, tokenizer, data, common = trl_world
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(path).eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.05)
    trainer = trl.DPOTrainer(
        model=model, ref_model=reference, args=trl.DPOConfig(beta=0.3, **common),
        train_dataset=data, processing_class=tokenizer,
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    model.eval()
    theirs = trainer.compute_loss(model, dict(batch))
    ids, mask, responses = (batch[k] for k in ("input_ids", "attention_mask", "completion_mask"))
    ours = [summed_logprobs(m, ids, mask, responses).chunk(2) for m in (model, reference)]
    found = dpo_loss(*ours[0], *ours[1], beta=0.3)
    assert found.loss.item() == pytest.approx(theirs.item(), rel=1e-4)
    assert abs(found.loss.item() - math.log(2)) > 0.01  # the two models do differ


def test_the_reward_models_loss_agrees_with_trl(trl_world):
    trl, path, _, tokenizer, data, common = trl_world
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    trainer = trl.RewardTrainer(
        model=model, args=trl.RewardConfig(**common), train_dataset=data,
        processing_class=tokenizer,
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    model.eval()
    theirs = trainer.compute_loss(model, dict(batch))
    scores = model(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits.squeeze(-1)
    assert bradley_terry_loss(*scores.chunk(2)).item() == pytest.approx(theirs.item(), rel=1e-5)
