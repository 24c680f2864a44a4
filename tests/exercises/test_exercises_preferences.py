"""Every check of the exercises to notebook 06: right answers pass, each mistake is told apart."""

import math
from operator import itemgetter

import pytest
import torch
import torch.nn.functional as F
from exercise_answers import named_mistakes, right_answers, still_open

from rlhf_helpers.exercises import preferences as checks

# --- right answers, written in other ways than in the notebook ---


def annotator(first, second, temperature, random_share):
    strengths = torch.stack([first, second]) / temperature
    return strengths.softmax(dim=0)[0] * (1 - random_share) + random_share / 2


def loss_by_softplus(chosen, rejected):
    return F.softplus(rejected - chosen).mean()


def last_by_flip(hidden, seen):
    columns = hidden.shape[1] - 1 - seen.flip(1).argmax(dim=1)
    return torch.stack([row[i] for row, i in zip(hidden, columns, strict=True)])


def gold_by_sorting(proxy, gold):
    return gold.gather(1, proxy.sort(dim=1, descending=True, stable=True).indices[:, :1])[:, 0]


def gold_row_by_row(best):
    """`best` chooses one pair, of proxy and gold, from those of a prompt."""
    return lambda proxy, gold: torch.stack(
        [best(zip(*rows, strict=True))[1] for rows in zip(proxy, gold, strict=True)]
    )


def dpo_by_softplus(chosen, rejected, ref_chosen, ref_rejected, beta):
    return F.softplus(-beta * ((chosen - ref_chosen) - (rejected - ref_rejected))).mean()


RIGHT = [
    (checks.check_annotator, annotator),
    (checks.check_reward_loss, loss_by_softplus),
    (checks.check_last_state, last_by_flip),
    (checks.check_best_by_proxy, gold_by_sorting),
    (checks.check_best_by_proxy,
     lambda proxy, gold: gold.gather(1, proxy.argsort(dim=1)[:, -1:])[:, 0]),
    (checks.check_best_by_proxy,
     lambda proxy, gold: gold.gather(1, proxy.topk(1, dim=1).indices)[:, 0]),
    (checks.check_best_by_proxy, gold_row_by_row(max)),
    (checks.check_best_by_proxy,
     gold_row_by_row(lambda pairs: sorted(pairs, key=itemgetter(0))[-1])),
    (checks.check_dpo, dpo_by_softplus),
]  # fmt: skip


test_a_right_answer_is_right = right_answers(RIGHT)


# --- the mistakes that the checks name: words of the sentence -> the wrong answer ---


def by_means(hidden, seen):
    return (hidden * seen.unsqueeze(2)).sum(1) / seen.sum(1, keepdim=True)


def at(shift):
    return lambda hidden, seen: hidden[range(len(hidden)), (seen.sum(1) + shift) % 5]


def dpo(change):
    """`change(moved, beta)` makes each pair's term from how far the policy has moved."""
    return lambda w, x, rw, rx, beta: -change((w - rw) - (x - rx), beta).mean()


MISTAKES = [
    (checks.check_annotator, "Still open", still_open),
    (checks.check_annotator, "did you forget `return`", lambda *given: None),
    (checks.check_annotator, "every pair has", lambda *given: annotator(*given).mean()),
    (checks.check_annotator, "of the second text", lambda a, b, t, s: annotator(b, a, t, s)),
    (checks.check_annotator, "by a coin", lambda a, b, t, s: annotator(a, b, t, 0)),
    (checks.check_annotator, "is not used", lambda a, b, t, s: annotator(a, b, 1, s)),
    (checks.check_annotator, "careless", lambda a, b, t, s: annotator(a, b, 1 / t, s)),
    (checks.check_annotator, "is missing", lambda a, b, t, s: annotator(a, b, t, s) - s / 2),
    (checks.check_annotator, "not random_share", lambda a, b, t, s: annotator(a, b, t, s) + s / 2),
    (checks.check_annotator, "over the temperature", lambda a, b, t, s: a - b),

    (checks.check_reward_loss, "did you forget `return`", lambda *given: None),
    (checks.check_reward_loss, "one number", lambda a, b: F.softplus(b - a)),
    (checks.check_reward_loss, "the sign", lambda a, b: F.logsigmoid(a - b).mean()),
    (checks.check_reward_loss, "a mean should be", lambda a, b: F.softplus(b - a).sum()),
    (checks.check_reward_loss, "logarithm is missing", lambda a, b: -torch.sigmoid(a - b).mean()),
    (checks.check_reward_loss, "like the rejected", lambda a, b: F.softplus(a - b).mean()),
    (checks.check_reward_loss, "without end", lambda a, b: (b - a).mean()),
    (checks.check_reward_loss, "is right", lambda a, b: torch.tensor(7.0)),

    (checks.check_last_state, "did you forget `return`", lambda *given: None),
    (checks.check_last_state, "of two numbers", lambda hidden, seen: hidden.mean(2)),
    (checks.check_last_state, "padding", lambda hidden, seen: hidden[:, -1]),
    (checks.check_last_state, "one too far", at(0)),
    (checks.check_last_state, "one too far", lambda hidden, seen: hidden[range(3), seen.sum(1)]),
    (checks.check_last_state, "it raised IndexError: index 7", lambda hidden, seen: hidden[:, 7]),
    (checks.check_last_state, "rows and columns together",
     lambda hidden, seen: hidden[:, seen.sum(dim=1) - 1]),
    (checks.check_last_state, "the mean over", by_means),
    (checks.check_last_state, "the first token", lambda hidden, seen: hidden[:, 0]),
    (checks.check_last_state, "seen.sum", lambda hidden, seen: hidden.sum(1)),

    (checks.check_best_by_proxy, "did you forget `return`", lambda *given: None),
    (checks.check_best_by_proxy, "for each prompt",
     lambda proxy, gold: gold_by_sorting(proxy, gold).mean()),
    (checks.check_best_by_proxy, "rows and columns together",
     lambda proxy, gold: gold[:, proxy.argmax(dim=1)]),
    (checks.check_best_by_proxy, "no project has", lambda proxy, gold: gold.max(1).values),
    (checks.check_best_by_proxy, "of its own choice", lambda proxy, gold: proxy.max(1).values),
    (checks.check_best_by_proxy, "the places", lambda proxy, gold: proxy.argmax(1)),
    (checks.check_best_by_proxy, "likes least", lambda proxy, gold: gold_by_sorting(-proxy, gold)),
    (checks.check_best_by_proxy, "where is proxy largest", lambda proxy, gold: gold[:, 0]),

    (checks.check_dpo, "did you forget `return`", lambda *given: None),
    (checks.check_dpo, "one number", lambda w, x, rw, rx, b: F.softplus(-b * (w - rw - x + rx))),
    (checks.check_dpo, "the sign", lambda *given: -dpo_by_softplus(*given)),
    (checks.check_dpo, "reference is not used",
     lambda w, x, rw, rx, b: -F.logsigmoid(b * (w - x)).mean()),
    (checks.check_dpo, "beta is not used", dpo(lambda moved, b: F.logsigmoid(moved))),
    (checks.check_dpo, "divided by beta", dpo(lambda moved, b: F.logsigmoid(moved / b))),
    (checks.check_dpo, "write the rejected", dpo(lambda moved, b: F.logsigmoid(-b * moved))),
    (checks.check_dpo, "logarithm is missing", dpo(lambda moved, b: torch.sigmoid(b * moved))),
    (checks.check_dpo, "a mean should be", lambda *given: 3 * dpo_by_softplus(*given)),
    (checks.check_dpo, "is right", lambda *given: torch.tensor(7.0)),
]  # fmt: skip


test_each_mistake_is_named = named_mistakes(MISTAKES)


def test_the_numbers_to_compare_with_are_those_of_a_calculator():
    # The second pair has equal rewards; the first differs by 1, which at temperature 0.5 is 2.
    assert checks.answers()[1] == pytest.approx(0.5)
    assert checks.answers()[0] == pytest.approx(0.8 * 0.880797 + 0.1, abs=1e-6)
    # Pair by pair the policy has moved by 2 + 4, -1 - 2 and 3 + 1 nats; beta is 0.2.
    terms = [1.2, -0.6, 0.8]
    expected = sum(math.log(1 + math.exp(-x)) for x in terms) / 3
    assert checks.dpo_by_pairs() == pytest.approx(expected)
