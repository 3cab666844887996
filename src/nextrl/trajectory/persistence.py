"""The zero point of persistence: what Adam's momentum alone keeps of a direction, and the excess over it.

Pure functions of numbers; `Trajectory.persistence` measures the cosine itself.
"""

from __future__ import annotations

DEFAULT_BETA1 = 0.9
"""Adam's first momentum coefficient where a run's own is not known: what PyTorch and transformers default to."""


def adam_persistence(window: int, beta1: float = DEFAULT_BETA1) -> float:
    """Cosine of two successive windows of updates under white gradient noise and momentum `beta1`.

    With momentum the update at step i is a sum of gradients with weights beta1^j, so updates i and j of one
    run correlate as beta1^|i-j|. Two sums of `window` successive updates then have
    Var = sum_ij beta1^|i-j| and Cov = sum_ij beta1^(window+j-i), i, j = 1..window, and the cosine is Cov /
    Var (our own derivation, DESIGN.md section 2; Adam's second moment is taken as constant over two windows).

    Args:
        window: optimizer steps in a window, >= 1.
        beta1: Adam's first momentum coefficient, 0 <= beta1 < 1.

    Raises:
        ValueError: if an argument is out of range.
    """
    if window < 1:
        raise ValueError(f"adam_persistence needs window >= 1 steps, got {window}")
    if not 0.0 <= beta1 < 1.0:
        raise ValueError(f"adam_persistence needs 0 <= beta1 < 1, got {beta1}")
    # Both double sums run over the lag i - j, which occurs window - |lag| times.
    lags = range(-window + 1, window)
    variance = sum((window - abs(lag)) * beta1 ** abs(lag) for lag in lags)
    covariance = sum((window - abs(lag)) * beta1 ** (window - lag) for lag in lags)
    return covariance / variance


def excess(c: float, c0: float) -> float:
    """How far the measured persistence `c` lies above the zero point `c0`: (c - c0) / (1 - c0).

    Near 1 the learning rate is far too low or a leap is due, 0 is what a tuned rate shows, and far below 0 the run
    oscillates; `nextrl.judge.regime` has the bounds. `c0` < 1.
    """
    if c0 >= 1.0:
        raise ValueError(f"excess needs c0 < 1, got {c0}")
    return (c - c0) / (1.0 - c0)
