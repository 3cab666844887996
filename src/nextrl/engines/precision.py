"""What the precision of a model's passes hides of a small change of its policy."""

from __future__ import annotations

import torch


def resolution(*dtypes: torch.dtype) -> float:
    """Nats per token below which a divergence does not show, in passes of the least precise of these.

    The square of a log-probability's last digit, halved: 3e-5 in bfloat16, 7e-15 in float32.
    """
    return max(float(torch.finfo(dtype).eps) ** 2 / 2 for dtype in dtypes)
