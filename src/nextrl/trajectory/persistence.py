"""Persistence: the cosine of two successive windows of a run, and its zero point under Adam's momentum.

`measured_persistence` reads it off a run, `adam_persistence` says what momentum alone would give, and `excess` is
how far the one lies above the other. Why this zero point: docs/design.md, "persistence and its zero point".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from nextrl.trajectory.combinations import known_steps, pooled_gram
from nextrl.trajectory.statistics import with_start
from nextrl.trajectory.trajectory import Trajectory

DEFAULT_BETA1 = 0.9
"""Adam's first momentum coefficient where a run's own is not known: what PyTorch and transformers default to."""

# A squared displacement read off the Gram matrix is a difference of far larger numbers. Above this share of them it
# has lost at most seven of float64's sixteen digits, and below it the factors are read again.
GRAM_SHARE = 1e-6


def measured_persistence(traj: Trajectory, windows: Sequence[int]) -> dict[int, dict[int, float]]:
    """cos(W_t - W_{t-w}, W_{t-w} - W_{t-2w}) over all modules, for every window and step where it is defined.

    Equal to `Trajectory.persistence` to about 1e-9, but each checkpoint is read once and not once per window.
    Where a window is so short beside the whole path that its displacement cancels out of the Gram matrix (or
    did not move at all), `Trajectory.persistence` itself is asked.

    Args:
        traj: the run.
        windows: lengths w in steps.

    Returns:
        window -> {t: cosine}; t ascends, and the cosine is NaN where one of the two windows did not move.
    """
    known = known_steps(traj)
    exact = traj.persistence
    cosine = _from_gram(traj) if traj.knows_start else lambda window, t: exact(window, at=t)
    ends = {w: [t for t in known if {t - w, t - 2 * w} <= set(known)] for w in windows}
    return {w: {t: cosine(w, t) for t in steps} for w, steps in ends.items()}


def _from_gram(traj: Trajectory) -> Callable[[int, int], float]:
    """(window, t) -> the cosine, from inner products where they are exact enough."""
    gram, known = with_start(pooled_gram(traj), traj.steps, traj.start)
    sizes = torch.stack([traj.product_sizes(module) for module in traj.modules]).square().sum(0)
    largest = dict(zip(traj.steps, sizes.tolist(), strict=True))
    place = {step: n for n, step in enumerate(known)}
    # W_0 is taken off every entry where it was read from a checkpoint, and leaves its rounding behind.
    from_start = largest.get(traj.start, 0.0)

    def cosine(window: int, t: int) -> float:
        steps = (t, t - window, t - 2 * window)
        now, middle, first = (place[step] for step in steps)
        late = gram[now, now] - 2 * gram[now, middle] + gram[middle, middle]
        early = gram[middle, middle] - 2 * gram[middle, first] + gram[first, first]
        floor = GRAM_SHARE * max(from_start, *(largest.get(step, 0.0) for step in steps))
        if min(late, early) <= floor:
            return traj.persistence(window, at=t)
        dot = gram[now, middle] - gram[now, first] - gram[middle, middle] + gram[middle, first]
        return float(dot / (late * early).sqrt())

    return cosine


def adam_persistence(window: int, beta1: float = DEFAULT_BETA1) -> float:
    """Cosine of two successive windows of updates under white gradient noise and momentum `beta1`.

    With momentum the update at step i is a sum of gradients with weights beta1^j, so updates i and j of one run
    correlate as beta1^|i-j|. Two sums of `window` successive updates then have Var = sum_ij beta1^|i-j| and Cov =
    sum_ij beta1^(window+j-i), i, j = 1..window, and the cosine is Cov / Var (our own derivation, docs/design.md,
    persistence and its zero point; Adam's second moment is taken as constant over two windows).

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
    oscillates; `nextrl.judge.regime` has the bounds.

    Raises:
        ValueError: `c0` is 1 or more.
    """
    if c0 >= 1.0:
        raise ValueError(f"excess needs c0 < 1, got {c0}")
    return (c - c0) / (1.0 - c0)
