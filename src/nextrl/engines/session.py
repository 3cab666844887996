"""One training run under leaps or `auto`: its windows from beginning to end, and the account of what they cost.

`Session` lives from the first step of a run to its last. At the end of a window it takes the last leap back or has the
policy decide, carries the decision out, and writes it down. The policy says when windows end; what stands in the
trainer (TRL's callback, verl's `LeapTrainer`) says which event of the trainer that is.

A named method is asked at a window's end. `auto` is asked one step later, when the rollouts that were sampled at the
window's end are there: the window ended where that step began.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from nextrl.engines import apply_leap
from nextrl.engines.candidate_scores import Candidate, CandidateScores, Row
from nextrl.engines.decision_log import Costs
from nextrl.engines.history import KEPT
from nextrl.engines.live_weights import State, all_finite
from nextrl.engines.memory import Memory
from nextrl.engines.point import Point
from nextrl.engines.policies import Policy, View
from nextrl.engines.rollback import Snapshot
from nextrl.engines.run_protocol import Run
from nextrl.engines.run_rate import RunRate
from nextrl.engines.step_divergence import StepDivergence
from nextrl.errors import InputError
from nextrl.judge.decision import Decision, DecisionRecord
from nextrl.judge.guard import Guard
from nextrl.judge.paired_search import Score
from nextrl.judge.window import Window
from nextrl.say import say

log = logging.getLogger(__name__)

_DECAYED = 0.01  # share of the schedule's height below which training hardly moves the weights any more
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


class Session:
    """The windows of one run.

    Args:
        run: the trainer and what belongs to it.
        policy: what decides.
        guard: what a leap forward must not do.
        rows: held-out rows that candidates are scored on.
        step: where the run begins, or goes on.
        adapt_lr, leaps, rollback, keep, seed, on_leap: see `LeapCallback`.

    Raises:
        InputError: the policy finds nothing to do in a run of that length.

    Attributes:
        memory: what lies in the trainer's checkpoints.
        never_searches: see `Policy.never_searches`.
        decisions, costs: see `LeapCallback`.
    """

    def __init__(
        self,
        run: Run,
        policy: Policy,
        guard: Guard,
        rows: Sequence[Row],
        step: int,
        *,
        adapt_lr: bool = True,
        leaps: bool = True,
        rollback: bool = True,
        keep: int = KEPT,
        seed: int = 0,
        on_leap: Callable[[int], None] | None = None,
    ) -> None:
        self.run, self.policy, self.rows = run, policy, rows
        self._rate, self._divergence = RunRate(run, policy, adapt_lr), StepDivergence(run)
        self._leaps, self._rollback = leaps, rollback
        self._keep, self._seed, self._on_leap = keep, seed, on_leap
        policy.refuse_impossible(0, run.max_steps, keep)
        policy.begin(len(rows))
        ahead = run.max_steps - step, run.completions_per_step, run.group
        said, self.never_searches = policy.announced(*ahead), policy.never_searches(*ahead)
        if said and run.ranks.leader:
            say(log, "%s", said)
        self.scores = CandidateScores(run.adapter, run.tools.rollouts, guard)
        self.decisions: list[DecisionRecord] = []
        self.costs = Costs()
        self.memory = Memory(self._here(step))
        if policy.undoes:
            self.memory.origin = self.memory.start
        self.memory.history.most = keep
        self._watched: _Beginning | None = None
        self._broken = 0  # steps in a row that left NaN or Inf
        self._begin_history(step)

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
        if step < self.run.max_steps and not self.policy.waits_for_checkpoint(step):
            self.policy.refuse_impossible(step, self.run.max_steps, self._keep)

    def restore(self, memory: Memory, state: dict[str, Any], step: int) -> None:
        """Take up the memory and the `state()` of the checkpoint of this step.

        Raises:
            InputError: it is another policy's, and see `begins_late`.
        """
        here, self.memory = self.memory.origin, memory
        self.memory.history.most = self._keep
        if self.knows(state):
            self.policy.restore(state["policy"])
        else:  # saved under a policy of another kind, which remembered other things
            self.begins_late(step)
            if self.policy.undoes:  # what is to be taken back is remembered with its moments
                self._begin_window(step)
            self._begin_history(step)
            self.memory.origin = here
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
        run, policy = self.run, self.policy
        self._rate.leave_to_others(step + 1, self.memory)
        self._rate.leave_to_schedule(step + 1, self.memory)
        self._rate.cool(self.memory, step + 1)
        self.memory.rate = max(self.memory.rate, run.rate)
        share = self._rate.share_ahead(step)
        window = self._window(step, self.memory.rewards)
        ends = policy.undoes and policy.ends_window(window, self.memory.start.step, run.fresh_next)
        self._watched = None
        watched = ends or self._rate.checks(step + 1)
        state = run.adapter.read() if watched or self._rate.waits else {}
        self._rate.step_begins(state)
        if watched:
            point = Point(state, apply_leap.moments_of(run), step)
            self._watched = _Beginning(point, run.rate, share, ends)
            run.tools.fresh.listen(point.moments)

    def weights_updated(self, step: int) -> None:
        """The optimizer has taken the step after `step`, and the schedule has not followed yet."""
        self._rate.leave_to_others(step + 1, self.memory)

    @property
    def cooled(self) -> float:
        """Share of the rate that the end of the run left the latest step; 1.0 before that."""
        return self._rate.cooled

    def train_ended(self) -> None:
        """Stop listening, and give back what a step that was cut off took of the rate."""
        self.run.tools.fresh.stop()
        self._rate.give_back(self.memory)

    def step_ended(self, step: int) -> None:
        """Note a step's reward, check that a leap was delivered, and end the window where one ends.

        Raises:
            InputError: one step after the other turns the weights to NaN or Inf, or one does that cannot be taken back.
        """
        self.run.tools.fresh.stop()
        self._rate.leave_to_others(step, self.memory)
        rewards = self.run.tools.rewards
        reward = rewards.new()
        # A mean that several steps were trained on is one measurement, not several.
        self.memory.rewards.append(reward if rewards.sampled else math.nan)
        self.run.check_delivery()
        self._rate.step_ended(step, self.memory)
        broken = self.policy.undoes and self._leaps and not self._finite()
        self._broken = self._broken + 1 if broken else 0
        if broken:
            self._mend(step)
        elif self._watched is not None:
            self._judge(step, self._watched)
        elif not self.policy.undoes:
            window = self._window(step, self.memory.rewards)
            if self.policy.ends_window(window, self.memory.start.step, True):
                self._end_window(window)
        self._rate.give_back(self.memory)

    def _finite(self) -> bool:
        """Whether the step left numbers in what it trained. Where it did not, nothing could be sampled again."""
        adapter, beside = self.run.adapter.finite(), all_finite(self.run.beside)
        found: bool = self.run.ranks.tell(adapter and beside)
        return found

    def _mend(self, step: int) -> None:
        """Take a step to NaN or Inf back: it alone where its beginning is remembered, else the window."""
        began, kept, before = time.perf_counter(), self.memory, self._watched
        if not self.run.whole:
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
        view = self._view(self._window(step - 1, kept.rewards), before.point)
        self._carry_out(decision, view, before, step, began)
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
        view = self._view(self._window(step - 1, self.memory.rewards), before.point)
        decision = self.policy.decide_step(view, step, before.share) if self._rate.checks(step) else None
        if decision is not None:
            self._carry_out(decision, view, before, step, began)
        elif before.ends_window:
            decision, _ = self.policy.decide(view)
            self._carry_out(decision, view, before, step, began)
        else:
            self.costs.search_seconds += time.perf_counter() - began
        self._forget_beginning()

    def _forget_beginning(self) -> None:
        if not (self._rate.adapts and self.policy.may_begin_again):
            self.memory.origin = None

    def _carry_out(self, decision: Decision, view: View, before: _Beginning, step: int, began: float) -> None:
        """Take back what the decision says, scale the rate, and begin the next window."""
        acted = self._allowed(decision)
        # A run that begins again has a fresh optimizer, whose steps compare with nothing before.
        if acted.rate_factor != 1.0 and acted.back != "run":
            self._rate.changes(before.point.state, before.rate)
        if acted.back == "step":
            apply_leap.go_back(self.run, self.memory, acted, before.point)
        elif acted.back == "window":
            apply_leap.go_back(self.run, self.memory, acted, self.memory.start)
        elif acted.back == "run":
            assert self.memory.origin is not None, "allowed only where it is there"
            apply_leap.go_back(self.run, self.memory, acted, self.memory.origin)
        else:
            apply_leap.scale_rate(self.run, self.memory, acted.rate_factor)
        tiled = acted.rate_factor == 1.0 and not acted.back
        self._charge(acted, view.window.step)
        latest = self.memory.rewards[-1]
        window = replace(view.window, step=step)
        self._close(window, acted, began, moved_by=0.0 if acted.back else None)
        if tiled:  # the next window begins where this one ended, before the step just taken
            self.memory.start, self.memory.rewards = before.point, [latest]

    def _charge(self, decision: Decision, step: int) -> None:
        """Count the steps that are lost with what is taken back: the one just taken, and those up to `step`."""
        kept = self.memory
        if decision.back == "run" and kept.origin is not None:  # whatever was lost before is part of it
            self.costs.leapt_steps = -(step - kept.origin.step + 1)
        elif decision.back:
            self.costs.leapt_steps -= 1 if decision.back == "step" else step - kept.start.step + 1

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

    def _end_window(self, window: Window) -> None:
        """Take the last leap back, or have the policy decide; now, or once the checkpoint is there."""
        step = window.step
        if self.memory.partial:
            self._begin_window(step)
            self._begin_history(step)
            return
        began, end = time.perf_counter(), self.run.adapter.read()
        before, self.memory.snapshot = self.memory.snapshot, None
        fell = before is not None and self.run.ranks.once(
            partial(before.fell, window, self.policy.fall_errors)
        )
        if before is not None and fell:
            self._take_back(before, window, began)
        elif self.policy.waits_for_checkpoint(step):
            self.memory.waiting = True
        else:
            self._decide(window, end, began)

    def checkpoint_is_there(self, step: int) -> None:
        """Decide what waited for the checkpoint of this step; nothing where nothing did."""
        if self.memory.waiting:
            began, self.memory.waiting, end = time.perf_counter(), False, self.run.adapter.read()
            decision = self._decide(self._window(step, self.memory.rewards), end, began)
            if decision.alpha and self._on_leap is not None:
                self._on_leap(step)

    def _window(self, step: int, rewards: Sequence[float]) -> Window:
        """What the window shows for free."""
        return Window(
            step=step,
            rewards=tuple(rewards),
            rate=self.memory.rate,
            trained=step * self.run.completions_per_step,
            steps=self.run.max_steps,
        )

    def _view(self, window: Window, end: Point) -> View:
        kept, run = self.memory, self.run
        return View(
            window=window,
            start=kept.start.state,
            end=end.state,
            history=kept.history,
            adapter=run.adapter,
            ranks=run.ranks,
            score=partial(self._scorer, end.state, window.step),
            look=partial(run.tools.fresh.gain, end.state),
            moved=partial(self._divergence.of, end),
            steps_left=run.max_steps - window.step,
            decayed=run.share < _DECAYED and (run.rate < kept.rate or not run.rate),
            searched=self.costs.search_completions,
        )

    def _decide(self, window: Window, end: State, began: float) -> Decision:
        """Ask the policy, and do what it says."""
        kept = self.memory
        decision, candidate = self.policy.decide(self._view(window, Point(end, [], window.step)))
        if decision.completions:
            kept.offset += self.policy.acceptance.prompts
        acted = self._allowed(decision)
        steps = acted.alpha * self.policy.steps_of_one
        apply_leap.carry_out(self.run, kept, acted, candidate, window, steps, self._rollback)
        self.costs.leapt_steps += steps
        self.costs.fit_seconds += decision.fit_seconds
        self._close(window, acted, began, moved_by=acted.alpha or None)
        return acted

    def _take_back(self, before: Snapshot, window: Window, began: float) -> None:
        decision = apply_leap.take_back(self.run, self.memory, before, window)
        self.costs.leapt_steps -= before.steps + window.step - before.point.step
        self._close(window, decision, began, moved_by=0.0, taken_back=before.point.step)

    def _scorer(self, end: State, step: int, candidate: Candidate) -> Score:
        offset, most = self.memory.offset, self.policy.acceptance.prompts

        def rows(start: int, stop: int) -> list[Row]:
            return [self.rows[(offset + i) % len(self.rows)] for i in range(start, min(stop, most))]

        return self.scores.scorer(candidate, end, rows, self._seed + step)

    def _close(
        self,
        window: Window,
        decision: Decision,
        began: float,
        *,
        moved_by: float | None,
        taken_back: int | None = None,
    ) -> None:
        """Begin the next window, and write down what was decided at the end of this one.

        Args:
            began: when the clock was started for it.
            moved_by: alpha of a leap, 0.0 where one was taken back, None where the adapter was not moved.
            taken_back: the step of the leap that was.
        """
        run, costs = self.run, self.costs
        if moved_by is not None:
            self.policy.moved(window.step, moved_by)
            self._begin_history(window.step)
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
            **({"divergences": self.scores.divergences} if decision.completions else {}),
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
        """Where the run stands, as the beginning of a window; with moments where a window may be undone."""
        state, undoes = self.run.adapter.read(), self.policy.undoes
        return Point(state, apply_leap.moments_of(self.run) if undoes else [], step)

    def _begin_history(self, step: int) -> None:
        if self.policy.keeps_history:
            self.memory.history.begin(step, self.run.adapter.read())
