"""A run under `auto`: steps and windows are judged by the rollouts sampled after them, and may be taken back.

A step that is to be judged is listened to from its beginning, where the run is remembered (`step_begins`). At its end
(`step_ended`) its own movement and the window that ended where it began are decided on, by what its rollouts say.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

from nextrl.engines import apply_leap
from nextrl.engines.live_weights import all_finite
from nextrl.engines.memory import Memory
from nextrl.engines.point import Point
from nextrl.engines.policies import JudgingPolicy, JudgingView
from nextrl.engines.run_protocol import Run
from nextrl.engines.run_rate import RunRate
from nextrl.engines.session import Session
from nextrl.engines.step_divergence import StepDivergence
from nextrl.errors import InputError
from nextrl.judge.decision import Decision
from nextrl.judge.window import Window

_BROKEN = 5  # steps in a row to NaN that end a run: where the rate is the reason, it has fallen far by then
_LOOK = "Look for a reward or an advantage that is NaN or Inf, or for half precision that overflows"


@dataclass(frozen=True)
class _Beginning:
    """The run where a step began.

    Attributes:
        point: what there is to go back to.
        rate, share: the step's rate, and that as a share of the highest one that the schedule has yet to come to.
        ends_window: whether a window ended here, which the step's rollouts judge.
    """

    point: Point
    rate: float
    share: float
    ends_window: bool


class JudgedSession(Session):
    """The windows of one run under a policy that takes back what did harm; options as those of `LeapCallback`."""

    policy: JudgingPolicy

    def __init__(
        self, run: Run, policy: JudgingPolicy, step: int, *, adapt_lr: bool = True, leaps: bool = True
    ) -> None:
        policy.begin(0)
        super().__init__(run, policy, step, RunRate(run, policy, adapt_lr), leaps)
        self.memory.origin = self.memory.start
        self._divergence = StepDivergence(run)
        self._watched: _Beginning | None = None

    def step_begins(self, step: int) -> None:
        """Note the rate that the step after `step` is taken at, and listen to it where it will be judged."""
        run, share = self.run, self._settle_rate(step)
        window = self._window(step, self.memory.rewards)
        ends = self.policy.ends_window(window, self.memory.start.step, run.fresh_next)
        self._watched = None
        watched = ends or self._checks(step + 1)
        state = run.adapter.read() if watched or self._rate.waits else {}
        self._rate.step_begins(state)
        if watched:
            point = Point(state, apply_leap.moments_of(run), step)
            self._watched = _Beginning(point, run.rate, share, ends)
            run.tools.fresh.listen(point.moments)

    def step_ended(self, step: int) -> None:
        """Take a step to NaN or Inf back, or judge it and the window before it, where it was listened to."""
        self._note_step(step)
        broken = self._leaps and not self._finite()
        self._broken = self._broken + 1 if broken else 0
        if broken:
            self._mend(step)
        elif self._watched is not None:
            self._judge(step, self._watched)
        self._rate.give_back(self.memory)

    def _checks(self, step: int) -> bool:
        """Whether this step is looked at for the sake of the rate: not where that is to stay as it is."""
        return self._rate.adapts and self.policy.checks(step)

    def _finite(self) -> bool:
        """Whether the step left numbers in what it trained. Where it did not, nothing could be sampled again."""
        adapter, beside = self.run.adapter.finite(), all_finite(self.run.beside)
        found: bool = self.run.ranks.tell(adapter and beside)
        return found

    def _mend(self, step: int) -> None:
        """Take a step to NaN or Inf back: it alone where its beginning is remembered, else the window."""
        began, kept, before = time.perf_counter(), self.memory, self._watched
        if not self.run.restorable:
            raise InputError(
                f"step {step} left NaN or Inf in the weights. {_LOOK}. It cannot be taken back, since the optimizer's "
                "state lies in pieces on several devices: go on from a checkpoint"
            )
        decision = self.policy.broken(step, self._broken > 1)
        if decision.back == "run" and not (self._rate.adapts and kept.origin is not None):
            decision = replace(decision, back="step")
        if before is None:
            before = _Beginning(kept.start, self.run.rate, 1.0, False)
            decision = replace(decision, back="window" if decision.back == "step" else decision.back)
        self._carry_out(decision, self._window(step - 1, kept.rewards), before, step, began)
        self._forget_beginning()
        if self._broken == _BROKEN:
            tried = "lower rates did not help" if self._rate.adapts else "the learning rate may be too high"
            raise InputError(
                f"{_BROKEN} steps in a row left NaN or Inf in the weights, and were taken back; {tried}. {_LOOK}"
            )

    def _judge(self, step: int, before: _Beginning) -> None:
        """Decide on the step just taken, and on the window that ended where it began."""
        began = time.perf_counter()
        # The latest reward is that of the weights at which the window ended.
        window = self._window(step - 1, self.memory.rewards)
        view = self._view(window, before.point)
        decision = self.policy.decide_step(view, step, before.share) if self._checks(step) else None
        if decision is None and before.ends_window:
            decision = self.policy.decide(view)
        if decision is not None:
            self._carry_out(decision, window, before, step, began)
        else:
            self.costs.search_seconds += time.perf_counter() - began
        self._forget_beginning()

    def _view(self, window: Window, end: Point) -> JudgingView:
        run = self.run
        return JudgingView(
            window=window,
            start=self.memory.start.state,
            end=end.state,
            adapter=run.adapter,
            ranks=run.ranks,
            steps_left=run.max_steps - window.step,
            look=partial(run.tools.fresh.gain, end.state),
            moved=partial(self._divergence.of, end),
        )

    def _carry_out(
        self, decision: Decision, window: Window, before: _Beginning, step: int, began: float
    ) -> None:
        """Take back what the decision says, scale the rate, and begin the next window."""
        acted, kept = self._allowed(decision), self.memory
        # A run that begins again has a fresh optimizer, whose steps compare with nothing before.
        if acted.rate_factor != 1.0 and acted.back != "run":
            self._rate.changes(before.point.state, before.rate)
        if acted.back == "step":
            apply_leap.go_back(self.run, kept, acted, before.point)
        elif acted.back == "window":
            apply_leap.go_back(self.run, kept, acted, kept.start)
        elif acted.back == "run":
            assert kept.origin is not None, "allowed only where it is there"
            apply_leap.go_back(self.run, kept, acted, kept.origin)
        else:
            apply_leap.scale_rate(self.run, kept, acted.rate_factor)
        self._charge(acted, window.step)
        latest = kept.rewards[-1]
        self._close(replace(window, step=step), acted, began)
        if acted.rate_factor == 1.0 and not acted.back:
            # The next window begins where this one ended, before the step just taken.
            kept.start, kept.rewards = before.point, [latest]

    def _charge(self, decision: Decision, step: int) -> None:
        """Count the steps that are lost with what is taken back: the one just taken, and those up to `step`."""
        kept = self.memory
        if decision.back == "run" and kept.origin is not None:  # whatever was lost before is part of it
            self.costs.leapt_steps = -(step - kept.origin.step + 1)
        elif decision.back:
            self.costs.leapt_steps -= 1 if decision.back == "step" else step - kept.start.step + 1

    def _forget_beginning(self) -> None:
        if not (self._rate.adapts and self.policy.may_begin_again):
            self.memory.origin = None

    def _here(self, step: int) -> Point:
        """With moments, since the window may be taken back."""
        return Point(self.run.adapter.read(), apply_leap.moments_of(self.run), step)

    def _begin_anew(self, before: Memory, step: int) -> None:
        """What is to be taken back is remembered with its moments; a leap that waited is none of this policy's."""
        self._begin_window(step)
        self.memory.origin, self.memory.waiting = before.origin, False
