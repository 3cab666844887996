"""A policy that leaps where it is told to: `trainer.v1.nextrl.leaps={6: 1.5}`. It judges nothing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from nextrl.engines.candidate_scores import Candidate
from nextrl.engines.policies.base import LeapingView, LeapsOnly
from nextrl.engines.verl.options import refuse_never
from nextrl.judge.acceptance import Acceptance
from nextrl.judge.decision import Decision
from nextrl.judge.window import Window


class ForcedLeaps(LeapsOnly):
    """`theta + alpha (theta - theta_start)` after given steps, theta_start being where the run began or leapt last.

    Where a run is resumed without a state of nextrl it begins there; with one of `auto`, where the window began.

    Args:
        leaps: step -> alpha.
    """

    def __init__(self, leaps: Mapping[int, float]) -> None:
        self.method, self.searches, self.keeps_history = "secant", False, False
        self.acceptance, self.fall_errors = Acceptance(), 0.0
        self.leaps, self.every, self.steps_of_one = dict(leaps), 1, 1
        self._last = 0

    def begin(self, rows: int) -> None:
        """From the run's first step."""
        self._last, self.steps_of_one = 0, 1

    def refuse_impossible(self, begins: int, ends: int, keep: int) -> None:
        """See to it that the run comes to one of the given steps.

        Raises:
            InputError: it comes to none.
        """
        refuse_never(self.leaps, begins, ends)

    def ends_window(self, window: Window, began: int, fresh: bool) -> bool:
        """At the given steps."""
        self._last = began  # a resumed run's way begins where the copy that is remembered was made
        return window.step in self.leaps

    def decide(self, view: LeapingView) -> tuple[Decision, Candidate]:
        """The leap that was asked for."""
        step = view.window.step
        self.steps_of_one = step - self._last
        decision = Decision(self.leaps[step], 1.0, "asked for", {}, 0, horizon=self.steps_of_one)
        return decision, partial(view.adapter.along, view.start, view.end)

    def moved(self, step: int, alpha: float) -> None:
        """The next leap counts from here."""
        self._last = step

    def state(self) -> dict[str, Any]:
        """Where the latest leap was."""
        return {"last": self._last}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up `state()`."""
        self._last = state["last"]
