"""Persistence: the cosine of two successive windows of a run, and its zero point under Adam's momentum.

`measured_persistence` reads it off a run, `adam_persistence` says what momentum alone would give, and `excess` is
how far the one lies above the other. Why this zero point: docs/design.md, "persistence and its zero point".
"""

from __future__ import annotations

import math
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
    known, products = known_steps(traj), window_products(traj)
    ends = {w: [t for t in known if {t - w, t - 2 * w} <= set(known)] for w in windows}
    return {w: {t: _cosine(*products(t - 2 * w, t - w, t)) for t in steps} for w, steps in ends.items()}


def _cosine(dot: float, late: float, early: float) -> float:
    return dot / math.sqrt(late * early) if late > 0 and early > 0 else math.nan


def window_products(traj: Trajectory) -> Callable[[int, int, int], tuple[float, float, float]]:
    """What `Trajectory.window_products` says of any three known steps, from the Gram matrix where that is exact enough.

    Each checkpoint is then read once, however many windows are asked for.
    """
    if not traj.knows_start:
        return traj.window_products
    gram, known = with_start(pooled_gram(traj), traj.steps, traj.start)
    sizes = torch.stack([traj.product_sizes(module) for module in traj.modules]).square().sum(0)
    largest = dict(zip(traj.steps, sizes.tolist(), strict=True))
    place = {step: n for n, step in enumerate(known)}
    # W_0 is taken off every entry where it was read from a checkpoint, and leaves its rounding behind.
    from_start = largest.get(traj.start, 0.0)

    def products(first: int, middle: int, last: int) -> tuple[float, float, float]:
        a, b, c = place[first], place[middle], place[last]
        late = float((gram[c, c] - gram[b, c]) - (gram[c, b] - gram[b, b]))
        early = float((gram[b, b] - gram[a, b]) - (gram[b, a] - gram[a, a]))
        floor = GRAM_SHARE * max(from_start, *(largest.get(step, 0.0) for step in (first, middle, last)))
        if min(late, early) <= floor:
            return traj.window_products(first, middle, last)
        return float((gram[c, b] - gram[b, b]) - (gram[c, a] - gram[b, a])), late, early

    return products


def adam_persistence(
    window: int, beta1: float = DEFAULT_BETA1, before: int | None = None, updates: int = 1
) -> float:
    """Cosine of two successive windows of updates under white gradient noise and momentum `beta1`.

    With momentum the update at step i is a sum of gradients with weights beta1^j, so updates i and j of one run
    correlate as beta1^|i-j|. The sum of `n` successive updates then has Var(n) = sum_ij beta1^|i-j|, and two windows
    that meet have Cov = sum_ij beta1^(i+j-1), i and j counted from where they meet. The cosine is Cov / sqrt(Var Var)
    (our own derivation, docs/design.md, persistence and its zero point; Adam's second moment is taken as constant over
    both windows).

    Args:
        window: steps in the later window, >= 1.
        beta1: Adam's first momentum coefficient, 0 <= beta1 < 1.
        before: steps in the window before it, >= 1; as many by default.
        updates: optimizer updates in each step, >= 1: a step of verl's may hold several.

    Raises:
        ValueError: if an argument is out of range.
    """
    window, early = window * updates, (window if before is None else before) * updates
    covariance = _covariance(window, early, beta1)
    return covariance / math.sqrt(_variance(window, beta1) * _variance(early, beta1))


def adam_carry(window: int, beta1: float, before: int, updates: int = 1) -> float:
    """The share of the window before that momentum alone adds in the next `window` steps: Cov / Var(before).

    The best linear forecast under `adam_persistence`'s assumptions, and its cosine where both windows are as long.
    """
    window, before = window * updates, before * updates
    return _covariance(window, before, beta1) / _variance(before, beta1)


def _covariance(window: int, before: int, beta1: float) -> float:
    """Cov of `adam_persistence`, in units of one update's variance; raises as it says."""
    if min(window, before) < 1:
        raise ValueError(f"adam_persistence needs windows >= 1 step, got {window} after {before}")
    if not 0.0 <= beta1 < 1.0:
        raise ValueError(f"adam_persistence needs 0 <= beta1 < 1, got {beta1}")
    # The sum runs over the distance of two updates, which so many pairs have.
    distances = range(window + before - 1, 0, -1)
    return sum(min(d, window, before, window + before - d) * beta1**d for d in distances)


def _variance(window: int, beta1: float) -> float:
    lags = range(-window + 1, window)
    return sum((window - abs(lag)) * beta1 ** abs(lag) for lag in lags)


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
