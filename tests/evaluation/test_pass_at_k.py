"""pass@k by hand, against all choices counted, and against simulation."""

from itertools import combinations

import numpy as np
import pytest

from rlhf_helpers.evaluation.pass_at_k import pass_at_k, pass_at_k_change, pass_at_k_curve


@pytest.mark.parametrize(("n", "right", "k", "expected"), [
    (4, 1, 1, 1 / 4),
    (4, 1, 2, 1 / 2),  # 3 of the 6 pairs hold the right one
    (4, 2, 2, 5 / 6),
    (4, 0, 4, 0.0),
    (4, 4, 1, 1.0),
    (64, 1, 64, 1.0),
    (64, 60, 5, 1.0),  # only four are wrong: five cannot all be
])  # fmt: skip
def test_by_hand(n, right, k, expected):
    assert pass_at_k(n, right, k) == pytest.approx(expected, abs=1e-12)


def test_it_is_the_share_of_choices_that_hold_a_right_answer():
    for n in range(1, 7):
        for right in range(n + 1):
            for k in range(1, n + 1):
                chosen = list(combinations([1] * right + [0] * (n - right), k))
                share = sum(any(c) for c in chosen) / len(chosen)
                assert pass_at_k(n, right, k) == pytest.approx(share)


def test_it_has_no_bias_where_the_plain_estimate_has():
    """Of 8 samples with p = 0.1, the mean of the estimates is the true pass@4; 1-(1-p)^k is not."""
    p, n, k = 0.1, 8, 4
    right = np.random.default_rng(0).binomial(n, p, size=200_000)
    truth = 1 - (1 - p) ** k
    table = np.array([pass_at_k(n, r, k) for r in range(n + 1)])
    assert table[right].mean() == pytest.approx(truth, abs=2e-3)
    plain = 1 - (1 - right / n) ** k
    assert abs(plain.mean() - truth) > 0.02


@pytest.mark.parametrize("bad", [(4, 1, 0), (4, 1, 5), (4, 5, 1), (4, -1, 1)])
def test_what_makes_no_sense(bad):
    with pytest.raises(ValueError, match="needs 1 <= k <= n"):
        pass_at_k(*bad)


def test_a_curve_rises_and_has_its_interval():
    right = [0, 1, 2, 8, 8, 3]
    curve = pass_at_k_curve(right, n=8)
    assert list(curve) == [1, 2, 4, 8]
    assert curve[1].mean == pytest.approx(22 / 48)
    assert curve[8].mean == pytest.approx(5 / 6)
    means = [point.mean for point in curve.values()]
    assert means == sorted(means)
    assert all(point.low <= point.mean <= point.high for point in curve.values())


def test_a_change_is_paired_by_problem():
    """All problems gain the same, so that the interval has no width, whatever they differ by."""
    change = pass_at_k_change([0, 2, 4], [1, 3, 5], n=8, ks=(1,))
    assert change[1].mean == pytest.approx(1 / 8)
    assert change[1].high - change[1].low == pytest.approx(0)
    change = pass_at_k_change([8, 0], [4, 0], n=8, ks=(1, 8))
    assert change[1].mean == pytest.approx(-0.25)
    assert change[8].mean == 0  # one right answer is enough either way
