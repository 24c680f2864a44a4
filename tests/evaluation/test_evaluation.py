"""Paired evaluation: pairing, the bootstrap, every field, every verdict."""

import itertools
import json
import math
import random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_helpers.evaluation.before_after import (
    EvaluationError,
    pair_samples,
    paired_bootstrap,
    reference_perplexity,
    summarise_pair,
)
from rlhf_helpers.evaluation.verdict import VERDICTS

WORDS = [f"word{i}" for i in range(3000)]


def outputs(count: int, seed: int, words: int = 30, vocabulary: int = 3000) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS[:vocabulary], k=words)) for _ in range(count)]


def samples(rewards, texts=None, group="heldout", prompt="prompt {}", seed=0, **fields):
    """One sample for each reward; a field given as a list is dealt out, else repeated."""
    rewards = list(rewards)
    texts = texts or outputs(len(rewards), seed=1)
    rows = []
    for i, (reward, text) in enumerate(zip(rewards, texts, strict=True)):
        row = {"prompt": prompt.format(i), "output": text, "reward": reward, "seed": seed + i,
               "group": group, "reward_continuation": reward}
        row |= {name: v[i] if isinstance(v, list) else v for name, v in fields.items()}
        rows.append(row)
    return rows


# --- bootstrap ---------------------------------------------------------------------------


def test_bootstrap_of_all_draws_by_hand():
    # Three differences have 27 equally likely draws: the exact quantiles of their means.
    values = [0.0, 1.0, 5.0]
    means = sorted(sum(draw) / 3 for draw in itertools.product(values, repeat=3))
    mean, low, high = paired_bootstrap(values, n_draws=40_000, seed=3)
    assert mean == pytest.approx(2.0)
    # The lowest and highest mean have probability 1/27 = 3.7 % each: beyond 2.5 %.
    assert low == means[0] == 0.0
    assert high == means[-1] == 5.0


def test_bootstrap_agrees_with_a_loop_and_with_theory():
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 1.0, size=400)
    mean, low, high = paired_bootstrap(values, seed=1)
    loop_rng = random.Random(2)
    loop = sorted(sum(loop_rng.choices(values, k=400)) / 400 for _ in range(2000))
    assert low == pytest.approx(loop[50], abs=0.02)
    assert high == pytest.approx(loop[1950], abs=0.02)
    standard_error = values.std() / math.sqrt(400)
    assert (high - low) == pytest.approx(2 * 1.96 * standard_error, rel=0.05)
    assert mean == pytest.approx(values.mean())


def test_bootstrap_draws_what_scipy_draws():
    """Its percentile interval, from the same stream of random numbers."""
    values = np.random.default_rng(4).normal(0.1, 0.3, size=97)
    for seed in range(3):
        drawn = scipy.stats.bootstrap(
            [values], np.mean, n_resamples=10_000, method="percentile",
            rng=np.random.default_rng(seed),
        )  # fmt: skip
        interval = paired_bootstrap(values, seed=seed)
        assert interval[1:] == pytest.approx(tuple(drawn.confidence_interval), rel=1e-12)


def test_bootstrap_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        values = rng.exponential(1.0, size=60) - 1.0  # skewed, mean 0
        _, low, high = paired_bootstrap(values, n_draws=1000, seed=trial)
        hits += low <= 0.0 <= high
    # Binomial(200, 0.93) has standard deviation 3.6, so that 176 to 197 hold it by far.
    assert 0.88 <= hits / 200 <= 0.985


def test_bootstrap_is_seeded_and_blocks_change_nothing(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    assert paired_bootstrap(values, seed=7) == paired_bootstrap(values, seed=7)
    assert paired_bootstrap(values, seed=7) != paired_bootstrap(values, seed=8)
    whole = paired_bootstrap(values, n_draws=999, seed=7)
    monkeypatch.setattr("rlhf_helpers.evaluation.before_after.DRAWS_PER_BLOCK", 1000)
    assert paired_bootstrap(values, n_draws=999, seed=7) == whole


def test_strata_keep_the_difference_between_prompts_out_of_the_interval():
    # Two prompts that differ by 10 and hardly vary within: only that little varies.
    values, strata = [0.0, 0.2] * 8 + [10.0, 10.2] * 8, ["a"] * 16 + ["b"] * 16
    mean, low, high = paired_bootstrap(values, seed=0, strata=strata)
    assert mean == pytest.approx(5.1)
    assert high - low < 0.2
    free = paired_bootstrap(values, seed=0)
    assert free.high - free.low > 3


def test_strata_weigh_the_same_whatever_their_size():
    mean, low, high = paired_bootstrap([1.0, 1.0, 1.0, 3.0], strata=["a", "a", "a", "b"])
    assert (mean, low, high) == (2.0, 2.0, 2.0)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
@settings(max_examples=40)
def test_bootstrap_interval_lies_within_the_values(values):
    mean, low, high = paired_bootstrap(values, n_draws=200)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert mean == pytest.approx(sum(values) / len(values), abs=1e-9)


def test_bootstrap_of_nothing_is_an_error():
    with pytest.raises(EvaluationError, match="list of differences"):
        paired_bootstrap([])


# --- pairing -----------------------------------------------------------------------------


def test_pairs_follow_group_prompt_and_seed_not_position():
    before, after = samples([0.1, 0.2, 0.3]), samples([0.4, 0.5, 0.6])
    pairs = pair_samples(before, after[::-1])
    assert [(b["reward"], a["reward"]) for b, a in pairs] == [(0.1, 0.4), (0.2, 0.5), (0.3, 0.6)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b, a: a.pop(), "No sample after for group 'heldout', prompt 'prompt 1', seed 1"),
        (lambda b, a: b.pop(), "No sample before for group 'heldout', prompt 'prompt 1', seed 1"),
        (lambda b, a: a[0].update(seed=9), "prompt 'prompt 0', seed"),
        (lambda b, a: a[0].update(group="post"), "prompt 'prompt 0'"),
        (lambda b, a: a.append(dict(a[0])), "Sample 2 after repeats"),
        (lambda b, a: a.clear(), "no samples after"),
        (lambda b, a: b[1].pop("reward_continuation"), "Sample 1 before has no field"),
        (lambda b, a: b[1].update(reward=float("nan")), "Sample 1 before: reward is nan"),
        (lambda b, a: a[1].update(judge="0.5"), "Sample 1 after: judge is '0.5'"),
    ],
)
def test_what_cannot_be_paired_is_an_error_in_one_sentence(change, message):
    before, after = samples([0.1, 0.2]), samples([0.3, 0.4])
    change(before, after)
    with pytest.raises(EvaluationError, match=message.replace("(", r"\(")) as error:
        summarise_pair(before, after)
    assert "\n" not in str(error.value)


# --- the summary -------------------------------------------------------------------------


def test_fields_by_hand():
    before = samples(
        [0.1, 0.5, 0.6], ["a b c d", "a b c d", "e f"], judge=[0.2, 0.4, 0.6],
        ended=[True, False, False], n_tokens=[4, 4, 2], reference_nll=[4.0, 5.0, 1.0],
    )
    after = samples(
        [0.9, 0.4, 0.8], ["a a", "b b", "c c"], judge=[0.5, 0.5, 0.5],
        ended=[True, True, False], n_tokens=[3, 3, 4], reference_nll=[10.0, 10.0, 10.0],
        kl_k1=[1.0, 2.0, 6.0], kl_k3=[0.5, 0.5, 2.0],
    )
    summary = summarise_pair(before, after, seed=11)
    assert summary["n_prompts"] == summary["n_samples"] == 3
    assert summary["seed"] == 11
    assert summary["reward_before"] == pytest.approx(0.4)
    assert summary["reward_after"] == pytest.approx(0.7)
    assert summary["paired_difference"]["mean"] == pytest.approx(0.3)
    assert summary["paired_difference"]["low"] == pytest.approx(-0.1)  # one of 27 draws
    assert summary["paired_difference"]["high"] == pytest.approx(0.8)
    assert summary["judge_before"] == pytest.approx(0.4)
    assert summary["judge_after"] == pytest.approx(0.5)
    assert summary["share_of_prompts_lower"] == pytest.approx(1 / 3)
    assert summary["kl_per_sequence"] == pytest.approx(3.0)
    assert summary["kl_k3"] == pytest.approx(1.0)
    assert summary["distinct_1_before"] == pytest.approx(6 / 10)
    assert summary["distinct_2_before"] == pytest.approx(4 / 7)
    assert summary["distinct_3_before"] == pytest.approx(2 / 4)
    assert summary["distinct_2_after"] == pytest.approx(3 / 3)
    assert summary["length_words_before"] == pytest.approx(10 / 3)
    assert summary["length_tokens_after"] == pytest.approx(10 / 3)
    assert summary["ended_share_before"] == pytest.approx(1 / 3)
    assert summary["ended_share_after"] == pytest.approx(2 / 3)
    assert summary["perplexity_before"] == pytest.approx(math.exp(1.0))
    assert summary["perplexity_after"] == pytest.approx(math.exp(3.0))
    assert summary["repeated_4grams_before"] == [{"ngram": "a b c d", "count": 2, "samples": 2}]
    assert summary["repeated_4grams_after"] == []
    assert summary["verdict"] in VERDICTS


def test_contract_fields_are_numbers_in_json():
    before, after = samples([0.4] * 5), samples([0.6] * 5, kl_k1=2.0)
    summary = json.loads(json.dumps(summarise_pair(before, after), allow_nan=False))
    for field in ("n_prompts", "reward_before", "reward_after", "reward_continuation_before",
                  "reward_continuation_after", "kl_per_sequence", "distinct_2_before",
                  "distinct_2_after", "seed"):
        assert isinstance(summary[field], int | float), field
    assert set(summary["paired_difference"]) == {"mean", "low", "high"}


def test_what_was_not_measured_is_none():
    summary = summarise_pair(samples([0.4] * 5), samples([0.6] * 5))
    for field in ("judge_before", "judge_difference", "kl_per_sequence", "kl_k3",
                  "ended_share_after", "length_tokens_before", "perplexity_after"):
        assert summary[field] is None, field


def test_headline_is_the_held_out_group_alone():
    before = samples([0.2] * 4) + samples([0.9] * 4, group="post", prompt="This movie was terrible")
    after = samples([0.6] * 4) + samples([0.1] * 4, group="post", prompt="This movie was terrible")
    summary = summarise_pair(before, after)
    assert summary["n_prompts"] == 4
    assert summary["paired_difference"]["mean"] == pytest.approx(0.4)
    assert summary["groups"]["post"]["paired_difference"]["mean"] == pytest.approx(-0.8)
    assert summary["groups"]["heldout"]["reward_after"] == pytest.approx(0.6)


def _post_samples(rewards_by_prompt: dict, **fields) -> list[dict]:
    return [
        row
        for prompt, rewards in rewards_by_prompt.items()
        for row in samples(rewards, group="post", prompt=prompt, **fields)
    ]


def test_the_posts_prompts_are_listed_and_split_into_hostile_and_neutral():
    hostile, neutral = "This movie was terrible", "I was surprised at how this movie"
    before = _post_samples({hostile: [0.0, 0.1], neutral: [0.4, 0.6]})
    after = _post_samples({hostile: [0.8, 0.7], neutral: [0.5, 0.5]})
    groups = summarise_pair(before, after)["groups"]
    assert set(groups) == {"post", "hostile", "neutral"}
    assert groups["hostile"]["paired_difference"]["mean"] == pytest.approx(0.7)
    assert groups["neutral"]["paired_difference"]["mean"] == pytest.approx(0.0)
    assert [row["prompt"] for row in groups["post"]["prompts"]] == [hostile, neutral]
    row = groups["post"]["prompts"][0]
    assert (row["n_samples"], row["reward_before"], row["reward_after"]) == (
        2, pytest.approx(0.05), pytest.approx(0.75))
    # Both prompts stay in every draw, so that the mean lies between the two within-prompt ends.
    interval = groups["post"]["paired_difference"]
    assert interval["low"] == pytest.approx((0.6 - 0.1) / 2)
    assert interval["high"] == pytest.approx((0.8 + 0.1) / 2)


def test_a_group_named_hostile_in_the_samples_is_not_replaced():
    hostile = "This movie was terrible"
    rows = samples([0.1] * 3, group="hostile", prompt="I hated it")
    rows += _post_samples({hostile: [0.5]})
    groups = summarise_pair(rows, rows)["groups"]
    assert groups["hostile"]["n_samples"] == 3


def test_rewards_are_averaged_within_a_prompt_first():
    # 20 prompts, the first with four samples: it counts once.
    before = samples([0.0] * 20) + samples([0.0] * 3, prompt="prompt 0", seed=100)
    after = samples([1.0] + [0.0] * 19) + samples([1.0] * 3, prompt="prompt 0", seed=100)
    summary = summarise_pair(before, after)
    assert (summary["n_prompts"], summary["n_samples"]) == (20, 23)
    assert summary["reward_after"] == pytest.approx(1 / 20)
    assert summary["paired_difference"]["mean"] == pytest.approx(1 / 20)


def test_perplexity_pools_tokens_over_samples():
    rows = [{"reference_nll": 2.0, "n_tokens": 1}, {"reference_nll": 4.0, "n_tokens": 5}]
    assert reference_perplexity(rows) == pytest.approx(math.e)


# --- verdicts ----------------------------------------------------------------------------

RNG = np.random.default_rng(0)
BEFORE = RNG.uniform(0.2, 0.8, size=120)
N = len(BEFORE)


def judged(rewards, judge, texts):
    return samples([float(r) for r in rewards], texts, judge=[float(j) for j in judge])


BASE = judged(BEFORE, BEFORE, outputs(N, seed=1))
NOISE = RNG.normal(0, 0.1, size=N)


def narrow_outputs(vocabulary: int) -> list[str]:
    return outputs(N, seed=2, vocabulary=vocabulary)


CASES = {
    "improved": judged(BEFORE + 0.2, BEFORE + 0.1 + NOISE, outputs(N, seed=2)),
    "narrower": judged(BEFORE + 0.2, BEFORE + 0.1 + NOISE, narrow_outputs(80)),
    "gamed": judged(BEFORE + 0.2, BEFORE + 0.02 + NOISE, outputs(N, seed=2)),
    "collapsed": judged(BEFORE + 0.2, BEFORE + 0.1 + NOISE, narrow_outputs(40)),
    "no_change": judged(BEFORE + NOISE - NOISE.mean(), BEFORE, outputs(N, seed=2)),
}


@pytest.mark.parametrize("expected", VERDICTS)
def test_each_verdict_on_constructed_samples(expected):
    summary = summarise_pair(BASE, CASES[expected], n_draws=1000)
    assert summary["verdict"] == expected, summary["verdict_reason"]
    assert summary["verdict_reason"].endswith(".")


def variant(**changes) -> dict:
    """The improved case with some fields of each sample replaced."""
    rows = [dict(row) for row in CASES["improved"]]
    for name, values in changes.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return summarise_pair(BASE, rows, n_draws=1000)


def test_one_phrase_in_most_outputs_is_a_collapse():
    texts = [t + (" it was very good" if i % 5 else "") for i, t in enumerate(outputs(N, seed=2))]
    summary = variant(output=texts)
    assert summary["verdict"] == "collapsed"
    assert '"it was very good" is in 80 % of the outputs' in summary["verdict_reason"]
    fresh = outputs(N, seed=2)
    rare = [t + (" it was very good" if i % 5 == 0 else "") for i, t in enumerate(fresh)]
    assert variant(output=rare)["verdict"] == "improved"


def test_the_phrase_that_is_named_is_the_one_that_was_counted():
    """Few outputs may repeat one phrase so often that no other is among the most frequent."""
    loop = "one two three four five six seven eight nine ten eleven " * 7
    texts = [
        t + (" it was very good" if i % 5 else f" {loop}")
        for i, t in enumerate(outputs(N, seed=2))
    ]
    summary = variant(output=texts)
    assert all(row["samples"] == N / 5 for row in summary["repeated_4grams_after"])
    assert '"it was very good" is in 80 % of the outputs' in summary["verdict_reason"]
    assert any(line.startswith('"it was very good" is in') for line in summary["what_got_worse"])


def test_outputs_that_shrink_to_nothing_are_a_collapse():
    summary = variant(output=outputs(N, seed=2, words=5))
    assert summary["verdict"] == "collapsed" and "length" in summary["verdict_reason"]


def test_a_judge_that_rises_a_little_beyond_noise_is_still_gamed():
    summary = variant(judge=[float(b) + 0.03 for b in BEFORE])
    assert summary["judge_difference"]["low"] > 0
    assert summary["verdict"] == "gamed" and "by only 0.030" in summary["verdict_reason"]


def test_praise_that_is_no_language_any_more_is_gamed_though_the_judge_likes_it():
    before = [dict(row, n_tokens=20, reference_nll=80.0) for row in BASE]  # e^4, about 55
    for nats, expected in ((86.0, "improved"), (90.0, "gamed")):  # e^0.3 = 1.35, e^0.5 = 1.65
        after = [dict(row, n_tokens=20, reference_nll=nats) for row in CASES["improved"]]
        summary = summarise_pair(before, after, n_draws=1000)
        assert summary["verdict"] == expected
    assert "perplexity under it went from 55 to 90" in summary["verdict_reason"]


def test_a_fall_is_called_a_fall():
    summary = variant(reward=[float(b) - 0.2 for b in BEFORE])
    assert summary["verdict"] == "no_change"
    assert "fell by 0.200" in summary["verdict_reason"]
    assert any("reward fell by 0.200" in line for line in summary["what_got_worse"])


def test_without_a_judge_the_reason_says_so():
    before = [{k: v for k, v in row.items() if k != "judge"} for row in BASE]
    after = [{k: v for k, v in row.items() if k != "judge"} for row in CASES["improved"]]
    summary = summarise_pair(before, after, n_draws=1000)
    assert summary["verdict"] == "improved"
    assert "no independent judge was asked" in summary["verdict_reason"]


def test_higher_self_bleu_alone_is_narrower():
    # Half of the outputs end on one of two long phrases: many bigrams stay distinct.
    texts = outputs(N, seed=2, words=60)
    tail = " ".join(WORDS[:25])
    texts = [t + " " + tail if i % 5 < 2 else t for i, t in enumerate(texts)]
    summary = variant(output=texts)
    assert summary["distinct_2_after"] > 0.8 * summary["distinct_2_before"]
    assert summary["verdict"] == "narrower" and "self-BLEU" in summary["verdict_reason"]


def test_identical_policies_change_nothing_and_cost_nothing():
    summary = summarise_pair(BASE, BASE, n_draws=1000)
    assert summary["verdict"] == "no_change"
    assert summary["paired_difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert summary["what_got_worse"] == []


def test_what_got_worse_names_each_cost():
    post = "This movie was terrible"
    before = samples([0.5] * 8 + [0.9] * 2, outputs(10, 1, words=30), ended=False, n_tokens=40,
                     reference_nll=120.0, judge=0.5) + _post_samples({post: [0.5, 0.5]}, judge=0.5,
                     ended=False, n_tokens=40, reference_nll=120.0)
    after = samples([0.9] * 8 + [0.8] * 2, outputs(10, 2, words=20, vocabulary=20), ended=True,
                    n_tokens=20, reference_nll=30.0, judge=0.51) + _post_samples(
                    {post: [0.2, 0.3]}, judge=0.5, ended=True, n_tokens=20, reference_nll=30.0)
    text = "\n".join(summarise_pair(before, after)["what_got_worse"])
    for part in (
        "2 of 10 prompts (20 %) score lower",
        "2 samples fell from 0.500 to 0.250",
        "judge sees a gain of 0.010 where the reward gains 0.300",
        "Distinct-1 fell",
        "Distinct-2 fell",
        "self-BLEU rose",
        "from 30.0 to 20.0 words",
        "from 0 % to 100 %",
        "from 20.1 to 4.5: they are blander",
    ):
        assert part in text, part
