"""pass@k: the chance that at least one of k answers to a problem is right."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from .before_after import Interval, paired_bootstrap

KS = (1, 2, 4, 8, 16, 32, 64)


def pass_at_k(n: int, right: int, k: int) -> float:
    """Estimated from `right` of n samples of one problem, without bias for k <= n.

    1 - C(n - right, k) / C(n, k): the share of all choices of k samples that hold a right one
    (Chen et al. 2021, arXiv:2107.03374, equation 1). ValueError where k is not among 1 .. n.
    """
    if not 1 <= k <= n or not 0 <= right <= n:
        raise ValueError(f"pass@k needs 1 <= k <= n and right <= n: k={k}, n={n}, right={right}")
    return 1 - comb(n - right, k) / comb(n, k)


def pass_at_k_curve(
    right: Sequence[int], n: int, ks: Sequence[int] = KS, seed: int = 0
) -> dict[int, Interval]:
    """Mean over problems for each k that n samples allow, and its interval over problems.

    `right`: how many of the n samples of each problem are right.
    """
    return {
        k: paired_bootstrap([pass_at_k(n, r, k) for r in right], seed=seed)
        for k in ks if k <= n
    }  # fmt: skip


def pass_at_k_change(
    before: Sequence[int], after: Sequence[int], n: int, ks: Sequence[int] = KS, seed: int = 0
) -> dict[int, Interval]:
    """The same of the difference on the same problems: after less before."""
    return {
        k: paired_bootstrap(
            [pass_at_k(n, new, k) - pass_at_k(n, old, k)
             for old, new in zip(before, after, strict=True)],
            seed=seed,
        )
        for k in ks if k <= n
    }  # fmt: skip
