"""`auto` as a policy: the controller decides on continuing the window inside the factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from nextrl.engines.candidate_scores import Candidate
from nextrl.engines.live_adapter import along
from nextrl.engines.trl.policies.base import View, agreed
from nextrl.judge.acceptance import Acceptance
from nextrl.judge.controller import Controller
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.decision import Decision


class Auto:
    """The controller of `auto` as a policy.

    Args:
        config: the controller's dials; without its `beta1` the optimizer's own is taken.
        controller: makes the controller (for tests that script one).
    """

    def __init__(
        self,
        config: ControllerConfig | None = None,
        controller: Callable[[ControllerConfig], Controller] = Controller,
    ) -> None:
        self.method, self.searches, self.keeps_history = "auto", True, False
        self._given, self._make = config or ControllerConfig(), controller
        self._use(self._given)

    def _use(self, config: ControllerConfig) -> None:
        self._controller = self._make(config)
        self.every, self.acceptance = config.every, Acceptance(config.stages, config.level)
        self.fall, self.fall_errors = config.fall, config.fall_errors
        # Of a short window the last step is too large a part for the rough divergence to say much.
        self.listens = config.every >= 5

    @property
    def steps_of_one(self) -> int:
        """A window."""
        return self.every

    def begin(self, beta1: float, rows: int) -> None:
        """A new controller, with the optimizer's memory and the stages that the rows allow."""
        config = self._given
        stages = Acceptance(config.stages, config.level).within(rows).stages
        self._use(replace(config, beta1=beta1 if config.beta1 is None else config.beta1, stages=stages))

    def ends_window(self, step: int) -> bool:
        """Every `every` steps."""
        return step % self.every == 0

    def waits_for_checkpoint(self, step: int) -> bool:
        """Never: what is needed is in memory."""
        return False

    def decide(self, view: View) -> tuple[Decision, Candidate]:
        """The controller's decision on continuing the window inside the factors."""
        candidate: Candidate = partial(along, view.start, view.end)
        step = partial(self._controller.step, view.window)
        tools = (view.score(candidate), *view.distances(candidate))
        return agreed(view.ranks, self, step, *tools), candidate

    def moved(self, step: int, alpha: float) -> None:
        """Nothing: a window never spans a leap, which the callback sees to."""

    def state(self) -> dict[str, Any]:
        """The controller's."""
        return self._controller.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the memory of `state()`."""
        self._controller.restore(state)
