"""Best of n from a pool: against every subset of it."""

from itertools import combinations

import numpy as np
import pytest

from rlhf_helpers.studies.best_of_pool import best_of_pool, pool_rows

PROXY, GOLD = [0.3, -1.0, 2.0, 0.9, 0.1, 1.2], [1.0, 0.2, -3.0, 0.5, 0.0, 2.0]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_it_is_the_mean_over_all_subsets(n):
    best = [max(subset, key=PROXY.__getitem__) for subset in combinations(range(6), n)]
    proxy, gold = best_of_pool(PROXY, GOLD, n)
    assert proxy == pytest.approx(np.mean([PROXY[i] for i in best]))
    assert gold == pytest.approx(np.mean([GOLD[i] for i in best]))


def test_more_than_the_pool_has_cannot_be_drawn():
    with pytest.raises(ValueError, match="the pool has 6 texts"):
        best_of_pool(PROXY, GOLD, 7)


def test_lines_end_where_the_pool_is_too_small_and_carry_what_is_beside():
    rng = np.random.default_rng(0)
    rows = pool_rows(rng.normal(size=100), rng.normal(size=100), [1, 4, 8, 16], seed=7)
    assert [row["n"] for row in rows] == [1, 4, 8]  # 16 would be six draws
    assert rows[0]["kl"] == 0 and rows[0]["seed"] == 7 and rows[0]["pool"] == 100
    proxies = [row["proxy"] for row in rows]
    assert proxies == sorted(proxies)


def test_the_interval_is_that_of_a_mean_over_prompts_where_n_is_one():
    """Two texts of a prompt with the same gold are one observation."""
    gold = np.repeat(np.random.default_rng(1).normal(size=400), 2)
    (row,) = pool_rows(np.arange(800), gold, [1])
    half = 1.96 * gold.std() / np.sqrt(400)
    assert row["gold"] == pytest.approx(gold.mean())
    assert row["gold_high"] - row["gold"] == pytest.approx(half, rel=0.15)
    assert row["gold"] - row["gold_low"] == pytest.approx(half, rel=0.15)


def test_a_large_pool_is_no_trouble():
    proxy = np.arange(20_000.0)
    best, gold = best_of_pool(proxy, proxy, 1024)
    assert best == gold == pytest.approx(1024 / 1025 * 20_001 - 1, rel=1e-6)
