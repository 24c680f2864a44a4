"""Every check of the exercises: satisfied by a right answer, and by each wrong one told apart."""

import math
import re

import numpy as np
import pytest
import torch
from exercise_answers import named_mistakes, right_answers, said, still_open

from rlhf_helpers.exercises import sampling_and_lora as exercises

# --- right answers, written in other ways than in the notebooks ---


def softmax_by_hand(logits, t):
    weights = [math.exp(x / t) for x in logits.tolist()]
    return torch.tensor([w / sum(weights) for w in weights])


def top_k_by_sorting(probabilities, k):
    kept = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])[:k]
    total = sum(float(probabilities[i]) for i in kept)
    return torch.tensor(
        [float(p) / total if i in kept else 0.0 for i, p in enumerate(probabilities)]
    )


def count_words(samples, **kwargs):
    return [float(len(sample.split())) for sample in samples]


def no_shouting(samples, **kwargs):
    return [-sample.count("!") for sample in samples]


def rhymes(samples, **kwargs):
    """How many sentences or lines end like the one before."""
    rewards = []
    for sample in samples:
        lines = [line.strip(" ,!?") for line in re.split(r"[.\n]", sample) if line.strip(" ,!?")]
        pairs = zip(lines, lines[1:], strict=False)
        rewards.append(float(sum(a[-3:] == b[-3:] for a, b in pairs)))
    return rewards


def short_sentences(samples, **kwargs):
    """Minus the words of the longest sentence; 0 for a text without any."""
    return [-max(len(part.split()) for part in sample.split(".")) for sample in samples]


def lengths(samples, **kwargs):
    return np.array([len(sample) for sample in samples])


def matrices(width_in, width_out, rank):
    return torch.randn(rank, width_in), torch.zeros(width_out, rank)


def merge_entry_by_entry(W, A, B, alpha):
    merged = W.clone()
    for i in range(W.shape[0]):
        for j in range(W.shape[1]):
            merged[i, j] += alpha / len(A) * sum(B[i, k] * A[k, j] for k in range(len(A)))
    return merged


RIGHT = [
    (exercises.check_temperature, softmax_by_hand),
    (exercises.check_top_k, top_k_by_sorting),
    (exercises.check_reward, count_words),
    (exercises.check_reward, no_shouting),
    (exercises.check_reward, lambda samples, **kwargs: ["!" not in s for s in samples]),
    (exercises.check_reward, rhymes),
    (exercises.check_reward, short_sentences),
    (exercises.check_reward, lengths),
    (exercises.check_reward, lambda samples, **kwargs: list(lengths(samples))),
    (exercises.check_reward, lambda samples, **kwargs: list(lengths(samples).astype(np.float32))),
    (exercises.check_reward, lambda samples, **kwargs: torch.tensor(lengths(samples)).float()),
    (exercises.check_count, lambda i, o, r: sum(1 for _ in range(r) for _ in range(i + o))),
    (exercises.check_start, matrices),
    (exercises.check_start, lambda i, o, r: (torch.zeros(r, i), torch.randn(o, r))),
    (exercises.check_start, lambda i, o, r: (torch.eye(r, i, dtype=int), torch.zeros(o, r))),
    # Rows alike, but their columns of B are opposed, and so are their gradients.
    (
        exercises.check_start,
        lambda i, o, r: (torch.ones(r, i), torch.tensor([[1.0, -1.0]]).repeat(o, 1)),
    ),
    (exercises.check_merge, merge_entry_by_entry),
]


test_a_right_answer_is_right = right_answers(RIGHT)


@pytest.mark.parametrize(
    "reward, text",
    [(count_words, "word " * 100), (short_sentences, "A. A. A."), (short_sentences, ""),
     (lambda samples, **kwargs: lengths(samples).max() - lengths(samples), ""),
     (lambda samples, **kwargs: torch.tensor(lengths(samples)), "word " * 100)],
)  # fmt: skip
def test_a_gamed_reward_is_right(capsys, reward, text):
    assert said(capsys, exercises.check_gamed, reward, text) == "Right."


# --- the mistakes that the checks name: words of the sentence -> the wrong answer ---


def in_place(probabilities, k):
    probabilities[probabilities < probabilities.topk(k).values.min()] = 0
    return probabilities / probabilities.sum()


def without_rest(probabilities, k):
    return probabilities.topk(k).values / probabilities.topk(k).values.sum()


def smallest(probabilities, k):
    kept = torch.zeros_like(probabilities)
    places = probabilities.topk(k, largest=False).indices
    kept[places] = probabilities[places]
    return kept / kept.sum()


def one_too_many(probabilities, k):
    return top_k_by_sorting(probabilities, k + 1)


def always_two(probabilities, k):
    return top_k_by_sorting(probabilities, 2)


def merge_in_place(W, A, B, alpha):
    W += alpha / len(A) * B @ A
    return W


MISTAKES = [
    (exercises.check_temperature, "Still open", still_open),
    (exercises.check_temperature, "did you forget `return`", lambda logits, t: None),
    (exercises.check_temperature, "it raised ZeroDivisionError", lambda logits, t: 1 / 0),
    (exercises.check_temperature, "it returns logits", lambda logits, t: logits / t),
    (exercises.check_temperature, "plain softmax", lambda logits, t: (logits / t).exp()),
    (exercises.check_temperature, "is it used", lambda logits, t: logits.softmax(0)),
    (exercises.check_temperature, "do not add up", lambda logits, t: logits.softmax(0) / t),
    (exercises.check_temperature, "do not multiply", lambda logits, t: (logits * t).softmax(0)),
    (exercises.check_temperature, "not softmax(logits / 0.5)",
     lambda logits, t: (logits / t**2).softmax(0)),
    (exercises.check_temperature, "must even out",
     lambda logits, t: (logits / min(t, 1)).softmax(0)),
    (exercises.check_top_k, "did you forget `return`", lambda p, k: None),
    (exercises.check_top_k, "one probability for every token", without_rest),
    (exercises.check_top_k, "work on a copy", in_place),
    (exercises.check_top_k, "divide by its sum",
     lambda p, k: torch.where(p >= p.topk(k).values.min(), p, 0)),
    (exercises.check_top_k, "keep the k largest", smallest),
    (exercises.check_top_k, "only 0.4 and 0.25 may stay", one_too_many),
    (exercises.check_top_k, "nothing may change", always_two),
    (exercises.check_reward, "does not take **kwargs", lambda samples: [1.0] * len(samples)),
    (exercises.check_reward, "did you forget `return`", lambda samples, **kwargs: None),
    (exercises.check_reward, "one number for all", lambda samples, **kwargs: 0.5),
    (exercises.check_reward, "one number for all", lambda samples, **kwargs: np.int64(1)),
    (exercises.check_reward, "one number for all", lambda samples, **kwargs: torch.tensor(0.5)),
    (exercises.check_reward, "numbers for 4 samples", lambda samples, **kwargs: [1.0]),
    (exercises.check_reward, "finite number", lambda samples, **kwargs: ["good"] * len(samples)),
    (exercises.check_reward, "finite number", lambda samples, **kwargs: ["1"] * len(samples)),
    (exercises.check_reward, "finite number", lambda samples, **kwargs: [None] * len(samples)),
    (exercises.check_reward, "finite number",
     lambda samples, **kwargs: torch.tensor([[1.0, 2.0]] * len(samples))),
    (exercises.check_reward, "it raised ZeroDivisionError",
     lambda samples, **kwargs: [1 / len(s) for s in samples]),
    (exercises.check_reward, "finite number",
     lambda samples, **kwargs: [math.inf if not s else 1.0 for s in samples]),
    (exercises.check_reward, "in the order of the samples",
     lambda samples, **kwargs: sorted(len(s) for s in samples)),
    (exercises.check_reward, "the same reward", lambda samples, **kwargs: [1.0] * len(samples)),
    (exercises.check_reward, "A fine film, and I will see it again.",  # which texts they were
     lambda samples, **kwargs: [s.count("love") for s in samples]),
    (exercises.check_count, "did you forget `return`", lambda i, o, r: None),
    (exercises.check_count, "that is the size of W", lambda i, o, r: i * o),
    (exercises.check_count, "that is A alone", lambda i, o, r: r * i),
    (exercises.check_count, "that is B alone", lambda i, o, r: r * o),
    (exercises.check_count, "A and B differ in size", lambda i, o, r: 2 * r * i),
    (exercises.check_count, "A and B differ in size", lambda i, o, r: 2 * r * o),
    (exercises.check_count, "do not multiply", lambda i, o, r: r * i * o),
    (exercises.check_count, "it is 15,360", lambda i, o, r: i + o + r),
    (exercises.check_count, "it is 8", lambda i, o, r: 15360),
    (exercises.check_start, "return the two matrices", lambda i, o, r: None),
    (exercises.check_start, "changed places", lambda i, o, r: matrices(i, o, r)[::-1]),
    (exercises.check_start, "has to be [rank, in]",
     lambda i, o, r: (torch.randn(i, r), torch.zeros(r, o))),
    (exercises.check_start, "neither gets a gradient",
     lambda i, o, r: (torch.zeros(r, i), torch.zeros(o, r))),
    (exercises.check_start, "would not start at the model",
     lambda i, o, r: (torch.randn(r, i), torch.randn(o, r))),
    (exercises.check_start, "draw them at random",
     lambda i, o, r: (torch.ones(r, i), torch.zeros(o, r))),
    (exercises.check_start, "the rows of A are all alike",
     lambda i, o, r: (torch.randn(1, i).repeat(r, 1), torch.zeros(o, r))),
    (exercises.check_start, "multiples of one",
     lambda i, o, r: (torch.eye(r, i) * torch.eye(r)[:, :1], torch.zeros(o, r))),
    (exercises.check_start, "the columns of B are all alike",
     lambda i, o, r: (torch.zeros(r, i), torch.ones(o, r))),
    (exercises.check_merge, "did you forget `return`", lambda W, A, B, alpha: None),
    (exercises.check_merge, "it changes W itself", merge_in_place),
    (exercises.check_merge, "it is B @ A", lambda W, A, B, alpha: alpha / len(A) * A @ W.T @ B),
    (exercises.check_merge, "nothing was added", lambda W, A, B, alpha: W.clone()),
    (exercises.check_merge, "alpha / r is missing", lambda W, A, B, alpha: W + B @ A),
    (exercises.check_merge, "not alpha", lambda W, A, B, alpha: W + alpha * B @ A),
    (exercises.check_merge, "turned round", lambda W, A, B, alpha: W + len(A) / alpha * B @ A),
    (exercises.check_merge, "not of its columns",
     lambda W, A, B, alpha: W + alpha / A.shape[1] * B @ A),
    (exercises.check_merge, "not of its rows",
     lambda W, A, B, alpha: W + alpha / B.shape[0] * B @ A),
    (exercises.check_merge, "not taken away", lambda W, A, B, alpha: W - alpha / len(A) * B @ A),
    (exercises.check_merge, "is not W x +", lambda W, A, B, alpha: W + (B @ A) ** 2),
]  # fmt: skip


test_each_mistake_is_named = named_mistakes(MISTAKES)


@pytest.mark.parametrize(
    "text, words",
    [(None, "Still open"), (7, "is not a text"),
     ("A fine film, and I will see it again.", "one of the honest texts"),
     ("short", "find a higher one"), ("", "find a higher one")],
)  # fmt: skip
def test_a_text_that_games_nothing_is_told_so(capsys, text, words):
    assert words in said(capsys, exercises.check_gamed, count_words, text)


def test_a_reward_that_the_honest_texts_fulfil_cannot_be_gamed(capsys):
    for text in ("", "good good good", "!"):
        assert "find a higher one" in said(capsys, exercises.check_gamed, no_shouting, text)


def test_rows_of_A_that_are_alike_stay_alike():
    torch.manual_seed(0)
    x, goal = torch.randn(50, 6), torch.randn(50, 4)
    for alike, rank in ((True, 1), (False, 2)):
        A, B = matrices(6, 4, 2)
        A = A[:1].repeat(2, 1) if alike else A
        for _ in range(100):
            error = x @ A.T @ B.T - goal
            A, B = A - 0.002 * B.T @ error.T @ x, B - 0.002 * error.T @ x @ A.T
        assert torch.linalg.matrix_rank(B @ A, rtol=1e-4) == rank
