"""How varied a set of generated texts is: distinct-n, self-BLEU, repeated n-grams.

Words are what white space separates, as written: "Great!" and "great" are two words.
Only `self_bleu` tokenises further (the 13a tokenizer of sacrebleu).
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

SELF_BLEU_SAMPLES = 200  # self-BLEU grows with the number of texts: compare at one number


def word_ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """The word n-grams of one text, in order, repeats included."""
    words = text.split()
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def distinct_n(texts: Iterable[str], n: int) -> float:
    """Distinct / total word n-grams, pooled over all texts (Li et al. 2016).

    1 when no n-gram occurs twice. It falls as the number of words grows, so that only
    figures over equally many texts of about equal length compare. Returns 0 when no text
    has n words: nothing was said.
    """
    ngrams = [ngram for text in texts for ngram in word_ngrams(text, n)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def mean_words(texts: Sequence[str]) -> float:
    """Mean number of words of a text."""
    return statistics.fmean(len(text.split()) for text in texts)


def repeated_ngrams(texts: Sequence[str], n: int = 4, top: int = 10) -> list[dict]:
    """The `top` most frequent word n-grams that occur more than once.

    Each is {"ngram", "count", "samples"}: `count` occurrences in all, in `samples` texts.
    Most frequent first, ties in alphabetical order.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    samples: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        ngrams = word_ngrams(text, n)
        counts.update(ngrams)
        samples.update(set(ngrams))
    ranked = sorted((-count, ngram) for ngram, count in counts.items() if count > 1)[:top]
    return [
        {"ngram": " ".join(ngram), "count": -count, "samples": samples[ngram]}
        for count, ngram in ranked
    ]


def widest_phrase(texts: Sequence[str], n: int = 4) -> tuple[str, float]:
    """The n-gram found in the most texts, and the share of texts that it is found in.

    Of several the first in alphabetical order; "" and 0 where no text has n words.
    """
    samples = Counter(ngram for text in texts for ngram in set(word_ngrams(text, n)))
    count, ngram = min(((-count, ngram) for ngram, count in samples.items()), default=(0, ()))
    return " ".join(ngram), -count / len(texts)


def self_bleu(texts: Sequence[str], limit: int = SELF_BLEU_SAMPLES) -> float:
    """Mean BLEU-4 of each text against all others, 0 (nothing shared) to 1 (Zhu et al. 2018).

    Over the first `limit` texts, which are the same prompts before and after. Score,
    smoothing and tokenizer are sacrebleu's sentence BLEU with effective order; only the
    reference counts are gathered here, once for all texts: leaving one text out of the
    maximum needs the two largest counts of an n-gram, not 199 references counted anew.
    """
    from sacrebleu.metrics import BLEU
    from sacrebleu.metrics.helpers import extract_all_word_ngrams
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    texts = list(texts[:limit])
    if len(texts) < 2:
        raise ValueError(f"self-BLEU compares texts with each other: {len(texts)} given, 2 needed.")
    tokenize = Tokenizer13a()
    extracted = [extract_all_word_ngrams(tokenize(text.rstrip()), 1, 4) for text in texts]
    largest = _two_largest_counts(ngrams for ngrams, _ in extracted)
    lengths = Counter(length for _, length in extracted)
    scores = []
    for ngrams, length in extracted:
        if length == 0:
            scores.append(0.0)  # an empty text shares nothing with the others
            continue
        correct, total = [0] * 4, [0] * 4
        for ngram, count in ngrams.items():
            first, second = largest[ngram]
            elsewhere = second if count == first else first
            total[len(ngram) - 1] += count
            correct[len(ngram) - 1] += min(count, elsewhere)
        reference_length = _closest_other_length(lengths, length)
        score = BLEU.compute_bleu(
            correct, total, length, reference_length, smooth_method="exp", effective_order=True
        )
        scores.append(score.score / 100)
    return statistics.fmean(scores)


def _two_largest_counts(counters: Iterable[Counter]) -> dict[tuple[str, ...], tuple[int, int]]:
    """For each n-gram its largest count in one text and the next largest in another text."""
    largest: dict[tuple[str, ...], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for counter in counters:
        for ngram, count in counter.items():
            first, second = largest[ngram]
            largest[ngram] = (max(first, count), max(second, min(first, count)))
    return largest


def _closest_other_length(lengths: Counter[int], length: int) -> int:
    """BLEU's reference length: the closest among the other texts, the shorter of two."""
    others = lengths - Counter([length])
    return min(others, key=lambda other: (abs(other - length), other))
