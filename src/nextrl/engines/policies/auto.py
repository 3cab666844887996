"""`auto` as a policy: the controller decides by what training samples anyway; no prompt is held back for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from nextrl.engines.candidate_scores import Candidate
from nextrl.engines.policies.base import FEW, MOST, View, agreed
from nextrl.judge.acceptance import Acceptance
from nextrl.judge.controller import Controller
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.decision import Decision
from nextrl.judge.fresh_batch import BatchGain
from nextrl.judge.window import Window


class Auto:
    """The controller of `auto` as a policy.

    Args:
        config: the controller's dials.
        controller: makes the controller (for tests and studies that have their own).

    Attributes:
        controller: the controller of the run under way, or of the last one.
    """

    def __init__(
        self,
        config: ControllerConfig | None = None,
        controller: Callable[[ControllerConfig], Controller] = Controller,
    ) -> None:
        self.method, self.searches, self.keeps_history, self.undoes = "auto", False, False, True
        self._config, self._make = config or ControllerConfig(), controller
        self.controller = controller(self._config)
        self.every, self.acceptance = self._config.every, Acceptance()
        self.fall_errors = 0.0  # it takes no leap back: none is made

    @property
    def steps_of_one(self) -> int:
        """A window."""
        return self.every

    @property
    def may_begin_again(self) -> bool:
        """Whether the controller may."""
        return self.controller.may_begin_again

    def begin(self, rows: int) -> None:
        """A new controller."""
        self.controller = self._make(self._config)

    def refuse_impossible(self, begins: int, ends: int, keep: int) -> None:
        """Nothing is impossible."""

    def announced(self, steps: int, per_step: int, group: int) -> None:
        """Nothing: it samples nothing."""

    def never_searches(self, steps: int, per_step: int, group: int) -> bool:
        """It never does, and what a trainer holds back for it (an SFTTrainer's texts) it looks at."""
        return False

    def checks(self, step: int) -> bool:
        """Where the controller does."""
        return self.controller.checks(step)

    def ends_window(self, window: Window, began: int, fresh: bool) -> bool:
        """After as many steps as the controller wants, or on a fall of the reward, where fresh rollouts follow."""
        return fresh and (window.step - began >= self.controller.length or self.controller.alarmed(window))

    def cooled(self, step: int, steps: int) -> float:
        """The controller's."""
        return self.controller.cooled(step, steps)

    def waits_for_checkpoint(self, step: int) -> bool:
        """Never: what is needed is in memory."""
        return False

    def decide_step(self, view: View, step: int, share: float) -> Decision | None:
        """The controller's decision on the step just taken."""
        settled = self.controller.settled
        moved = view.moved(FEW if settled else MOST, not settled)
        return agreed(
            view.ranks,
            self,
            partial(
                self.controller.step,
                step,
                moved.nats,
                share,
                hidden=moved.hidden,
                left=view.steps_left,
                rounding=moved.rounding,
            ),
        )

    def broken(self, step: int, again: bool) -> Decision:
        """The controller's decision on a step to NaN."""
        return self.controller.broken(step, again)

    def decide(self, view: View) -> tuple[Decision, Candidate]:
        """The controller's decision on the window."""
        candidate: Candidate = partial(view.adapter.along, view.start, view.end)

        def look(alpha: float) -> BatchGain | None:
            return view.look(candidate(alpha))

        return agreed(view.ranks, self, partial(self.controller.window, view.window), look), candidate

    def moved(self, step: int, alpha: float) -> None:
        """Nothing: a window never spans a leap, which the callback sees to."""

    def state(self) -> dict[str, Any]:
        """The controller's."""
        return self.controller.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the memory of `state()`."""
        self.controller.restore(state)
