"""A method of the registry as a policy: fitted on the run's own checkpoints, alpha searched or given."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

from nextrl.engines.candidate_scores import Candidate
from nextrl.engines.history import DiskHistory
from nextrl.engines.live_adapter import LiveAdapter, leap_into
from nextrl.engines.live_weights import along
from nextrl.engines.policies.base import LeapingView, LeapsOnly, agreed
from nextrl.engines.policies.forecast import Forecast
from nextrl.errors import InputError
from nextrl.extrapolators import check_alpha, get, tags_of
from nextrl.extrapolators.alphas import ALPHAS
from nextrl.judge.acceptance import Acceptance
from nextrl.judge.decision import Decision, searched, stay
from nextrl.judge.paired_search import Score
from nextrl.judge.window import Window
from nextrl.leaps.leap import DEFAULT_HORIZON, Leap, leap
from nextrl.say import say
from nextrl.trajectory.trajectory import Trajectory

log = logging.getLogger(__name__)

PATIENCE = 8  # most windows without a search after searches in which staying put won

SEARCHED = 0.1
"""Share of the completions trained on that searches may take, where a user has set neither their steps nor prompts."""


class AtSteps(LeapsOnly):
    """A method of the registry, fitted on the run's own checkpoints: at named steps, or at the end of every window.

    It never changes the learning rate: what a method says about the path says nothing about the rate (docs/auto.md).

    Args:
        method: an extrapolator's name.
        horizon: optimizer steps ahead that alpha = 1 stands for.
        alpha: take this one, unseen; None searches `alphas` and staying put on held-out prompts.
        alphas: candidates of a search; None for `ALPHAS`, or, where the method has an alpha of its own (`next-paper`:
            1.5), that one unseen.
        at: leap after these steps only; None at the end of every window, as soon as the horizon allows, or, where the
            method has a step of its own (`next-paper`: 150), there, once.
        every: optimizer steps per window; None ends windows at `at` alone. Nothing can be taken back then, and a method
            that cannot be fitted there stops the run.
        acceptance: how a candidate is accepted.
        share: most completions of searches, as a share of those that the run has been trained on; None for no bound,
            and there is none where the steps are named.
        disk: fit on the checkpoints there; None fits on one checkpoint per window, kept in memory.
        params: the method's own parameters.
        seed: of methods that draw random numbers.

    Raises:
        InputError: unknown method, a horizon below 1, an alpha out of range, neither `at` nor `every`.
    """

    fall_errors = 2.5
    """Standard errors by which the mean reward must have fallen after a leap for it to be taken back."""

    def __init__(
        self,
        method: str,
        horizon: int = DEFAULT_HORIZON,
        *,
        alpha: float | None = None,
        alphas: Sequence[float] | None = None,
        at: Sequence[int] | None = None,
        every: int | None = 10,
        acceptance: Acceptance | None = None,
        share: float | None = None,
        disk: DiskHistory | None = None,
        params: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        if horizon < 1:
            raise InputError(f"the horizon must be at least 1 step, not {horizon}")
        tags = tags_of(get(method, **(params or {})))
        own = at is None and tags.at is not None
        at = tags.at if at is None else at
        if every is None and at is None:
            raise InputError("a named method needs at= (steps) or every= (steps per window)")
        self._learns_accuracy = tags.needs_accuracy
        self.method: str = method
        self._horizon, self._at = horizon, None if at is None else frozenset(at)
        if alpha is None and alphas is None:
            alpha = tags.alpha
        self._alpha = None if alpha is None else check_alpha(alpha)
        self._alphas = tuple(check_alpha(a) for a in (ALPHAS if alphas is None else alphas))
        self._params = dict(params or {})
        self._windows, self.every = every is not None, every or 1
        self.searches, self.keeps_history = self._alpha is None, disk is None
        self._given, self.acceptance = acceptance or Acceptance(), acceptance or Acceptance()
        self._share, self._disk, self._seed = share if self._at is None else None, disk, seed
        self._fruitless = self._wait = 0
        self._group = 1
        self._fitted: Leap | None = None
        self._forecast = Forecast(
            method, self._params, horizon, at=self._at, own_step=own, every=self.every, windows=self._windows,
            on_disk=disk is not None, searches=self.searches, share=self._share,
        )  # fmt: skip

    @property
    def steps_of_one(self) -> int:
        """The horizon."""
        return self._horizon

    def begin(self, rows: int) -> None:
        """Forget earlier searches and leaps."""
        self.acceptance = self._given.within(rows) if self.searches else self._given
        self._fruitless = self._wait = 0
        if self._disk is not None:
            self._disk.begin()

    def refuse_impossible(self, begins: int, ends: int, keep: int) -> None:
        """See `Forecast`."""
        self._forecast.refuse_impossible(begins, ends, keep)

    def announced(self, steps: int, per_step: int, group: int) -> str | None:
        """See `Forecast`."""
        self._group = group
        parts = (self._forecast.announced(steps, per_step, self._price(group)), self._too_few(group))
        return "; ".join(part for part in parts if part) or None

    def _too_few(self, group: int) -> str | None:
        """What is said where a search sees so few prompts that nothing could be accepted; None where it can be."""
        rule, distinct = self.acceptance, self.acceptance.prompts // group
        if not self.searches or not 2 <= distinct < (fewest := rule.fewest(self._tried)):
            return None
        return (
            f"a search of {rule.prompts} completions in groups of {group} sees {distinct} prompts, on which no leap "
            f"can be accepted: give LeapCallback(prompts={fewest * group}) or more"
        )

    def never_searches(self, steps: int, per_step: int, group: int) -> bool:
        """See `Forecast`."""
        return self._forecast.never_searches(steps, per_step, self._price(group))

    def _price(self, group: int) -> int:
        """Completions that one search takes at most."""
        return self.acceptance.most(self._tried, group)

    @property
    def _tried(self) -> int:
        """Candidates of a search beside staying put."""
        return len(set(self._alphas) - {0.0})

    def ends_window(self, window: Window, began: int, fresh: bool) -> bool:
        """Every `every` steps, and at the named ones whatever the window's length."""
        return (self._windows and window.step % self.every == 0) or self._named(window.step)

    def waits_for_checkpoint(self, step: int) -> bool:
        """Where the method reads checkpoints from disk."""
        return self._disk is not None and self._named(step)

    def _named(self, step: int) -> bool:
        return self._at is not None and step in self._at

    def decide(self, view: LeapingView) -> tuple[Decision, Candidate]:
        """Fit on the checkpoints since the last leap; then the alpha given, or a search."""
        step, nothing = view.window.step, partial(along, view.start, view.end)
        adapter = cast(LiveAdapter, view.adapter)  # `LeapCallback` hands a named method nothing else
        if self._disk is None:
            view.history.add(step, view.end, view.window.reward)
        if because := self._resting(view):
            return stay(f"{self.method}: {because}"), nothing
        began = time.perf_counter()
        try:
            fitted = self._fit(view, adapter)
        except InputError as error:
            if not self._windows:  # The leap is what such a run is for: without it, it would be another run.
                raise
            # Found out in the middle of a run: an adapter that did not move is no reason to throw the run away.
            if self._at is not None:
                say(log, "no leap: %s", error, step=step)
            return replace(stay(f"{self.method}: {error}"), horizon=self._horizon), nothing
        seconds = time.perf_counter() - began
        self._fitted, candidate = fitted, partial(leap_into, adapter, fitted)
        decision = agreed(view.ranks, self, self._choose, view.score(candidate))
        lost = replace(fitted, alpha=decision.alpha).discarded if decision.alpha else 0.0
        return replace(decision, horizon=self._horizon, fit_seconds=seconds, discarded=float(lost)), candidate

    def _resting(self, view: LeapingView) -> str | None:
        """Why nothing is tried after this step; None where something is."""
        if self._at is not None:
            return None if view.window.step in self._at else "no leap is due"
        if view.steps_left < self.every:  # no window will follow that could show what the leap was worth
            return f"less than a window of the run is left: no {'search' if self.searches else 'leap'}"
        if self.searches and (because := self._not_worth_a_search(view)):
            return because
        if self._wait:
            self._wait -= 1
            return "the last searches stayed put: waiting"
        return None

    def _not_worth_a_search(self, view: LeapingView) -> str | None:
        if view.decayed:
            return "the schedule has brought the rate down to nothing: no search"
        trained = view.window.trained
        if (
            self._share is not None
            and trained is not None
            and view.searched + self._price(self._group) > self._share * trained
        ):
            return f"searches have had their {self._share:.0%} of the completions: waiting"
        return None

    def _fit(self, view: LeapingView, adapter: LiveAdapter) -> Leap:
        traj: Trajectory
        if self._disk is not None:
            view.ranks.wait()  # process 0 has only just written the last checkpoint
            traj, accuracy = self._disk.trajectory(view.window.step), None
        else:
            traj, accuracy = view.history.trajectory(adapter), view.history.accuracy()
        params: dict[str, Any] = {"accuracy": accuracy} if self._learns_accuracy and accuracy else {}
        fitted = leap(traj, self.method, self._horizon, seed=self._seed, **{**params, **self._params})
        held = adapter.frozen()
        # Files name a module as its base model does, PEFT's live model with what wraps that before it.
        named = {m: held[name] for m in traj.modules for name in held if f".{name}".endswith(f".{m}")}
        return replace(fitted, frozen=named)

    def _choose(self, score: Score) -> Decision:
        if self._alpha is not None:
            return replace(stay(f"{self.method}: alpha {self._alpha:g} taken unseen"), alpha=self._alpha)
        alpha, scores = self.acceptance.choose(score, self._alphas)
        self._fruitless = 0 if alpha else self._fruitless + 1
        self._wait = 0 if alpha else min(PATIENCE, 2 ** (self._fruitless - 1))
        return searched(self.method, alpha, scores)

    def moved(self, step: int, alpha: float) -> None:
        """Have the next leap's checkpoints begin here, with the adapter that this one left."""
        if self._disk is not None:
            self._disk.moved(step, replace(self._fitted, alpha=alpha) if self._fitted and alpha else None)

    def state(self) -> dict[str, Any]:
        """What earlier searches and leaps left."""
        own = {"fruitless": self._fruitless, "wait": self._wait}
        return own if self._disk is None else {**own, "disk": self._disk.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the memory of `state()`."""
        self._fruitless, self._wait = state["fruitless"], state["wait"]
        if self._disk is not None:
            self._disk.restore(state["disk"])
