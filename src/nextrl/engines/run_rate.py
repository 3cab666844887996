"""The learning rate of one run under a policy: who may change it, what comes of it, and its way down at the end."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nextrl.engines import apply_leap
from nextrl.engines.schedules import RateCheck
from nextrl.say import say

if TYPE_CHECKING:
    from nextrl.engines.live_weights import State
    from nextrl.engines.memory import Memory
    from nextrl.engines.policies import JudgingPolicy
    from nextrl.engines.run_protocol import Run

log = logging.getLogger(__name__)

# How near, as a logarithm, a rate is to what it was without a factor; a factor that stands out.
_SAME, _FAR = 0.2, 4.0


def _lowered(share: float) -> bool:
    """Whether a schedule holds the rate below its height, which the last step of a warm-up may miss by rounding."""
    return share < 1.0 and not math.isclose(share, 1.0)


class RunRate:
    """Multiplies a run's learning rate, unless that is forbidden or optimizer or schedule turn out not to follow it.

    Args:
        run: whose rate it is.
        judge: the policy that sets it, and says how it falls at the end of a run; None under one that leaps.
        adapts: whether it may be changed at all.

    Attributes:
        adapts: the same, until the optimizer's steps are seen to ignore the rate, or something else sets it.
        cooled: share of the rate that the end of the run left the latest step; 1.0 before that.
    """

    def __init__(self, run: Run, judge: JudgingPolicy | None, adapts: bool) -> None:
        self.adapts, self.cooled = adapts, 1.0
        self._run, self._judge = run, judge
        # Share of the schedule's height, at the latest step; None before any was seen.
        self._share: float | None = None
        self._ahead = 1.0  # the highest share that is still to come
        self._asked = False  # whether the schedule was tried beforehand
        # Whether a factor reaches its rates; None where that cannot be tried.
        self._reached: bool | None = None
        # The latest step's rate without its factor; that factor; whether the schedule has not moved since it changed.
        self._plain: float | None = None
        self._factor, self._watched = 1.0, False
        self._follows = RateCheck()
        # Whether the schedule lowers the rate in the end, once that was asked.
        self._falls: bool | None = None
        # Where the step after a change of the rate began: what is trained, and the rate.
        self._began: tuple[State, float] | None = None

    def share_ahead(self, step: int) -> float:
        """The rate as a share of what a warm-up is heading for; a decay heads for nothing higher than its own.

        1 where nobody asks, since the rate is not to be changed.

        Args:
            step: the steps taken so far.
        """
        if not self.adapts:
            return 1.0
        before, share = self._share, self._run.share
        if before is None:
            self._ahead = self._heading_for(share, step)
        elif not math.isclose(share, before):
            self._ahead = share if share < before else 1.0
        self._share = share
        return share / self._ahead if share else 0.0

    def _heading_for(self, share: float, step: int) -> float:
        """The highest share that is still to come, where nothing is remembered of the steps before.

        A low share may be a warm-up's, or what a decay has left: which of them, the schedule's next change says. Where
        nobody knows that, a run that begins warms up, and one taken up in its middle is at its height.
        """
        if not _lowered(share):
            return 1.0
        # A run of one step may be the first of a warm-up, too.
        rises = self._run.rises(max(int(step == 0), self._run.max_steps - step - 1))
        return 1.0 if (step == 0 if rises is None else rises) else share

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON-ready values."""
        return {
            "share": self._share,
            "ahead": self._ahead,
            "adapts": self.adapts,
            "follows": self._follows.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the memory of `state()`."""
        self._share, self._ahead = state["share"], state["ahead"]
        self.adapts = self.adapts and state["adapts"]
        self._follows.restore(state["follows"])

    def leave_to_others(self, step: int, memory: Memory) -> None:
        """Where something other than the schedule sets the rate (another callback), let it be from now on."""
        run = self._run
        if not self.adapts or not run.rate_set_elsewhere:
            return
        self.adapts = False
        # A named method's policy never touches the rate, and has nothing to say of it.
        if run.ranks.leader and (self._judge is not None or memory.factor != 1.0):
            say(
                log,
                "something other than the schedule has set the learning rate to %.3g; auto leaves it alone from now "
                "on, and the schedule's own rates are again what they were without auto: let one of the two set it",
                run.rate,
                step=step,
            )
        run.release_rate(memory.factor)
        self._forget_factor(memory)

    def leave_to_schedule(self, step: int, memory: Memory) -> None:
        """Where the schedule makes rates from numbers of its own, which no factor reaches, let them be from now on.

        That shows beforehand where its steps can be taken on a copy, else by its first move after a change.
        """
        if not self.adapts or not (
            self._out_of_reach(step, memory.factor) or self._overwritten(memory.factor)
        ):
            return
        self.adapts = False
        if self._run.ranks.leader:
            say(
                log,
                "the schedule makes its learning rates from numbers of its own, which no factor reaches; auto leaves "
                "the rate alone from now on: let the schedule make them from its base_lrs, as torch's do",
                step=step,
            )
        if memory.factor != 1.0:
            self._run.release_rate(memory.factor)
        self._forget_factor(memory)

    def _out_of_reach(self, step: int, factor: float) -> bool:
        """Whether the schedule, tried once beforehand, does not follow, and the rate has been changed or is to be."""
        if not self._asked:
            self._asked, self._reached = True, self._run.follows(self._run.max_steps - step)
        return self._reached is False and (self._judge is not None or factor != 1.0)

    def _overwritten(self, factor: float) -> bool:
        """Whether a schedule that could not be tried makes its first move after a change as if there had been none.

        A change by less than `_FAR` does not stand out from a schedule's own moves.
        """
        if self._reached is not None:
            return False
        before, rate = self._plain, self._run.rate
        self._plain, changed, self._factor = rate / factor, factor != self._factor, factor
        moved = before is not None and not math.isclose(self._plain, before)
        watched, self._watched = self._watched, changed or (self._watched and not moved)
        if changed or not (watched and moved and before and rate):
            return False
        return abs(math.log(factor)) > math.log(_FAR) and abs(math.log(rate / before)) < _SAME

    @property
    def waits(self) -> bool:
        """Whether the coming step is the first one after a change of the rate, whose length is looked at."""
        return self._follows.waiting

    def step_begins(self, state: State) -> None:
        """Remember where the first step after a change of the rate begins.

        Args:
            state: what is trained, there; not looked at unless the rate `waits`.
        """
        self._began = (state, self._run.rate) if self.waits else None

    def step_ended(self, step: int, memory: Memory) -> None:
        """See whether the first step at another rate had the length that belongs to it; where not, leave the rate."""
        run, began, self._began = self._run, self._began, None
        if began is None:
            return
        ignored = self._follows.ignored(self._length(began[0]), began[1])
        if not ignored or not self.adapts:
            return
        self.adapts = False
        if run.ranks.leader:
            say(
                log,
                "the learning rate was multiplied by %.3g, and the steps stayed as long as they were: %s does not take "
                "its rate from its param_groups, so that auto leaves it alone from now on",
                memory.factor,
                run.optimizer_name,
                step=step,
            )
        apply_leap.scale_rate(run, memory, 1.0 / memory.factor)
        self._forget_factor(memory)

    def changes(self, before: State, rate: float) -> None:
        """The rate is about to change after a step that began at `before` and was taken at `rate`."""
        if not self._follows.settled:
            self._follows.changed(self._length(before), rate)

    def cool(self, memory: Memory, step: int) -> None:
        """Bring the rate to the share that this step of a run's end is taken at, until `give_back`.

        A schedule that falls by itself is left alone.
        """
        run = self._run
        # A schedule that could not be tried may set rates of its own, of which nothing was taken to be given back.
        cools = self.adapts and self._reached is not None
        cooled = self._judge.cooled(step, run.max_steps) if cools and self._judge is not None else 1.0
        if memory.cooled == cooled or (
            memory.cooled == 1.0 and (_lowered(run.share) or (cooled < 1.0 and self._falls_by_itself(step)))
        ):
            cooled = memory.cooled
        self._scale_to(memory, cooled)
        self.cooled = cooled

    def _falls_by_itself(self, step: int) -> bool:
        """Whether the schedule is going to; asked once, since each asking may try all steps that are left."""
        if self._falls is None:
            self._falls = self._run.falls_by_itself(step, self._run.max_steps)
        return self._falls

    def give_back(self, memory: Memory) -> None:
        """Give back what the end of a run took for one step.

        Between steps the rate is whole: whoever goes on from a checkpoint, or after the last step, begins with it.
        """
        self._scale_to(memory, 1.0)
        if math.isclose(memory.factor, 1.0, rel_tol=1e-12):
            memory.factor = 1.0  # a rate that nobody changed: a share and its inverse make 1 only nearly

    def _forget_factor(self, memory: Memory) -> None:
        """The rate is the schedule's own from now on, and stays so where a leap is taken back."""
        memory.factor = memory.cooled = self.cooled = 1.0
        if memory.snapshot is not None:
            memory.snapshot.factor = 1.0

    def _scale_to(self, memory: Memory, cooled: float) -> None:
        if cooled != memory.cooled:
            apply_leap.scale_rate(self._run, memory, cooled / memory.cooled)
            memory.cooled = cooled

    def _length(self, before: State) -> float:
        """How far what is trained has come since; the same number on every process."""
        adapter = self._run.adapter
        length: float = self._run.ranks.tell(adapter.distance(before, adapter.read()))
        return length
