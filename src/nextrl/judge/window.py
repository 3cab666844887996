"""What a run shows at the end of a window without spending anything, and how far weights move its policy."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from nextrl.judge.few_samples import normal_of_t

_MEDIAN = 0.6745
"""Median of the absolute value of a standard normal variable."""

ROUNDING = 1e-9
"""Share of the largest reward's size below which nothing is a fall, or a gap, but rounding."""


@dataclass(frozen=True)
class Window:
    """What a run shows at the end of a window, without spending anything.

    Attributes:
        step: optimizer steps so far.
        rewards: mean training reward of each step of the window, in order; NaN where none was measured.
        rate: the learning rate the window was trained at.
        trained: completions that the run has been trained on so far, which the search's budget is a share of; None
            where unknown, which lifts the budget.
        steps: optimizer steps of the whole run; None where unknown.
    """

    step: int
    rewards: tuple[float, ...]
    rate: float
    trained: int | None = None
    steps: int | None = None

    @property
    def reward(self) -> float:
        """Mean training reward of the window."""
        measured = known(self.rewards)
        return sum(measured) / len(measured) if measured else math.nan

    @property
    def measured(self) -> int:
        """Steps whose reward was measured."""
        return len(known(self.rewards))

    @property
    def variance(self) -> float:
        """Squared standard error of `reward`, from the spread of the steps; infinite where it is not known.

        It is not of fewer than two measured steps.
        """
        measured = known(self.rewards)
        n = len(measured)
        return sum((r - self.reward) ** 2 for r in measured) / (n - 1) / n if n > 1 else math.inf

    @property
    def fall(self) -> float:
        """How sure it is that the last two steps earned less than the first ones, on the scale of a standard normal.

        0.0 of fewer than five steps.

        See `fallen`.
        """
        measured = known(self.rewards)
        return fallen(measured, *_parts(measured)) if len(measured) >= 5 else 0.0

    @property
    def counted_fall(self) -> float:
        """`fall`, but no surer than few completions that may have made all of it: see `counted`."""
        rewards = known(self.rewards)
        return min(self.fall, max(0.0, counted(rewards, *_parts(rewards)))) if len(rewards) >= 5 else 0.0

    @property
    def falls(self) -> bool:
        """Whether the last third of the window earned less than its first third."""
        measured = known(self.rewards)
        part = max(1, len(measured) // 3)
        return len(measured) > 1 and sum(measured[-part:]) < sum(measured[:part])


def known(rewards: Sequence[float]) -> list[float]:
    """Those of the rewards that were measured."""
    return [reward for reward in rewards if not math.isnan(reward)]


def _parts(rewards: Sequence[float]) -> tuple[int, int]:
    """How many steps at either end of a window are compared."""
    return max(2, len(rewards) // 3), 2


def fallen(rewards: Sequence[float], first: int, last: int) -> float:
    """How sure it is that the last steps earned less than the first ones, about on the scale of a standard normal.

    Of white noise it is beyond 3.3 in .002 and beyond 4 in .0003 of windows, three and ten times as often as a normal
    variable would be: a median of few differences is a rough measure of noise. The noise of a step is taken from the
    differences between neighbours, which hardly see a trend, and from their median, which hardly sees a collapse; a
    third of their root mean square is its floor. Where most steps earn the same to the digit, since hardly a completion
    fails or hardly one succeeds, the median is 0 and a third is too little: see `counted`.

    Args:
        rewards: of each step, in order, at least three.
        first, last: how many are compared at either end.
    """
    changes = [abs(a - b) / math.sqrt(2) for a, b in itertools.pairwise(rewards)]
    noise = max(
        statistics.median(changes) / _MEDIAN,
        math.hypot(*changes) / math.sqrt(len(changes)) / 3,
        _rounding(rewards),
    )
    return normal_of_t(_in_errors(rewards, first, last, noise), len(rewards) - 2)


def counted(rewards: Sequence[float], first: int, last: int) -> float:
    """How sure the same is where single completions that fail, or succeed, make all the difference.

    Means of n completions that earn 0 or 1 lie 1/n apart. Where rare ones make up the noise of a step (Poisson), its
    variance is that gap times the mean distance from what most steps earned. As gap the smallest one that shows is
    taken. It is far below the noise where rewards are seldom alike, so that this says nothing there. It cannot tell a
    policy that fell from 1 to 0 between two steps from completions of which there is one to a step, and is no bound
    for a decision that must not miss that.

    Args:
        rewards, first, last: see `fallen`.
    """
    least, ascending = _rounding(rewards), sorted(rewards)
    gap = min((b - a for a, b in itertools.pairwise(ascending) if b - a > least), default=0.0)
    usual = statistics.median_low(rewards)
    rare = sum(abs(reward - usual) for reward in rewards) / len(rewards)
    return _in_errors(rewards, first, last, max(math.sqrt(gap * rare), least))


def _in_errors(rewards: Sequence[float], first: int, last: int, noise: float) -> float:
    """By how many standard errors the last steps earned less than the first ones, where a step has that noise."""
    lost = sum(rewards[:first]) / first - sum(rewards[-last:]) / last
    return lost / (noise * math.sqrt(1 / first + 1 / last)) if noise else 0.0


def _rounding(rewards: Sequence[float]) -> float:
    return ROUNDING * max(map(abs, rewards))
