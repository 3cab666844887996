"""Whether a run's training reward has fallen: the latest window against the best pair of windows so far."""

from __future__ import annotations

import math
from typing import Any

from nextrl.judge.window import Window

_Mean = tuple[float, float]
"""A mean reward and its squared standard error."""


class RewardFall:
    """Remembers the best pair of windows.

    Pairs, because the best of many noisy windows is mostly luck.

    Args:
        fall: smallest fall that matters; a share of the reward's size where that is above 1.
        errors: standard errors of the difference that a fall must exceed, too.
    """

    def __init__(self, fall: float, errors: float) -> None:
        self._fall, self._errors = fall, errors
        self._latest: _Mean | None = None
        self._best: _Mean | None = None

    def fell(self, window: Window) -> bool:
        """Take note of a window; whether its reward lies below the best pair, past noise and past what matters."""
        if math.isnan(window.reward):
            return False
        before, self._latest = self._latest, (window.reward, window.variance)
        if self._best is not None:
            best, variance = self._best
            noise = self._errors * math.sqrt(window.variance + variance)
            if best - window.reward > max(self._fall * max(1.0, abs(best)), noise):
                return True
        before = before or self._latest
        pair = ((before[0] + window.reward) / 2, (before[1] + window.variance) / 4)
        if self._best is None or pair[0] > self._best[0]:
            self._best = pair
        return False

    def accept(self) -> None:
        """The fall is what the run now is: the next one is measured from here."""
        self._best = self._latest

    def state(self) -> dict[str, Any]:
        """JSON-ready memory."""
        return {"latest": self._latest, "best": self._best}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the memory of `state()`."""
        self._latest, self._best = (
            None if pair is None else (pair[0], pair[1]) for pair in (state["latest"], state["best"])
        )
