"""Errors that are themselves estimated from a few samples: Student's t on the scale of a standard normal, and back."""

from __future__ import annotations

import math


def normal_of_t(t: float, degrees: int) -> float:
    """The standard normal value that is as improbable as this t (Wallace, Ann. Math. Stat. 30, 1959; second-hand)."""
    if degrees < 1:
        return 0.0
    shrunk = (8 * degrees + 1) / (8 * degrees + 3)
    return math.copysign(shrunk * math.sqrt(degrees * math.log1p(min(abs(t), 1e150) ** 2 / degrees)), t)


def t_of_normal(z: float, degrees: int) -> float:
    """The inverse of `normal_of_t`; infinite without degrees of freedom."""
    if degrees < 1:
        return math.inf
    grown = z * (8 * degrees + 3) / (8 * degrees + 1)
    return math.copysign(math.sqrt(degrees * math.expm1(min(grown**2 / degrees, 700.0))), z)
