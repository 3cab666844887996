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


@dataclass(frozen=True)
class Window:
    """What a run shows at the end of a window, without spending anything.

    Attributes:
        step: optimizer steps so far.
        rewards: mean training reward of each step of the window, in order; NaN where none was measured.
        rate: the learning rate the window was trained at.
        trained: completions that the run has been trained on so far, which the search's budget is a share of; None
            where unknown, which lifts the budget.
    """

    step: int
    rewards: tuple[float, ...]
    rate: float
    trained: int | None = None

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
        return fallen(measured, max(2, len(measured) // 3), 2) if len(measured) >= 5 else 0.0

    @property
    def falls(self) -> bool:
        """Whether the last third of the window earned less than its first third."""
        measured = known(self.rewards)
        part = max(1, len(measured) // 3)
        return len(measured) > 1 and sum(measured[-part:]) < sum(measured[:part])


def known(rewards: Sequence[float]) -> list[float]:
    """Those of the rewards that were measured."""
    return [reward for reward in rewards if not math.isnan(reward)]


def fallen(rewards: Sequence[float], first: int, last: int) -> float:
    """How sure it is that the last steps earned less than the first ones, about on the scale of a standard normal.

    Of white noise it is beyond 3.3 in .002 and beyond 4 in .0003 of windows, three and ten times as often as a normal
    variable would be: a median of few differences is a rough measure of noise. The noise of a step is taken from the
    differences between neighbours, which hardly see a trend, and from their median, which hardly sees a collapse; a
    third of their root mean square is its floor.

    Args:
        rewards: of each step, in order, at least three.
        first, last: how many are compared at either end.
    """
    changes = [abs(a - b) / math.sqrt(2) for a, b in itertools.pairwise(rewards)]
    noise = max(statistics.median(changes) / _MEDIAN, math.hypot(*changes) / math.sqrt(len(changes)) / 3)
    error = noise * math.sqrt(1 / first + 1 / last)
    lost = sum(rewards[:first]) / first - sum(rewards[-last:]) / last
    t = lost / error if error else math.copysign(math.inf, lost) if lost else 0.0
    return normal_of_t(t, len(rewards) - 2)
