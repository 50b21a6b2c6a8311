"""How two rows of numbers agree, by scipy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def correlations(predicted: Float64, right: Float64) -> dict[str, float]:
    """``pearson`` and ``spearman``, the correlation of the numbers and of their ranks: [n], [n].

    Both are 0 where they are not defined: for fewer than two numbers, or numbers that are all the same.

    Raises:
        ValueError: if scipy is not installed.
    """
    try:
        from scipy.stats import pearsonr, spearmanr
    except ImportError:
        raise ValueError("the metrics of this task need the package scipy: pip install scipy") from None
    if len(predicted) < 2 or np.ptp(predicted) == 0 or np.ptp(right) == 0:
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": float(pearsonr(predicted, right).statistic),
        "spearman": float(spearmanr(predicted, right).statistic),
    }
