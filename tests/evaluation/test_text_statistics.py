"""Text statistics: counts by hand, and self-BLEU against sacrebleu itself."""

import random

import pytest
from sacrebleu.metrics import BLEU

from rlhf_helpers.evaluation.text_statistics import (
    distinct_n,
    mean_words,
    repeated_ngrams,
    self_bleu,
    widest_phrase,
    word_ngrams,
)


def test_word_ngrams_by_hand():
    assert word_ngrams("a b  c\nd", 2) == [("a", "b"), ("b", "c"), ("c", "d")]
    assert word_ngrams("a b", 3) == []


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, 3 / 7),  # the cat the cat | the cat sat: {the, cat, sat} of 7 words
        (2, 3 / 5),  # the-cat x3, cat-the, cat-sat
        (3, 3 / 3),  # the-cat-the, cat-the-cat, the-cat-sat
        (5, 0.0),  # nobody has five words
    ],
)
def test_distinct_n_by_hand(n, expected):
    assert distinct_n(["the cat the cat", "the cat sat"], n) == pytest.approx(expected)


def test_distinct_n_never_joins_two_texts():
    # Joined, "b c" would be a bigram of its own and the share would be 3/3.
    assert distinct_n(["a b", "c d"], 2) == 1.0
    assert distinct_n(["a b", "a b"], 2) == 0.5


def test_words_are_taken_as_written():
    assert distinct_n(["Great great great!"], 1) == 1.0


def test_mean_words_by_hand():
    assert mean_words(["one two three", "", "one"]) == pytest.approx(4 / 3)


def test_repeated_ngrams_by_hand():
    texts = ["it was very good it was very good", "it was very good", "x y z w x y z w", "a b c d"]
    rows = repeated_ngrams(texts, n=4, top=3)
    # "it was very good" twice in the first text, once in the second; "x y z w" twice in one.
    assert rows == [
        {"ngram": "it was very good", "count": 3, "samples": 2},
        {"ngram": "x y z w", "count": 2, "samples": 1},
    ]


def test_repeated_ngrams_are_ranked_and_cut():
    texts = ["b b"] * 3 + ["a a"] * 3 + ["c c"] * 5
    assert [row["ngram"] for row in repeated_ngrams(texts, n=2, top=2)] == ["c c", "a a"]


def test_the_widest_phrase_is_that_of_the_most_texts_not_of_the_most_occurrences():
    texts = ["a b c d a b c d a b c d", "e f g h", "e f g h", "x"]
    assert widest_phrase(texts, n=4) == ("e f g h", 0.5)
    assert widest_phrase(["b c d e", "a b c d"], n=4) == ("a b c d", 0.5)
    assert widest_phrase(["a", "b"], n=4) == ("", 0.0)


def _texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = ["the", "film", "was", "good,", "bad.", "it's", "a", "great", "plot", "(really)"]
    return [" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(4))
def test_self_bleu_is_sacrebleus_own_number(seed):
    texts = _texts(15, seed) + ["the film was good,", "the film was good,"]
    metric = BLEU(effective_order=True)
    scores = [
        metric.sentence_score(text, texts[:i] + texts[i + 1 :]).score / 100
        for i, text in enumerate(texts)
    ]
    assert self_bleu(texts) == pytest.approx(sum(scores) / len(scores), abs=1e-12)


def test_self_bleu_of_equal_and_of_unlike_texts():
    assert self_bleu(["a b c d e"] * 5) == pytest.approx(1.0)
    assert self_bleu(["a b c d e", "f g h i j"]) < 0.15
    assert self_bleu(["", ""]) == 0.0


def test_self_bleu_looks_at_the_first_texts_only():
    texts = _texts(12, 0)
    assert self_bleu(texts, limit=6) == self_bleu(texts[:6])
    assert self_bleu(texts, limit=6) != self_bleu(texts)


def test_self_bleu_of_one_text_is_an_error():
    with pytest.raises(ValueError, match="1 given, 2 needed"):
        self_bleu(["alone"])
