"""What the rewards of a run's windows say, and how much of it chance alone would: the best of many windows is luck.

A window's mean has an error, read off the spread of what was logged within it, and, where that says less or each window
was logged as one number, off how unlike its neighbours each is, the last two left out: a fall there must not hide in
its own noise. The best of n windows exceeds the last one by several of these errors on a run whose reward stands still,
so a fall counts only beyond a bound that allows for the choice (Bonferroni), on Student's t for an error that is itself
estimated (`few_samples`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from nextrl.judge.few_samples import t_of_normal

CHANCE = 0.03
"""Share of runs with a reward that stands still whose fall, or whose rise, may exceed its bound.

Rewards are not normal numbers, and few windows' noise is not quite a t: in simulations with binomial rewards this keeps
both below .05 (tests/judge/test_reward_windows.py).
"""

# Windows in a point once there are four: pairs of neighbours are compared, whose noise is less.
_SMOOTH, _ENOUGH = 2, 4
_LATELY, _SEVERAL = 3, 4
"""Windows whose rewards are asked whether they are all the same, and how many were logged at least: fewer may agree by
chance."""
_ALIKE = 1e-6
"""Share of a reward below which another one is the same: a mean of equal numbers in float32 is off by that."""
# Second differences of independent numbers depend on each other: n of them are worth n / 1.94 squares.
_OVERLAP = 1 + 2 * ((4 / 6) ** 2 + (1 / 6) ** 2)


@dataclass(frozen=True)
class RewardWindows:
    """Mean rewards at the end of a run, beside what chance alone would show.

    Attributes:
        last, best, first: of the last, the best and the first window (of four or more, the first two are means over
            two neighbours).
        lowest: of all rewards that were logged.
        rise: of the last over the one three windows before it.
        same: what every reward of the last three windows is, none of which differs; None where they differ, or hardly
            any was logged. Completions that all earn the same leave no gradient.
        fall_by_chance, rise_by_chance: what `best - last`, and `rise`, exceed in `CHANCE` of runs whose reward stands
            still; None where the windows are too few to measure noise.
    """

    last: float
    best: float
    rise: float
    first: float
    lowest: float
    fall_by_chance: float | None
    rise_by_chance: float | None
    same: float | None = None


def reward_windows(windows: Sequence[Sequence[float]]) -> RewardWindows:
    """From the rewards that were logged in each window, oldest first; at least one window, and one reward in each."""
    means = [statistics.fmean(window) for window in windows]
    together = _SMOOTH if len(means) >= _ENOUGH else 1
    smooth = [(a + b) / 2 for a, b in pairwise(means)] if together == _SMOOTH else means
    before = max(0, len(smooth) - 4)
    found = _noise(windows, means)
    fall = rise = None
    if found is not None:
        # Both points have an error; overlapping ones differ by less than this.
        error, degrees = found[0] * math.sqrt(2 / together), found[1]
        fall = error * _bound(CHANCE / max(1, len(smooth) - 1), degrees)
        rise = error * _bound(CHANCE, degrees)
    return RewardWindows(
        last=smooth[-1],
        best=max(smooth),
        rise=smooth[-1] - smooth[before],
        first=means[0],
        lowest=min(map(min, windows)),
        fall_by_chance=fall,
        rise_by_chance=rise,
        same=_same([reward for window in windows[-_LATELY:] for reward in window]),
    )


def _same(rewards: Sequence[float]) -> float | None:
    low, high = min(rewards), max(rewards)
    alike = high - low <= _ALIKE * max(abs(low), abs(high))
    return rewards[-1] if alike and len(rewards) >= _SEVERAL else None


def _bound(chance: float, degrees: int) -> float:
    return t_of_normal(statistics.NormalDist().inv_cdf(1 - chance), degrees)


def _noise(windows: Sequence[Sequence[float]], means: Sequence[float]) -> tuple[float, int] | None:
    """Standard error of one window's mean, and its degrees of freedom; None where nothing shows it.

    Rewards logged one after the other may be alike (data in an order), and then windows differ by more than the spread
    within them says. What they differ by is taken, but not as what few degrees of freedom say: on those a bound is
    beyond a collapse, and what a run learns bends the windows' means as well.
    """
    within, between = _within(windows, means), _between(means)
    if within is None or between is None:
        known = within or between
        return None if known is None else (math.sqrt(known[0]), known[1])
    return math.sqrt(max(within[0], between[0])), within[1]


def _within(windows: Sequence[Sequence[float]], means: Sequence[float]) -> tuple[float, int] | None:
    """Variance of a window's mean off the spread within windows, and its degrees of freedom."""
    within = sum(len(window) - 1 for window in windows)
    if within < len(windows):
        return None
    apart = (r - mean for window, mean in zip(windows, means, strict=True) for r in window)
    squares = sum(d * d for d in apart)  # a power would raise where this is infinite
    return squares / within / statistics.harmonic_mean([len(window) for window in windows]), within


def _between(means: Sequence[float]) -> tuple[float, int] | None:
    """The same off how unlike its neighbours each window is."""
    # A straight rise drops out of a second difference, whose variance is six times a mean's.
    earlier = means[:-_SMOOTH]
    second = [a - 2 * b + c for a, b, c in zip(earlier, earlier[1:], earlier[2:], strict=False)]
    degrees = int(len(second) / _OVERLAP)
    if degrees < 2:  # on one degree of freedom a bound is beyond any fall
        return None
    return sum(d * d for d in second) / len(second) / 6, degrees
