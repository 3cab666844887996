"""What will come of a named method in a run, as far as that is known before it begins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nextrl.checkpoints.consistency import common_gap
from nextrl.engines.history import AdapterHistory
from nextrl.errors import InputError
from nextrl.extrapolators import get
from nextrl.extrapolators.base import lacking

_NAMED = 5  # steps that one line names


class Forecast:
    """Which of a method's steps a run comes to, whether there is enough to fit on, and what searches take.

    Args:
        method, params, horizon: see `AtSteps`.
        at: the steps of its leaps; None at the end of every window.
        own_step: whether the method named them, and not a user.
        every: optimizer steps per window.
        windows: whether windows end at all but at `at`.
        on_disk: it is fitted on the trainer's checkpoints, of which nothing is known beforehand.
        searches: whether held-out prompts choose alpha.
        share: see `AtSteps`.
    """

    def __init__(
        self,
        method: str,
        params: Mapping[str, Any],
        horizon: int,
        *,
        at: frozenset[int] | None,
        own_step: bool,
        every: int,
        windows: bool,
        on_disk: bool,
        searches: bool,
        share: float | None,
    ) -> None:
        self._method, self._params, self._horizon = method, params, horizon
        self._at, self._own_step, self._every, self._windows = at, own_step, every, windows
        self._on_disk, self._searches, self._share = on_disk, searches, share
        self._ends: int | None = None
        self._said: str | None = None

    def refuse_impossible(self, begins: int, ends: int, keep: int) -> None:
        """See to it that the run comes to a step that was named for a leap, with enough to fit on; note where it ends.

        Raises:
            InputError: it comes to none of them, or to each with too few checkpoints.
        """
        self._ends, self._said = ends, None
        if self._at is None:
            self._said = self._no_window_will_do(begins, ends, keep)
            return
        due = sorted(step for step in self._at if begins < step <= ends)
        if due:
            if not self._on_disk:
                self._refuse_too_few(due, begins, keep)
            return
        named = ", ".join(map(str, sorted(self._at)))
        if begins < min(self._at, default=begins):
            why, instead = f"this run ends at step {ends}, before step {named}", "train longer"
        else:
            why = f"this run goes on after step {begins}, with no memory of a leap, and does not come to step {named}"
            instead = "leave the callback out"
        raise InputError(
            f"{self._method}: {why}, {self._where}: give steps of the run with at=, or {instead}"
        )

    @property
    def _where(self) -> str:
        """Who named the steps of the leaps."""
        return "where it leaps if nothing else is said" if self._own_step else "which at= names"

    def _refuse_too_few(self, due: Sequence[int], begins: int, keep: int) -> None:
        """A step is not waited for in vain where all is known that the method will have there."""
        kept = self._kept(begins, due[-1], keep)
        wanting = {step: needed for step in due if (needed := self._lacks(kept[step]))}
        if not wanting:
            return
        step, needed = next(iter(wanting.items()))
        short = (
            f"at step {step}, {self._where}, there are {len(kept[step])} checkpoints (every={self._every}, "
            f"keep={keep}), and a horizon of {self._horizon} steps needs {needed}"
        )
        if len(wanting) == len(due):
            instead = "or give at=" if self._own_step else "or leap later"
            raise InputError(f"{self._method}: {short}: change every=, keep= or horizon=, {instead}")
        self._said = f"{self._method}: {short}: no leap is made there"

    def _no_window_will_do(self, begins: int, ends: int, keep: int) -> str | None:
        """Why no window of the run ends with enough to fit on and another one to come; None where one does."""
        last = (ends - self._every) // self._every * self._every
        if self._on_disk:
            return None
        kept = self._kept(begins, last, keep)
        if any(not self._lacks(steps) for steps in kept.values()):
            return None
        return (
            f"{self._method}: this run ends at step {ends}, before there are checkpoints enough (every={self._every}, "
            f"keep={keep}) for a horizon of {self._horizon} steps with a window to follow: no leap will be made"
        )

    def _kept(self, begins: int, last: int, keep: int) -> dict[int, tuple[int, ...]]:
        """Step at which a window ends -> the checkpoints that are in memory there, if nothing leaps before."""
        # Where a run goes on without its memory, the history begins with the next full window.
        first = -(-begins // self._every) * self._every if self._windows else begins
        windows = range(first + self._every, last + 1, self._every) if self._windows else ()
        history, kept = AdapterHistory(most=keep), {}
        history.begin(first, {})
        for step in sorted({*windows, *(step for step in self._at or () if first < step <= last)}):
            history.add(step, {}, math.nan)
            kept[step] = tuple(history.steps)
        # A named step before that window ends has nothing but its own beginning.
        return {step: (step,) for step in self._at or () if begins < step <= first} | kept

    def _lacks(self, steps: Sequence[int]) -> int:
        """Checkpoints that the method needs where these are too few; 0 where they are enough."""
        method = get(self._method, **self._params)
        if len(steps) < 2:
            return max(2, method.min_checkpoints(self._horizon, self._every))
        needed = lacking(method, steps, common_gap(steps), self._horizon)
        # A step that nobody named has every checkpoint, or is not waited for.
        if self._own_step and not needed:
            needed = method.min_checkpoints(self._horizon, self._every)
            return needed if len(steps) < needed else 0
        return needed

    def announced(self, steps: int, per_step: int, price: int) -> str | None:
        """Named steps that never come, and what searches take; None where the run's configuration says it (`on_disk`).

        Args:
            steps: of the run, those to come.
            per_step: completions that a step is trained on.
            price: completions that one search takes at most.
        """
        if self._on_disk or steps < 1:
            return None
        said = [self._never_come(), self._said]
        if self._searches and not (self._at is None and self._said):
            said.append(self._announced_price(steps, per_step, price))
        return "; ".join(part for part in said if part) or None

    def never_searches(self, steps: int, per_step: int, price: int) -> bool:
        """Where no window has enough to fit on, or a search its share; of named steps nobody knows."""
        if self._on_disk or steps < 1 or self._at is not None:
            return False
        return self._said is not None or self._too_short(per_step, steps, price)

    def _never_come(self) -> str | None:
        """A leap that is waited for in vain should be known of before the run is over."""
        late = sorted(step for step in self._at or () if self._ends is not None and step > self._ends)
        if not late:
            return None
        named = ", ".join(map(str, late[:_NAMED])) + (" ..." if len(late) > _NAMED else "")
        return f"{self._method}: at= names {named}, and this run ends at step {self._ends}: no leap is made there"

    def _announced_price(self, steps: int, per_step: int, price: int) -> str:
        """What searches take of the whole run's completions: a run that goes on says what it said at its beginning."""
        ends = steps if self._ends is None else self._ends
        total = ends * per_step
        one = (
            f"{self._method}: a search takes at most {price} completions of held-out prompts, {price / per_step:.2g} "
            "steps' worth"
        )
        if self._share is None:
            due = [step for step in self._at or () if step <= ends]
            most = len(due) if self._at is not None else max(0, ends // self._every - 1)
            share = most * price / total
            return f"{one}; at most {most} in this run, {share:.0%} of its completions (prompts= makes them cheaper)"
        bound = f"{one}; searches take at most {self._share:.0%} of the completions trained on"
        if self._too_short(per_step, steps, price):
            return f"{bound}, for which this run is too short: no leap will be made (give at= or prompts=)"
        return bound

    def _too_short(self, per_step: int, steps: int, price: int) -> bool:
        """Whether not even all of the run's completions together pay for one search; asked of searches with a share."""
        last = steps if self._ends is None else self._ends
        most = None if self._share is None else self._share * last * per_step
        return self._searches and most is not None and price > most
