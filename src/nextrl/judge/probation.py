"""Probation: whether the learning rate of a run whose first step went far may stay. Rewards in, a verdict out."""

from __future__ import annotations

from dataclasses import dataclass, field

from nextrl.judge.window import Window, counted, fallen, known

SHORT = 60
"""Steps that are to be left of a run for it to begin again because its reward has not risen."""

_LENGTH, _FEW = 25, 5
"""Rewards after which the verdict falls, and the first of them that the last ones are compared with."""

_SOON, _LOST = 6, 3.3
"""Rewards after which all may be lost, and the standard errors by which the reward must have fallen then."""

_ENDS = 2, 3
"""Of these rewards the first ones and the last ones, which are compared."""


@dataclass
class Probation:
    """A run whose first step went far, until its reward has spoken.

    Attributes:
        rewards: of each step since the run began, up to the window under way; of a warm-up, the first few.
        lenient: whether a reward that has not risen is let pass, since too few steps are left to begin again.
    """

    rewards: list[float] = field(default_factory=list)
    lenient: bool = False

    @property
    def new(self) -> bool:
        """Whether no window has ended yet."""
        return not self.rewards

    def lost(self, window: Window) -> bool:
        """Whether the reward of the window under way is so far below the run's first that waiting has no use.

        A fall that single completions may have made is waited with: the verdict sees whether it was one.
        """
        seen = self._seen(window)
        enough = len(window.rewards) > 1 and len(seen) >= _SOON
        return enough and min(fallen(seen, *_ENDS), counted(seen, *_ENDS)) > _LOST

    def warms_up(self, window: Window) -> None:
        """Take note of a window that ended in a warm-up: the reward is to rise above what it was at the beginning."""
        self._take(window)
        del self.rewards[_FEW:]

    def verdict(self, window: Window, rise: float) -> bool | None:
        """Whether the rate may stay, at the end of a window; None where that is still open.

        Args:
            rise: standard errors by which the reward must have risen.
        """
        if self.lost(window):
            return False
        seen = self._seen(window)
        if len(seen) < _LENGTH:
            self._take(window)
            return None
        return self.lenient or fallen(seen, _FEW, 2 * _FEW) <= -rise

    def _seen(self, window: Window) -> list[float]:
        return [*self.rewards, *known(window.rewards)]

    def _take(self, window: Window) -> None:
        self.rewards += known(window.rewards[:-1])  # the next window begins with the last one
