"""The rounding of stored numbers, by their size and dtype alone.

A stored value x = 2^e f carries an error that is uniform within half a unit in the last place. Its variance is ulp^2
/ 12, where ulp = 2^(e - p) (p = 7 for bfloat16, 10 for float16, 23 for float32).
"""

from __future__ import annotations

import torch
from torch import Tensor

_FRACTION_BITS = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23, torch.float64: 52}


def rounding_variance(t: Tensor) -> float:
    """Mean variance of the storage error of a tensor's entries, ulp^2 / 12; zeros count as exact."""
    wide = t.double()
    exponent = torch.frexp(wide)[1] - 1
    ulp = torch.where(wide == 0, 0.0, torch.exp2((exponent - _FRACTION_BITS[t.dtype]).double()))
    return float(ulp.square().mean()) / 12.0
