"""A run under a named method: at a window's end it leaps, or the leap before it is taken back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from nextrl.engines import apply_leap
from nextrl.engines.candidate_scores import Candidate, CandidateScores, Row
from nextrl.engines.history import KEPT
from nextrl.engines.live_weights import State
from nextrl.engines.memory import Memory
from nextrl.engines.policies import LeapingPolicy, LeapingView
from nextrl.engines.rollback import Snapshot
from nextrl.engines.run_protocol import Run
from nextrl.engines.run_rate import RunRate
from nextrl.engines.session import Session
from nextrl.judge.decision import Decision
from nextrl.judge.guard import Guard
from nextrl.judge.paired_search import Score
from nextrl.judge.window import Window
from nextrl.say import say

log = logging.getLogger(__name__)

_DECAYED = 0.01  # share of the schedule's height below which training hardly moves the weights any more


class LeapSession(Session):
    """The windows of one run under a policy that leaps.

    Args:
        guard: what a leap forward must not do.
        rows: held-out rows that candidates are scored on.
        adapt_lr, leaps, rollback, keep, seed, on_leap: see `LeapCallback`.

    Raises:
        InputError: the policy finds nothing to do in a run of that length.
    """

    policy: LeapingPolicy

    def __init__(
        self,
        run: Run,
        policy: LeapingPolicy,
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
        self.rows, self._rollback = rows, rollback
        self._keep, self._seed, self._on_leap = keep, seed, on_leap
        policy.refuse_impossible(0, run.max_steps, keep)
        policy.begin(len(rows))
        ahead = run.max_steps - step, run.completions_per_step, run.group
        said, self.never_searches = policy.announced(*ahead), policy.never_searches(*ahead)
        if said and run.ranks.leader:
            say(log, "%s", said)
        super().__init__(run, policy, step, RunRate(run, None, adapt_lr), leaps)
        self.scores = CandidateScores(run.adapter, run.tools.rollouts, guard)
        self.memory.history.most = keep
        self._begin_history(step)

    def begins_late(self, step: int) -> None:
        """See `Session`."""
        if step < self.run.max_steps and not self.policy.waits_for_checkpoint(step):
            self.policy.refuse_impossible(step, self.run.max_steps, self._keep)

    def without_memory(self, step: int) -> bool:
        """A leap at this very step, from the checkpoint of another run, needs nothing more."""
        kept = self.memory
        kept.waiting = self.policy.waits_for_checkpoint(step)
        if not kept.waiting:
            kept.partial = step % self.policy.every != 0
        return kept.waiting

    def restore(self, memory: Memory, state: dict[str, Any], step: int) -> None:
        """See `Session`."""
        memory.history.most = self._keep
        super().restore(memory, state, step)

    def step_begins(self, step: int) -> None:
        """Note the rate that the step after `step` is taken at."""
        self._settle_rate(step)
        self._rate.step_begins(self.run.adapter.read() if self._rate.waits else {})

    def step_ended(self, step: int) -> None:
        """Note a step's reward, check that a leap was delivered, and end the window where one ends."""
        self._note_step(step)
        self._broken = 0
        window = self._window(step, self.memory.rewards)
        if self.policy.ends_window(window, self.memory.start.step, True):
            self._end_window(window)
        self._rate.give_back(self.memory)

    def checkpoint_is_there(self, step: int) -> None:
        """Decide what waited for the checkpoint of this step; nothing where nothing did."""
        if self.memory.waiting:
            began, self.memory.waiting, end = time.perf_counter(), False, self.run.adapter.read()
            decision = self._decide(self._window(step, self.memory.rewards), end, began)
            if decision.alpha and self._on_leap is not None:
                self._on_leap(step)

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

    def _decide(self, window: Window, end: State, began: float) -> Decision:
        """Ask the policy, and do what it says."""
        kept = self.memory
        decision, candidate = self.policy.decide(self._view(window, end))
        if decision.completions:
            kept.offset += self.policy.acceptance.prompts
        acted = self._allowed(decision)
        steps = acted.alpha * self.policy.steps_of_one
        apply_leap.carry_out(self.run, kept, acted, candidate, window, steps, self._rollback)
        self.costs.leapt_steps += steps
        self.costs.fit_seconds += decision.fit_seconds
        if acted.alpha:
            self._moved(window.step, acted.alpha)
        self._close(window, acted, began, divergences=self.scores.divergences if acted.completions else None)
        return acted

    def _take_back(self, before: Snapshot, window: Window, began: float) -> None:
        decision = apply_leap.take_back(self.run, self.memory, before, window)
        self.costs.leapt_steps -= before.steps + window.step - before.point.step
        self._moved(window.step, 0.0)
        self._close(window, decision, began, taken_back=before.point.step)

    def _moved(self, step: int, alpha: float) -> None:
        """What is fitted next begins here: with a leap of alpha, or (0.0) where one was taken back."""
        self.policy.moved(step, alpha)
        self._begin_history(step)

    def _view(self, window: Window, end: State) -> LeapingView:
        kept, run = self.memory, self.run
        return LeapingView(
            window=window,
            start=kept.start.state,
            end=end,
            adapter=run.adapter,
            ranks=run.ranks,
            steps_left=run.max_steps - window.step,
            history=kept.history,
            score=partial(self._scorer, end, window.step),
            decayed=run.share < _DECAYED and (run.rate < kept.rate or not run.rate),
            searched=self.costs.search_completions,
        )

    def _scorer(self, end: State, step: int, candidate: Candidate) -> Score:
        offset, most = self.memory.offset, self.policy.acceptance.prompts

        def rows(start: int, stop: int) -> list[Row]:
            return [self.rows[(offset + i) % len(self.rows)] for i in range(start, min(stop, most))]

        return self.scores.scorer(candidate, end, rows, self._seed + step)

    def _begin_history(self, step: int) -> None:
        if self.policy.keeps_history:
            self.memory.history.begin(step, self.run.adapter.read())

    def _begin_anew(self, before: Memory, step: int) -> None:
        """The next window is fitted on what comes."""
        self.begins_late(step)
        self._begin_history(step)
        self.memory.origin = None
