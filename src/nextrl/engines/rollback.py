"""Taking a leap back: what a run was before it, and whether the training reward says it should be so again.

Held-out prompts accept a leap; the next window of training can still show that it was none. A rollback costs no
completions: it restores the adapter, the learning rate and Adam's moments as they were, and the window that showed it
is lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nextrl.engines.point import Point
from nextrl.judge.few_samples import normal_of_t
from nextrl.judge.window import ROUNDING, Window


@dataclass
class Snapshot:
    """The run before a leap.

    Attributes:
        point: where the leap was made.
        alpha: what it was.
        steps: optimizer steps that it claimed to save.
        factor: product of all changes of the learning rate until then.
        reward, variance: mean training reward of the window before, and its squared standard error.
        measured: steps of that window whose reward was measured.
    """

    point: Point
    alpha: float
    steps: float
    factor: float
    reward: float
    variance: float
    measured: int

    def fell(self, window: Window, errors: float) -> bool:
        """Whether the window after the leap earned less than the one before it, past noise, in whatever unit.

        The noise of a step is taken to be the same in both windows (Student's test), so that one measured step on
        either side can be compared with several on the other. One against one proves nothing.

        Args:
            window: the first whole window after the leap.
            errors: standard errors of the difference that the fall must exceed, on the scale of a standard normal.
        """
        before, after = self.measured, window.measured
        lost, degrees = self.reward - window.reward, before + after - 2
        # NaN (nothing measured) compares as False.
        if degrees < 1 or not lost > ROUNDING * abs(self.reward):
            return False
        squares = _squares(self.variance, before) + _squares(window.variance, after)
        error = math.sqrt(squares / degrees * (1 / before + 1 / after))
        return normal_of_t(lost / error if error else math.inf, degrees) > errors


def _squares(variance: float, count: int) -> float:
    """Sum of squared deviations of so many steps, from the squared standard error of their mean."""
    return variance * count * (count - 1) if count > 1 else 0.0
