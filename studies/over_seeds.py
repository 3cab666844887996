"""A figure over seeds as tables show it: mean and standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev


def mean_and_error(values: Sequence[float], digits: int = 3, sign: str = "") -> str:
    """`.123 ± .004`: the mean and its standard error, stdev / sqrt(n); the mean alone where there is one value.

    Args:
        values: one a seed, at least one.
        digits: after the point.
        sign: "+" shows the sign of a positive mean, too.
    """
    error = f" ± {stdev(values) / math.sqrt(len(values)):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):{sign}.{digits}f}{error}"
