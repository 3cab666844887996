"""One training run under a policy: what both kinds of session have in common, a window and the account of its cost.

A `Session` lives from the first step of a run to its last. A named method is asked at a window's end
(`leap_session.LeapSession`). `auto` is asked one step later, when the rollouts that were sampled at the window's end
are there: the window ended where that step began (`judged_session.JudgedSession`). The policy says when windows end;
what stands in the trainer (TRL's callback, verl's `LeapTrainer`) says which event of the trainer that is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from nextrl.engines.decision_log import Costs
from nextrl.engines.memory import Memory
from nextrl.engines.point import Point
from nextrl.engines.policies import Policy
from nextrl.engines.run_protocol import Run
from nextrl.engines.run_rate import RunRate
from nextrl.judge.decision import Decision, DecisionRecord
from nextrl.judge.window import Window


class Session:
    """The windows of one run.

    Args:
        step: where the run begins, or goes on.
        leaps: see `LeapCallback`.

    Attributes:
        memory: what lies in the trainer's checkpoints.
        never_searches: see `LeapingPolicy.never_searches`.
        decisions, costs: see `LeapCallback`.
    """

    never_searches = False

    def __init__(self, run: Run, policy: Policy, step: int, rate: RunRate, leaps: bool) -> None:
        self.run, self.policy = run, policy
        self._rate, self._leaps = rate, leaps
        self.decisions: list[DecisionRecord] = []
        self.costs = Costs()
        self.memory = Memory(self._here(step))
        self._broken = 0  # steps in a row that left NaN or Inf

    def state(self) -> dict[str, Any]:
        """What belongs into a checkpoint beside `memory`, as JSON-ready values."""
        return {
            "every": self.policy.every,
            "policy": self.policy.state(),
            "latest_reward": self.run.tools.rewards.latest,
            "costs": asdict(self.costs),
            "rate": self._rate.state(),
            "broken": self._broken,
            "decisions": [decision.model_dump(mode="json") for decision in self.decisions],
        }

    def knows(self, state: dict[str, Any]) -> bool:
        """Whether a `state()` is of a policy of this kind."""
        known: bool = state["policy"].keys() == self.policy.state().keys()
        return known

    def begins_late(self, step: int) -> None:
        """See to it that a run that goes on after this step, of which nothing is remembered, is not gone past all.

        Raises:
            InputError: all the steps that the policy was told to act at are over.
        """

    def without_memory(self, step: int) -> bool:
        """Go on after this step, of which nothing is remembered; whether it is decided on all the same."""
        return False

    def restore(self, memory: Memory, state: dict[str, Any], step: int) -> None:
        """Take up the memory and the `state()` of the checkpoint of this step.

        Raises:
            InputError: it is another policy's, and see `begins_late`.
        """
        before, self.memory = self.memory, memory
        if self.knows(state):
            self.policy.restore(state["policy"])
        else:  # saved under a policy of another kind, which remembered other things
            self._begin_anew(before, step)
        self.run.tools.rewards.latest = state["latest_reward"]
        self.go_on(state)

    def go_on(self, state: dict[str, Any]) -> None:
        """Take up what of a `state()` is true under any policy: what was decided and spent, and the schedule."""
        self._rate.restore(state["rate"])
        self._broken = state["broken"]
        self.costs = Costs(**state["costs"])
        self.decisions = [DecisionRecord.model_validate(decision) for decision in state["decisions"]]
        self.run.tools.rollouts.completions = self.costs.search_completions

    def step_begins(self, step: int) -> None:
        """Note the rate that the step after `step` is taken at, and listen to it where the policy will ask about it."""
        raise NotImplementedError

    def weights_updated(self, step: int) -> None:
        """The optimizer has taken the step after `step`, and the schedule has not followed yet."""
        self._rate.leave_to_others(step + 1, self.memory)

    def step_ended(self, step: int) -> None:
        """Note a step's reward, check that a leap was delivered, and end the window where one ends.

        Raises:
            InputError: one step after the other turns the weights to NaN or Inf, or one does that cannot be taken back.
        """
        raise NotImplementedError

    def checkpoint_is_there(self, step: int) -> None:
        """Decide what waited for the checkpoint of this step; nothing where nothing did."""

    def train_ended(self) -> None:
        """Stop listening, and give back what a step that was cut off took of the rate."""
        self.run.tools.fresh.stop()
        self._rate.give_back(self.memory)

    @property
    def cooled(self) -> float:
        """Share of the rate that the end of the run left the latest step; 1.0 before that."""
        return self._rate.cooled

    def _settle_rate(self, step: int) -> float:
        """Bring the rate to what the step after `step` is taken at; what share that is (`RunRate.share_ahead`)."""
        self._rate.leave_to_others(step + 1, self.memory)
        self._rate.leave_to_schedule(step + 1, self.memory)
        self._rate.cool(self.memory, step + 1)
        self.memory.rate = max(self.memory.rate, self.run.rate)
        return self._rate.share_ahead(step)

    def _note_step(self, step: int) -> None:
        """Take down what the step that has ended shows by itself."""
        self.run.tools.fresh.stop()
        self._rate.leave_to_others(step, self.memory)
        rewards = self.run.tools.rewards
        reward = rewards.new()
        # A mean that several steps were trained on is one measurement, not several.
        self.memory.rewards.append(reward if rewards.sampled else math.nan)
        self.run.check_delivery()
        self._rate.step_ended(step, self.memory)

    def _window(self, step: int, rewards: Sequence[float]) -> Window:
        """What the window shows for free."""
        return Window(
            step=step,
            rewards=tuple(rewards),
            rate=self.memory.rate,
            trained=step * self.run.completions_per_step,
            steps=self.run.max_steps,
        )

    def _allowed(self, decision: Decision) -> Decision:
        """What of a decision may be done: `leaps=False` moves no weights, `adapt_lr=False` changes no rate."""
        again = self._rate.adapts and self.memory.origin is not None
        moves = self._leaps and (decision.back != "run" or again)
        stay = [
            name
            for name, asked, may in (
                ("weights", decision.alpha != 0.0 or decision.back != "", self._leaps),
                ("rate", decision.rate_factor != 1.0, self._rate.adapts),
            )
            if asked and not may
        ]
        return replace(
            decision,
            # A log that says "undone" of what was not would be believed.
            reason=f"{decision.reason}; not done: the {' and the '.join(stay)} may not be changed"
            if stay
            else decision.reason,
            alpha=decision.alpha if moves else 0.0,
            back=decision.back if moves else "",
            rate_factor=decision.rate_factor if self._rate.adapts else 1.0,
        )

    def _close(
        self,
        window: Window,
        decision: Decision,
        began: float,
        *,
        divergences: Mapping[float, float] | None = None,
        taken_back: int | None = None,
    ) -> None:
        """Begin the next window, and write down what was decided at the end of this one.

        Args:
            began: when the clock was started for it.
            divergences: alpha -> nats per token by which it left the policy, of a search.
            taken_back: the step of the leap that was.
        """
        run, costs = self.run, self.costs
        self._begin_window(window.step)
        run.tools.rewards.mark()
        costs.search_completions = run.tools.rollouts.completions
        costs.search_seconds += time.perf_counter() - began
        record = DecisionRecord.of(
            decision,
            step=window.step,
            method=self.policy.method,
            learning_rate=run.rate,
            reward=window.reward,
            **({} if divergences is None else {"divergences": divergences}),
            cost_completions=costs.search_completions,
            claimed_steps=costs.claimed_steps(run.completions_per_step),
            lr_factor=self.memory.factor,
            rolled_back=taken_back,
        )
        self.decisions.append(record)
        run.tell(record)

    def _begin_window(self, step: int) -> None:
        kept = self.memory
        kept.start, kept.rewards, kept.rate, kept.partial = self._here(step), [], 0.0, False

    def _here(self, step: int) -> Point:
        """Where the run stands, as the beginning of a window."""
        return Point(self.run.adapter.read(), [], step)

    def _begin_anew(self, before: Memory, step: int) -> None:
        """What was taken up is of another kind of policy.

        Args:
            before: what was remembered of the run here.
        """
        raise NotImplementedError
