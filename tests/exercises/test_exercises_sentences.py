"""What the pages of the exercises say beside the tasks: each sentence stands there and is true."""

import json
import math
from pathlib import Path

import pytest
import torch

from rlhf_helpers.exercises import preferences

ROOT = Path(__file__).resolve().parents[2]


def page(number: str) -> str:
    """All cells of a notebook of exercises, with every line break and comment sign as a space."""
    path = ROOT / "notebooks" / "exercises" / f"{number}_exercises.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    return " ".join(text.replace("\n# ", " ").split())


def test_with_top_k_the_ratio_is_1_and_the_gradient_is_wrong():
    assert "so the ratio is 1 and the clip notices nothing" in page("02")
    assert "so both are wrong on average" in page("02") and "start below 1" in page("02")
    logits = torch.tensor([1.5, 1.0, 0.2, -0.4], requires_grad=True)
    reference = torch.tensor([0.1, 0.2, 0.3, 0.4])
    rewards = torch.tensor([0.1, 0.9, 0.5, 0.7])
    p = logits.softmax(0)
    drawn_with = torch.where(p >= p.topk(2).values.min(), p, 0).detach()
    kept = drawn_with.sum()
    old = p.detach()
    ratio = p / old
    assert ratio.tolist() == [1.0] * 4
    means = {}
    for name, chance in (("own", old), ("top k", drawn_with / kept)):
        (gradient,) = torch.autograd.grad((chance * ratio * rewards).sum(), logits,
                                          retain_graph=True)  # fmt: skip
        means[name] = gradient, (chance * (old / reference).log()).sum()
    (true,) = torch.autograd.grad((p * rewards).sum(), logits, retain_graph=True)
    assert torch.allclose(means["own"][0], true)
    assert not torch.allclose(means["top k"][0], true, atol=0.01)
    assert abs(means["own"][1] - means["top k"][1]) > 0.1
    # Stored with top k: the ratio of every token that can be drawn is the share that was kept.
    assert kept < 1 and torch.allclose((p / (drawn_with / kept))[:2], kept)


def kl_of_best_of(n: int, chances: list[float]) -> float:
    """KL to the policy, for texts that are ordered by their reward, the worst first."""
    total, below = 0.0, 0.0
    for p in chances:
        kept = (below + p) ** n - below**n  # the best of n is this one
        total += kept * math.log(kept / p)
        below += p
    return total


@pytest.mark.parametrize("n", [2, 4, 64])
def test_the_kl_of_best_of_n_is_nearly_the_formula_and_otherwise_less(n):
    assert "the KL between the two is very nearly" in page("05")
    assert "Otherwise it is less" in page("05") and "known exactly" not in page("05")
    formula = math.log(n) - (n - 1) / n
    many = kl_of_best_of(n, [1 / 100_000] * 100_000)
    # Texts of equal reward are as one likely text: which of them is kept, the policy has drawn.
    few, two = kl_of_best_of(n, [0.1] * 10), kl_of_best_of(n, [0.5, 0.5])
    assert two < few < many < formula
    assert many > formula - 1e-3 and two < formula - 0.05


def test_the_unit_of_a_learned_reward_is_the_temperature_of_the_annotator():
    assert "the more careful the annotator" in page("06") and "carelessness" not in page("06")
    for temperature in (0.25, 0.5, 2.0):
        p = preferences.odds(2.0, 1.0, temperature)
        score = torch.tensor(0.0, dtype=torch.double, requires_grad=True)
        for _ in range(2000):  # the loss of exercise 2, over all answers to one pair
            loss = -p * torch.nn.functional.logsigmoid(score)
            loss = loss - (1 - p) * torch.nn.functional.logsigmoid(-score)
            (slope,) = torch.autograd.grad(loss, score)
            score = (score - 2 * slope).detach().requires_grad_()
        assert score.item() == pytest.approx((2.0 - 1.0) / temperature, rel=1e-3)


def test_a_text_in_its_own_baseline_makes_all_advantages_smaller_by_one_factor():
    assert "it is too small, by the factor (k − 1)/k, but points the same way" in page("04")
    assert "only then is the gradient right" not in page("04")
    rewards = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    others = (rewards.sum(1, keepdim=True) - rewards) / 4
    own = rewards - rewards.mean(1, keepdim=True)
    assert torch.allclose(own, 4 / 5 * (rewards - others))


@pytest.mark.parametrize(
    "number, sentence",
    [
        ("02", "Then leave `gamed = None`, and the second check stays open"),
        ("04", "Each token pays β times its log-ratio, log-probability under the policy less that "
               "under the reference"),
        ("04", "(p: policy, q: reference)"),
        ("06", "the sigmoid of (first − second) / temperature"),
        ("06", "the mean, over all tokens, of the last layer's hidden states"),
        ("06", "the two numbers cannot be compared"),
        ("07", "after the last equals sign, or the whole output where there is none, is its "
               "answer, and it must be the right number and nothing else"),
    ],
)  # fmt: skip
def test_what_a_task_has_to_say(number, sentence):
    assert sentence in page(number)
