"""Every check of the exercises to notebook 07: right answers pass, each mistake is told apart."""

import math
import re

import torch
from exercise_answers import named_mistakes, right_answers, still_open

from rlhf_helpers.algorithms.critic_free import leave_one_out_advantages
from rlhf_helpers.evaluation.pass_at_k import pass_at_k
from rlhf_helpers.exercises import verifiable as checks
from rlhf_helpers.rewards.verifiers import answer_anywhere, exact_answer

# --- right answers, written in other ways than in the notebook ---


def by_product(n, right, k):
    if n - right < k:
        return 1.0
    return 1 - math.prod((n - right - i) / (n - i) for i in range(k))


def grpo_row_by_row(rewards):
    rows = []
    for row in rewards:
        deviation = float(row.std()) or 1.0
        rows.append((row - row.mean()) / deviation)
    return torch.stack(rows)


def weights_row_by_row(mask):
    rows = [row / row.sum() / len(mask) for row in mask]
    return torch.stack(rows), mask / sum(row.sum() for row in mask)


def split_and_compare(outputs, answer, **kwargs):
    return [float(o.split("=")[-1] == a) for o, a in zip(outputs, answer, strict=True)]


RIGHT = [
    (checks.check_pass_at_k, by_product),
    (checks.check_pass_at_k, pass_at_k),
    (checks.check_grpo, grpo_row_by_row),
    (checks.check_grpo, lambda r: (r - r.mean(1, True)) / (r.std(1, correction=0, keepdim=True)
                                                           + 1e-6)),
    *[(checks.check_grpo, lambda r, small=small: (r - r.mean(1, True)) / (r.std(1, keepdim=True)
                                                                         + small))
      for small in (1e-8, 1e-4, 7e-4, 1e-3, 5e-3)],
    (checks.check_token_weights, weights_row_by_row),
    (checks.check_verifier, split_and_compare),
    (checks.check_verifier, exact_answer),
]  # fmt: skip


test_a_right_answer_is_right = right_answers(RIGHT)


# --- the mistakes that the checks name: words of the sentence -> the wrong answer ---


def verdict(judge):
    """A verifier of single answers."""
    return lambda outputs, answer, **_: [
        float(judge(o, a)) for o, a in zip(outputs, answer, strict=True)
    ]


def numbers(text):
    return re.findall(r"-?\d+", text)


def last(text):
    return text.split("=")[-1]


def same_for_python(output, answer):
    try:
        return int(last(output)) == int(answer)
    except ValueError:
        return False


def raising(error):
    """A function that ends in this error."""

    def broken(*args, **kwargs):
        raise error

    return broken


def without_kwargs(outputs, answer):
    return [1.0 for _ in outputs]


MISTAKES = [
    (checks.check_pass_at_k, "Still open", still_open),
    (checks.check_pass_at_k, "did you forget `return`", lambda n, r, k: None),
    (checks.check_pass_at_k, "k does not enter", lambda n, r, k: r / n),
    (checks.check_pass_at_k, "again and again", lambda n, r, k: 1 - (1 - r / n) ** k),
    (checks.check_pass_at_k, "1 less that", lambda n, r, k: math.comb(n - r, k) / math.comb(n, k)),
    (checks.check_pass_at_k, "twice", lambda n, r, k: min(1, k * r / n)),
    (checks.check_pass_at_k, "one is enough", lambda n, r, k: (r / n) ** k),
    (checks.check_pass_at_k, "Begin with", lambda n, r, k: math.comb(r, k) / math.comb(n, k)),
    (checks.check_pass_at_k, "pass@1 is 0.250", lambda n, r, k: 0.5),
    (checks.check_pass_at_k, "it raised ZeroDivisionError", lambda n, r, k: 1 / 0),
    (checks.check_grpo, "did you forget `return`", lambda r: None),
    (checks.check_grpo, "not [3]", lambda r: r.mean(1)),
    (checks.check_grpo, "0 / 0", lambda r: (r - r.mean(1, True)) / r.std(1, keepdim=True)),
    (checks.check_grpo, "the sign", lambda r: -grpo_row_by_row(r)),
    (checks.check_grpo, "now divide", lambda r: r - r.mean(1, True)),
    (checks.check_grpo, "add keepdim=True", lambda r: r - r.mean(dim=1)),
    (checks.check_grpo, "add keepdim=True",
     lambda r: (r - r.mean(1, True)) / (r.std(dim=1) + 1e-4)),
    (checks.check_grpo, "it raised RuntimeError", raising(RuntimeError("no size"))),
    (checks.check_grpo, "these are RLOO's", leave_one_out_advantages),
    (checks.check_grpo, "mixes the problems", lambda r: r - r.mean()),
    (checks.check_grpo, "mixes the problems", lambda r: (r - r.mean()) / r.std()),
    (checks.check_grpo, "mixes the problems", lambda r: r - r.mean(0)),
    (checks.check_grpo, "mixes the problems", lambda r: (r - r.mean()) / (r.std() + 1e-3)),
    (checks.check_grpo, "is 1.5", lambda r: 2 * grpo_row_by_row(r)),
    (checks.check_grpo, "is 1.5", lambda r: (r - r.mean(1, True)) / (r.std(1, keepdim=True) + 0.1)),
    (checks.check_grpo, "have to be 0", lambda r: grpo_row_by_row(r) + 1e-3),
    (checks.check_token_weights, "did you forget `return`", lambda m: None),
    (checks.check_token_weights, "fit [B, T]: add keepdim=True, which makes it [B, 1]",
     lambda m: (m / m.sum(dim=1) / len(m), m / m.sum())),
    (checks.check_token_weights, "it raised RuntimeError", raising(RuntimeError("no size"))),
    (checks.check_token_weights, "return two tensors", lambda m: m),
    (checks.check_token_weights, "both are [B, T]", lambda m: (m.sum(1), m)),
    (checks.check_token_weights, "behind the end",
     lambda m: (1 / m.sum(1, True) / 4 * torch.ones_like(m), m / m.sum())),
    (checks.check_token_weights, "wrong order", lambda m: weights_row_by_row(m)[::-1]),
    (checks.check_token_weights, "add up to 1", lambda m: (m / m.sum(1, True), m / m.sum())),
    (checks.check_token_weights, "width of the batch", lambda m: (m / m.numel(), m / m.sum())),
    (checks.check_token_weights, "1 / (B n)", lambda m: (m / m.sum(), m / m.sum())),
    (checks.check_token_weights, "1 over their number",
     lambda m: (weights_row_by_row(m)[0], m / m.sum(0, True) / 5)),
    (checks.check_verifier, "did you forget `return`", lambda **_: None),
    (checks.check_verifier, "does not take **kwargs", without_kwargs),
    (checks.check_verifier, "Compare texts", verdict(lambda o, a: int(last(o)) == int(a))),
    (checks.check_verifier, "Compare texts", verdict(lambda o, a: float(last(o)) == float(a))),
    (checks.check_verifier, "it raised ValueError", raising(ValueError("no number"))),
    (checks.check_verifier, "numbers for 16 outputs", lambda **_: [1.0]),
    (checks.check_verifier, "it gives 0.5", lambda outputs, **_: [0.5] * len(outputs)),
    (checks.check_verifier, "pays for a wrong number", verdict(lambda o, a: True)),
    (checks.check_verifier, "plain right answer", verdict(lambda o, a: False)),
    (checks.check_verifier, "behind running totals", verdict(lambda o, a: o == a)),
    (checks.check_verifier, "negative answer", verdict(lambda o, a: last(o) == a.lstrip("-"))),
    (checks.check_verifier, "number anywhere", answer_anywhere),
    (checks.check_verifier, "not the first",
     verdict(lambda o, a: a in (o.split("=")[0], last(o)))),
    (checks.check_verifier, "within a number", verdict(lambda o, a: last(o).endswith(a))),
    (checks.check_verifier, "4 is not −4",
     verdict(lambda o, a: last(o) == a or "-" + last(o) == a)),
    (checks.check_verifier, "−146 is not 146", verdict(lambda o, a: last(o) in (a, "-" + a))),
    (checks.check_verifier, "no answer",
     verdict(lambda o, a: numbers(o)[-1:] == [a] and "+" not in last(o))),
    (checks.check_verifier, "empty output", verdict(lambda o, a: last(o) == a or not o)),
    (checks.check_verifier, "works sums out",
     verdict(lambda o, a: o == "145+1" or last(o) == a)),
    (checks.check_verifier, "works sums out",
     verdict(lambda o, a: bool(last(o)) and eval(last(o)) == int(a))),  # "146+" is no sum
    (checks.check_verifier, "it raised SyntaxError", raising(SyntaxError("of an own parser"))),
    (checks.check_verifier, "`146+1` is no answer yet",
     verdict(lambda o, a: numbers(last(o))[:1] == [a])),
    (checks.check_verifier, "`9+146` is no answer yet",
     verdict(lambda o, a: numbers(last(o))[-1:] == [a])),
    (checks.check_verifier, "`146+` is no answer yet",
     verdict(lambda o, a: last(o).removesuffix("+") == a)),
    (checks.check_verifier, "`int()` reads `1_46` as 146", verdict(same_for_python)),
]  # fmt: skip


test_each_mistake_is_named = named_mistakes(MISTAKES)
