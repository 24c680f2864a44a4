"""Every check of the exercises to notebook 04: right answers pass, each mistake is told apart."""

import math

import pytest
import torch
from exercise_answers import named_mistakes, right_answers, still_open

from rlhf_helpers.exercises import ppo as checks

# --- right answers, written in other ways than in the notebook ---


def mask_row_by_row(response, end):
    rows = []
    for row in response.tolist():
        length = row.index(end) + 1 if end in row else len(row)
        rows.append([1] * length + [0] * (len(row) - length))
    return torch.tensor(rows)


def rewards_row_by_row(scores, logprobs, ref_logprobs, mask, beta):
    rewards = torch.zeros_like(logprobs)
    for i, row in enumerate(mask.tolist()):
        for t in range(len(row)):
            if row[t]:
                rewards[i, t] = beta * (ref_logprobs[i, t] - logprobs[i, t])
        rewards[i, sum(row) - 1] += scores[i]
    return rewards


def gae_recursively(values, rewards, gamma, lam):
    def advantage(t):
        if t == values.shape[1]:
            return torch.zeros(len(values))
        following = values[:, t + 1] if t + 1 < values.shape[1] else 0
        return rewards[:, t] + gamma * following - values[:, t] + gamma * lam * advantage(t + 1)

    advantages = torch.stack([advantage(t) for t in range(values.shape[1])], dim=1)
    return advantages, values + advantages


def loss_by_cases(logprobs, old_logprobs, advantages, mask, cliprange):
    ratio = torch.exp(logprobs - old_logprobs)
    up = torch.minimum(ratio, torch.tensor(1 + cliprange)) * advantages
    down = torch.maximum(ratio, torch.tensor(1 - cliprange)) * advantages
    return -torch.where(advantages > 0, up, down)[mask == 1].mean()


def kl_by_ratio(logprobs, ref_logprobs):
    r = ref_logprobs.exp() / logprobs.exp()
    return -r.log(), r - 1 - r.log()


def rloo_row_by_row(rewards):
    k = rewards.shape[1]
    return torch.stack(
        [rewards[:, i] - rewards[:, [j for j in range(k) if j != i]].mean(1) for i in range(k)], 1
    )


RIGHT = [
    (checks.check_mask, mask_row_by_row),
    (checks.check_rewards, rewards_row_by_row),
    (checks.check_gae, gae_recursively),
    (checks.check_clipped_loss, loss_by_cases),
    (checks.check_kl, kl_by_ratio),
    (checks.check_rloo, rloo_row_by_row),
]


test_a_right_answer_is_right = right_answers(RIGHT)


# --- the mistakes that the checks name: words of the sentence -> the wrong answer ---


def gae_with(values, rewards, gamma, lam, following_of=None, next_gamma=None, decay=None):
    """GAE with one thing changed."""
    next_gamma = gamma if next_gamma is None else next_gamma
    decay = gamma * lam if decay is None else decay
    past = torch.zeros(len(values)) if following_of is None else following_of(values)
    ahead = torch.cat([values[:, 1:], past.unsqueeze(1)], dim=1)
    deltas, advantages, a = rewards + next_gamma * ahead - values, torch.zeros_like(values), 0.0
    for t in reversed(range(values.shape[1])):
        advantages[:, t] = a = deltas[:, t] + decay * a
    return advantages, advantages + values


def in_place(values, rewards, gamma, lam):
    advantages, returns = gae_recursively(values, rewards, gamma, lam)
    rewards += 1
    return advantages, returns


def unordered(values, rewards, gamma, lam):
    advantages, _ = gae_recursively(values, rewards, gamma, lam)
    return advantages.flip(1), advantages + values


def only_the_last(values, rewards, gamma, lam):
    advantages = torch.zeros_like(values)
    advantages[:, -1] = rewards[:, -1] - values[:, -1]
    return advantages, advantages + values


def forwards(v, r, g, lam):
    advantages, a = torch.zeros_like(v), 0.0
    for t in range(v.shape[1]):
        a = r[:, t] - v[:, t] + g * lam * a
        advantages[:, t] = a
    return advantages, advantages + v


def objective(new, old, A, eps):
    ratio = (new - old).exp()
    return torch.min(ratio * A, ratio.clamp(1 - eps, 1 + eps) * A)


def mean(x, mask):
    return (x * mask).sum() / mask.sum()


def loss_with(token):
    """A loss of `token(ratio, clipped ratio, advantage)`."""

    def loss(new, old, A, mask, eps):
        ratio = (new - old).exp()
        return -mean(token(ratio, ratio.clamp(1 - eps, 1 + eps), A), mask)

    return loss


def without_exp(new, old, A, mask, eps):
    ratio = new - old
    return -mean(torch.min(ratio * A, ratio.clamp(1 - eps, 1 + eps) * A), mask)


def rewards_with(change):
    """`change(rewards, scores, penalty, mask, last)` makes the rewards from empty ones."""

    def rewards_of(scores, logprobs, ref_logprobs, mask, beta):
        penalty = beta * (logprobs - ref_logprobs)
        return change(torch.zeros_like(logprobs), scores, penalty, mask, mask.sum(1) - 1)

    return rewards_of


def scored(rewards, scores, last):
    rewards = rewards.clone()
    rewards[range(len(scores)), last] += scores
    return rewards


MISTAKES = [
    (checks.check_mask, "Still open", still_open),
    (checks.check_mask, "did you forget `return`", lambda response, end: None),
    (checks.check_mask, "every token has an entry",
     lambda response, end: (response == end).int().argmax(1)),
    (checks.check_mask, "everything counts", lambda response, end: torch.ones_like(response)),
    (checks.check_mask, "changed places", lambda r, end: 1 - mask_row_by_row(r, end)),
    (checks.check_mask, "cannot learn when to stop", lambda r, end: (r != end).int()),
    (checks.check_mask, "has no end of text",
     lambda r, end: mask_row_by_row(r, end) * (r == end).any(1, keepdim=True)),
    (checks.check_mask, "was drawn and counts",
     lambda r, end: mask_row_by_row(r, end) * (r[:, :1] != end)),
    (checks.check_mask, "more than one", lambda r, end: ((r == end).cumsum(1) <= 2).int()),
    (checks.check_mask, "and no further",
     lambda r, end: mask_row_by_row(r, end) * (r != 9).int() + (r == 9).int() * (r[:, :1] == 4)),

    (checks.check_rewards, "did you forget `return`", lambda *given: None),
    (checks.check_rewards, "every token has a reward", lambda scores, *given: scores),
    (checks.check_rewards, "the score is in the last column",
     rewards_with(lambda r, s, p, m, last: scored(-p * m, s, [2, 2]))),
    (checks.check_rewards, "paid at every token",
     rewards_with(lambda r, s, p, m, last: (s[:, None] - p) * m)),
    (checks.check_rewards, "is all there is",
     rewards_with(lambda r, s, p, m, last: scored(-p * m, s, last - 1))),
    (checks.check_rewards, "beta changes nothing",
     rewards_with(lambda r, s, p, m, last: scored(r, s, last))),
    (checks.check_rewards, "wrong sign",
     rewards_with(lambda r, s, p, m, last: scored(p * m, s, last))),
    (checks.check_rewards, "multiply it by the mask",
     rewards_with(lambda r, s, p, m, last: scored(-p, s, last))),
    (checks.check_rewards, "pays its own penalty",
     rewards_with(lambda r, s, p, m, last: scored(r, s - (p * m).sum(1), last))),
    (checks.check_rewards, "-beta *",
     rewards_with(lambda r, s, p, m, last: scored(-p.abs() * m, s, last))),

    (checks.check_gae, "did you forget `return`", lambda *given: None),
    (checks.check_gae, "return two tensors", lambda *given: gae_recursively(*given)[0]),
    (checks.check_gae, "write into a new tensor", in_place),
    (checks.check_gae, "every token has one",
     lambda *given: tuple(x.sum(1) for x in gae_recursively(*given))),
    (checks.check_gae, "wrong order", unordered),
    (checks.check_gae, "not the last value again",
     lambda *given: gae_with(*given, following_of=lambda v: v[:, -1])),
    (checks.check_gae, "come round to the first",
     lambda *given: gae_with(*given, following_of=lambda v: v[:, 0])),
    (checks.check_gae, "own surprise only", lambda *given: gae_with(*given, decay=0.0)),
    (checks.check_gae, "gamma is missing before the next token's",
     lambda v, r, g, lam: gae_with(v, r, g, lam, decay=lam)),
    (checks.check_gae, "lam is not used", lambda v, r, g, lam: gae_with(v, r, g, lam, decay=g)),
    (checks.check_gae, "gamma is missing before the next value",
     lambda *given: gae_with(*given, next_gamma=1.0)),
    (checks.check_gae, "next token is missing", lambda *given: gae_with(*given, next_gamma=0.0)),
    (checks.check_gae, "begin with the last token", forwards),
    (checks.check_gae, "the one before it is", only_the_last),
    (checks.check_gae, "advantage + value.", lambda *given: gae_recursively(*given)[:1] * 2),
    (checks.check_gae, "the returns are not",
     lambda v, r, g, lam: (gae_recursively(v, r, g, lam)[0], r)),

    (checks.check_clipped_loss, "did you forget `return`", lambda *given: None),
    (checks.check_clipped_loss, "a loss is one number",
     lambda new, old, A, mask, eps: -objective(new, old, A, eps) * mask),
    (checks.check_clipped_loss, "the sign",
     lambda new, old, A, mask, eps: mean(objective(new, old, A, eps), mask)),
    (checks.check_clipped_loss, "max and min",
     loss_with(lambda r, c, A: torch.max(r * A, c * A))),
    (checks.check_clipped_loss, "the clipped term alone", loss_with(lambda r, c, A: c * A)),
    (checks.check_clipped_loss, "nothing is clipped", loss_with(lambda r, c, A: r * A)),
    (checks.check_clipped_loss, "the mask is not used",
     lambda new, old, A, mask, eps: -objective(new, old, A, eps).mean()),
    (checks.check_clipped_loss, "not by all of them",
     lambda new, old, A, mask, eps: -(objective(new, old, A, eps) * mask).mean()),
    (checks.check_clipped_loss, "a mean should be",
     lambda new, old, A, mask, eps: -(objective(new, old, A, eps) * mask).sum()),
    (checks.check_clipped_loss, "turned round",
     lambda new, old, A, mask, eps: -mean(objective(old, new, A, eps), mask)),
    (checks.check_clipped_loss, "exp is missing", without_exp),
    (checks.check_clipped_loss, "is right", lambda *given: torch.tensor(7.0)),

    (checks.check_kl, "did you forget `return`", lambda p, q: None),
    (checks.check_kl, "return two tensors", lambda p, q: p - q),
    (checks.check_kl, "take no mean", lambda p, q: tuple(x.mean() for x in kl_by_ratio(p, q))),
    (checks.check_kl, "k1 has the wrong sign", lambda p, q: (q - p, kl_by_ratio(p, q)[1])),
    (checks.check_kl, "is ln 2", lambda p, q: (p.exp() - q.exp(), p - q)),
    (checks.check_kl, "ratio turned round", lambda p, q: (p - q, kl_by_ratio(q, p)[1])),
    (checks.check_kl, "never negative", lambda p, q: (p - q, p - q)),
    (checks.check_kl, "is not (r - 1)", lambda p, q: (p - q, (p - q) ** 2 / 2)),

    (checks.check_rloo, "did you forget `return`", lambda rewards: None),
    (checks.check_rloo, "every text has an advantage", lambda rewards: rewards.mean(1)),
    (checks.check_rloo, "leave it out", lambda r: r - r.mean(1, keepdim=True)),
    (checks.check_rloo, "their sum by k - 1", lambda r: r - (r.sum(1, keepdim=True) - r) / 4),
    (checks.check_rloo, "that is the baseline", lambda r: (r.sum(1, keepdim=True) - r) / 3),
    (checks.check_rloo, "the sign", lambda r: -rloo_row_by_row(r)),
    (checks.check_rloo, "mixes the prompts", lambda r: r - r.mean()),
    (checks.check_rloo, "mixes the prompts", lambda r: r - r.mean(0)),
    (checks.check_rloo, "it is GRPO",
     lambda r: (r - r.mean(1, keepdim=True)) / r.std(1, keepdim=True)),
    (checks.check_rloo, "it is GRPO",
     lambda r: (r - r.mean(1, keepdim=True)) / r.std(1, keepdim=True, correction=0)),
    (checks.check_rloo, "0.9 - 0.7 / 3", lambda r: r - r.median(1, keepdim=True).values),
]  # fmt: skip


test_each_mistake_is_named = named_mistakes(MISTAKES)


def test_the_numbers_to_compare_with_are_those_of_a_calculator():
    """The last and the first advantage of the first text, worked out by hand."""
    rows = checks.advantages_by_sums()
    assert rows[0][3] == pytest.approx(1.0 - 0.2)
    # deltas: 0 + 0.9 * 0.4 - 0.5, -0.1 + 0.9 * 0.7 - 0.4, 0.2 + 0.9 * 0.2 - 0.7, 0.8
    assert rows[0][0] == pytest.approx(-0.14 + 0.72 * 0.13 + 0.72**2 * -0.32 + 0.72**3 * 0.8)
    k1, k3 = kl_by_ratio(torch.tensor([0.5]).log(), torch.tensor([0.25]).log())
    assert (k1.item(), k3.item()) == pytest.approx((math.log(2), math.log(2) - 0.5))
