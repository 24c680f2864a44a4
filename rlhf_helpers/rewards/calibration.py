"""Whether a probability means what it says: accuracy, reliability and calibration error."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def reliability(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, n_bins: int = 10
) -> dict[str, Any]:
    """Accuracy and calibration of P(POSITIVE) against labels 0/1.

    `ece` is the expected calibration error: over equal-width bins of the probability, the mean
    of |mean probability - share of positives|, weighted by the bins' counts (Naeini et al., 2015).
    """
    p, y = np.asarray(probabilities), np.asarray(labels)
    place = np.minimum((p * n_bins).astype(int), n_bins - 1)
    bins = []
    for b in range(n_bins):
        inside = place == b
        count = int(inside.sum())
        bins.append(
            {
                "from": b / n_bins,
                "to": (b + 1) / n_bins,
                "count": count,
                "mean_probability": float(p[inside].mean()) if count else None,
                "share_positive": float(y[inside].mean()) if count else None,
            }
        )
    filled = [b for b in bins if b["count"]]
    gaps = [b["count"] * abs(b["mean_probability"] - b["share_positive"]) for b in filled]
    return {
        "n": len(y),
        "accuracy": float(((p > 0.5) == (y == 1)).mean()),
        "ece": float(sum(gaps) / len(y)),
        "brier": float(((p - y) ** 2).mean()),
        "mean_probability": float(p.mean()),
        "share_positive": float(y.mean()),
        "bins": bins,
    }
