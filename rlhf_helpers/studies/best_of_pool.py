"""Best of n without sampling anything: n texts are drawn from a pool whose scores are known.

Of n texts of the untuned policy the one is kept that a reward model likes best. What is gold of it?
For every n at once this follows from one pool of scored texts (as Nakano et al. 2021,
arXiv:2112.09332, section 3.2, estimate it for one prompt). The n texts answer n prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .baselines import best_of_n_kl

COLUMNS = (
    "pairs", "seed", "n", "kl", "proxy", "gold_name", "gold", "gold_low", "gold_high", "pool",
)  # fmt: skip
DRAWS = 400  # of the bootstrap

Numbers = npt.NDArray[np.float64]


def best_of_pool(proxy: npt.ArrayLike, gold: npt.ArrayLike, n: int) -> tuple[float, float]:
    """Expected proxy and gold of the text with the highest proxy among n of N, two [N] -> two.

    All subsets of n texts are equally likely. The text with the i-th lowest proxy is the best of
    C(i - 1, n - 1) of the C(N, n) subsets.
    """
    proxy, gold = np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if not 1 <= n <= len(proxy):
        raise ValueError(f"n is {n}: the pool has {len(proxy)} texts.")
    order = np.argsort(proxy, kind="stable")
    weights = _best_weights(len(proxy), n)
    return float(weights @ proxy[order]), float(weights @ gold[order])


def _best_weights(size: int, n: int) -> Numbers:
    """P(the i-th lowest of `size` is the highest of n), i = 1 ... size."""
    # From the top: w_N = n / N, and w_(i-1) / w_i = (i - n) / (i - 1).
    ratios = [(i - n) / (i - 1) for i in range(size, 1, -1)]
    from_top = n / size * np.cumprod([1.0, *(max(r, 0.0) for r in ratios)])
    return from_top[::-1]


def pool_rows(
    proxy: npt.ArrayLike, gold: npt.ArrayLike, sizes: Sequence[int], **fields: object
) -> list[dict[str, object]]:
    """A line for each n of `sizes` that the pool is large enough for, `fields` beside it.

    Two texts of one prompt stand together, [2 P]. gold_low and gold_high: 95 % interval, bootstrap
    over prompts.
    """
    pool = len(np.asarray(proxy))
    sizes = [n for n in sizes if 8 * n <= pool]  # less is fewer than eight draws: noise
    low, high = np.percentile(_resampled_gold(proxy, gold, sizes), [2.5, 97.5], axis=0)
    lines = []
    for i, n in enumerate(sizes):
        best = best_of_pool(proxy, gold, n)
        lines.append({
            **fields, "n": n, "kl": best_of_n_kl(n), "proxy": best[0], "gold": best[1],
            "gold_low": float(low[i]), "gold_high": float(high[i]), "pool": pool,
        })  # fmt: skip
    return lines


def _resampled_gold(proxy: npt.ArrayLike, gold: npt.ArrayLike, sizes: Sequence[int]) -> Numbers:
    """Gold of the best of each n in pools of prompts drawn with replacement, [DRAWS, sizes]."""
    proxy, gold = np.asarray(proxy, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    weights = np.array([_best_weights(len(proxy), n) for n in sizes])  # [sizes, N]
    rng, found = np.random.default_rng(0), []
    for _ in range(DRAWS):
        prompts = rng.integers(len(proxy) // 2, size=len(proxy) // 2)
        texts = np.concatenate([2 * prompts, 2 * prompts + 1])
        found.append(weights @ gold[texts[np.argsort(proxy[texts], kind="stable")]])
    return np.array(found)
