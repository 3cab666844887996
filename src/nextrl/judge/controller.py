"""`auto`: what the learning rate becomes, and what is taken back. Pure decisions; no trainer, no tensors of a model.

Nothing is sampled for it. Two things are looked at, both on completions that training samples anyway:

1. *A step*: how many nats per token it moved the policy by. The first step of a run says how far off the rate is,
   whatever the task: Adam's first step has the size of the rate, so the divergence is quadratic in it. A rate far too
   low is raised at once; a step that ruins the policy is taken back. One that went far is on probation: unless the
   reward rises soon, the run begins again. Later steps are checked less and less often, and go less far.
2. *A window* of `every` steps, by the batch sampled after it (`fresh_batch`), which played no part in it: if its start
   was better for sure, it is undone; if training on the same way would gain for sure, the rate rises; where the windows
   at a rate together did harm, it falls.

How many nats are healthy depends on the model and the task, so that beyond the first step only evidence of gain or
harm decides, and nats say how much evidence is asked for. A run is looked at some thirty times, so that what two
standard errors would call sure happens by chance in every second one: no single look decides below three. A run of more
windows asks for more (`ControllerConfig.over`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.decision import Decision, stay
from nextrl.judge.fresh_batch import BatchGain
from nextrl.judge.probation import SHORT, Probation
from nextrl.judge.window import Window

Look = Callable[[float], BatchGain | None]
"""alpha -> what the fresh batch says of `theta_end + alpha (theta_end - theta_start)`; None where it cannot say."""

FURTHER = (1.0, 3.0, 7.0)
"""Windows trained on in the same direction that are looked at: the rate would be 1 + alpha times as high."""

_BLIND = 3
"""Steps in a row that could not be measured (prompts with images) after which steps are hardly asked about any more."""

_EARLY = 2.0
"""Times `reckless` that a step may go in the first window of a probation: Adam's first steps are its longest."""

_WARM = 0.95
"""Share of its full rate below which a step counts as one of a warm-up."""

_PAID = 1.0
"""Standard errors by which the batch must be for a window for it to count as one that paid."""

_DRIFT = 0.5
"""Standard errors by which each window is to do harm before it counts (CUSUM; Page 1954)."""

_NOTHING = 2e-13
"""Nats per token that are no movement but rounding in float32."""

_MOST = 5000.0
"""The largest factor of one raise; the next step says whether more is due."""

_UNSEEN, _TIMES = 100.0, 3
"""The largest factor of a raise after a step that could not be seen at all, and how many such raises a run may have."""


class Controller:
    """The decisions of `auto`, with the little memory they need."""

    def __init__(self, config: ControllerConfig | None = None) -> None:
        self.config = config or ControllerConfig()
        self._since = 0  # step after which the present rate holds
        self._changes = 0  # of the rate, by steps
        self._settled = False  # whether a step was seen to move the policy enough
        self._harm = 0.0  # what windows at the present rate add up to, see `ControllerConfig.harm`
        self._hot = 0.0  # doublings of the first step's nats above `goal`, and of the rate's square since
        self._ahead: list[float] = []  # at the present rate, z of another window like each of the last ones
        self._judged = 0  # windows at the present rate
        self._rounding: float | None = (
            None  # nats per token that any two passes of the run differ by, where known
        )
        self._unseen = 0  # raises after steps that could not be seen
        self._probation: Probation | None = None  # under way, or to be expected at a warm-up's end

    def checks(self, step: int) -> bool:
        """Whether this step is checked: each until one moved the policy enough, then the 1st, 2nd, 4th, 8th ..."""
        n = step - self._since
        return not self._settled or (n > 0 and n & (n - 1) == 0)

    def cooled(self, step: int, steps: int) -> float:
        """The share of the rate that a step is to be taken at, so that a run does not end at the height of its noise.

        It falls linearly over the last steps, as schedules with a decay at the end have it (Hu et al., "MiniCPM",
        2404.06395, second-hand).

        Args:
            step: the step to be taken, from 1.
            steps: of the whole run; a step beyond it is taken at the share of the last one.
        """
        last = round(self.config.cooldown * steps)
        return min(1.0, max(1, steps - step + 1) / last) if last else 1.0

    def alarmed(self, window: Window) -> bool:
        """Whether the reward has fallen so far that the window is to be judged before its time."""
        lost = self._settled and self._probation is not None and self._probation.lost(window)
        return lost or window.fall > self.config.alarm

    def step(
        self,
        step: int,
        moved: float,
        share: float = 1.0,
        hidden: float = 0.0,
        left: float = math.inf,
        rounding: float | None = None,
    ) -> Decision | None:
        """Decide on a step that was checked; None where nothing is to be done.

        Args:
            step: which one it was.
            moved: nats per token between the policies before and after it; NaN where it could not be measured.
            share: of the highest rate still to come that the schedule (a warm-up) let it be taken at; divergence is
                quadratic in it.
            hidden: nats per token that a step may have and not be seen.
            left: steps of the run that are still to come.
            rounding: nats per token that any two passes of the run differ by; None where that did not show.
        """
        if rounding is not None:  # the least seen: a step that grows oddly passes for rounding in part
            self._rounding = rounding if self._rounding is None else min(rounding, self._rounding)
        if math.isnan(moved):
            self._settled = self._settled or (self._probation is None and step > self._since + _BLIND)
            return None
        if share <= 0.0:
            return None
        new = self._probation is None or self._probation.new
        if moved > self._most(new and share > _WARM) or math.isinf(moved):
            return self._taken_back(step, moved, share)
        if self._settled:
            return None
        if math.isfinite(left) and self.cooled(step, step + round(left)) < 1.0:
            # At a share of the rate a step says little of the whole, and there is no time left to use another.
            self._settled = True
            return None
        if self._probation is None and _NOTHING <= moved <= hidden:
            return self._unresolved(step, hidden / share**2)
        return self._first(step, moved, share, left)

    def broken(self, step: int, again: bool) -> Decision:
        """Decide on a step, checked or not, that left NaN or Inf in the weights.

        Where the rate has held, one such step is a batch's fault, or half precision's, and not the rate's.

        Args:
            step: which one it was.
            again: whether the step before it was one, too.
        """
        reason = "a step left NaN or Inf in the weights"
        if self._settled and not self._early and not again:
            return replace(stay(f"{reason}: taken back"), alpha=-1.0, back="step")
        return replace(self._taken_back(step, math.inf, 1.0), reason=reason, divergence=None)

    @property
    def _early(self) -> bool:
        """Whether a probation is under way in which no window has ended yet."""
        return self._settled and self._probation is not None and self._probation.new

    def _most(self, first: bool) -> float:
        """Nats per token that a step may move the policy by: the first one of a run at its full rate the furthest."""
        if first and not (self._settled or self._changes):
            return max(self.config.ruinous, self.config.reckless)
        return self.config.reckless * (_EARLY if self._early else 1.0)

    def _taken_back(self, step: int, moved: float, share: float) -> Decision:
        """A step that went too far."""
        if self._early:
            self._since = step  # what the first step did is not worth keeping either
            return self._again(
                _step(1.0, moved, "more than a step may, soon after a first one that went far")
            )
        # A rate that has held for a while is not far off: one step among many is a burst.
        factor = 0.5 if self._settled else max(0.01, min(0.5, share * math.sqrt(self.config.goal / moved)))
        self._changed(step)
        if self._settled:
            self._hot += 2.0 * math.log2(factor)
        return replace(_step(factor, moved, "more than a step may: taken back"), alpha=-1.0, back="step")

    def _first(self, step: int, moved: float, share: float, left: float) -> Decision | None:
        """Decide on the first step, or on each until one settles whether the rate is of the right order."""
        config, full = self.config, moved / share**2
        if full < _NOTHING:  # no reward differed from another one, so that there was no gradient
            return None
        if full > self._most(True):
            if moved < config.goal / 4:  # may be the noise of the passes, which no rate explains
                return None
            self._changed(step)
            factor = max(0.01, math.sqrt(config.goal / full))
            return _step(factor, full, "at the rate that the schedule is heading for")
        # Later steps of a run are shorter than its first one, so that less is asked of a rate that was just set, and
        # one that was bold earlier in a warm-up is not too low.
        if full < config.goal / (25.0 if self._changes else 5.0) and self._probation is None:
            self._changed(step)
            return _step(min(_MOST, math.sqrt(config.goal / full)), full, "less than it should")
        if not self._changes:
            self._hot = math.log2(full / config.goal)
        bold = not self._changes and full > max(config.bold, config.goal)
        if share <= _WARM and (bold or self._probation is not None):
            # The reward has no chance to rise yet, and steps grow longer.
            self._probation = self._probation or Probation()
            return None
        self._settled = True
        if bold:
            self._since, self._probation = step - 1, self._probation or Probation()
            self._probation.lenient = left < SHORT
        else:
            self._probation = None
        return None

    def _unresolved(self, step: int, most: float) -> Decision | None:
        """Raise the rate as far as a step that cannot be measured allows for, and measure the next one as the first.

        Args:
            most: nats per token that the step may have moved the policy by at the full rate.
        """
        if most >= self.config.goal / 5.0:  # in a warm-up: later steps will show
            return None
        if self._unseen == _TIMES:
            self._settled = True
            return None
        self._since, self._unseen = step, self._unseen + 1
        self._new_rate()
        factor = min(_UNSEEN, math.sqrt(self.config.goal / most))
        return _step(factor, most, "or less, which half precision hides")

    def _changed(self, step: int) -> None:
        self._since, self._changes = step, self._changes + 1
        if self._probation is not None and not self._settled:  # what a warm-up was heading for is no more
            self._probation, self._hot = None, 0.0
        self._new_rate()

    def _new_rate(self) -> None:
        self._harm, self._ahead, self._judged = 0.0, [], 0

    @property
    def settled(self) -> bool:
        """Whether the rate's order of magnitude is known: a few completions are enough for a look at a step then."""
        return self._settled

    @property
    def harm(self) -> float:
        """What the windows at the present rate add up to, in standard errors (CUSUM)."""
        return self._harm

    @property
    def length(self) -> int:
        """Steps of the window under way: few after a change of the rate, many where it has held for long."""
        if self._judged >= 2 + self.config.patience:
            return 2 * self.config.every
        return max(1, round(self.config.every / (3.0, 2.0, 1.0)[min(self._judged, 2)]))

    def window(self, window: Window, look: Look) -> Decision:
        """Decide at the end of a window, by the batch that was sampled after it."""
        if self._probation is not None and self._failed(self._probation, window):
            return self._again(stay("the first step went far, and the reward has not risen since"))
        back = look(-1.0)
        if back is None:
            return stay("no rollouts are there to judge the window by")
        looks = {-1.0: back}
        decision = self._decide(window, back, look, looks)
        self._judged += 1
        if decision.rate_factor != 1.0:
            self._new_rate()
            self._hot += 2.0 * math.log2(decision.rate_factor)
        if decision.rate_factor > 1.0:
            self._since = window.step
        nats = self._nats(back)
        return replace(decision, looks=looks, divergence=nats if math.isfinite(nats) else None)

    def _nats(self, look: BatchGain) -> float:
        """Nats per token that a candidate is away by, without what rounding adds to them; NaN where unknown."""
        return look.nats_k2 if math.isnan(look.nats_k2) else max(0.0, look.nats_k2 - (self._rounding or 0.0))

    @property
    def may_begin_again(self) -> bool:
        """Whether the run's beginning has to be remembered: its first step is not judged yet, or on probation."""
        return self._probation is not None or not (self._settled or self._changes)

    def _failed(self, probation: Probation, window: Window) -> bool:
        """Whether the probation ends with this window, and badly."""
        if not self._settled:
            probation.warms_up(window)
            return False
        stays = probation.verdict(window, self.config.rise)
        if stays is not None:
            self._probation = None
        return stays is False

    def _again(self, decision: Decision) -> Decision:
        """Begin again, at the rate whose first step moves the policy by `goal`, and at half the present one at most."""
        factor = min(0.5, 2.0 ** (-self._hot / 2.0))
        self._probation = None
        self._new_rate()
        self._hot += 2.0 * math.log2(factor)
        return replace(decision, alpha=-1.0, rate_factor=factor, back="run")

    def _decide(self, window: Window, back: BatchGain, look: Look, looks: dict[float, BatchGain]) -> Decision:
        config, nats = self.config.over(window.steps), self._nats(back)
        paid = back.evidence < -_PAID
        if nats > config.far and window.fall > config.alarm and not paid:
            # Where a policy has collapsed, all its rewards are the same, and the batch has nothing to say; and far off
            # it says little of long completions. Where it says that the window paid, harder data made the reward fall.
            return _undone("the reward fell: the window is undone")
        # A window that hardly moved the policy did no harm worth a step back, whatever its sign.
        if nats > config.target / 16:
            if _harmed(back, window, config.undo):
                return _undone("the window's start was better: undone")
            self._harm = max(0.0, self._harm + _harm(back, window) - _DRIFT)
            # The further the first step went, the less it takes to believe that the rate is too high.
            if self._harm > max(1.0, config.harm - max(0.0, self._hot)):
                return _rate(0.6, "the last windows together did harm")
        alpha = self._further(look, looks, config) if paid else 0.0
        if self._together(looks, config.sure) and not alpha:
            alpha = 1.0
        if alpha:
            return _rate(math.sqrt(1.0 + alpha), f"{1 + alpha:g} such windows would gain for sure")
        if not back.informative_groups:
            return stay(
                "the batch says nothing of this window: within each prompt all completions earned the same"
            )
        return stay("nothing speaks for another rate")

    def _further(self, look: Look, looks: dict[float, BatchGain], config: ControllerConfig) -> float:
        """The alpha whose gain is the largest for sure by this window; 0.0 if none is."""
        alpha, best = 0.0, 0.0
        for candidate in FURTHER:
            found = look(candidate)
            if found is None or found.left_out or self._nats(found) > config.far:
                break
            looks[candidate] = found
            beyond = max(1.0, self._nats(found) / config.target)
            needed = config.sure + config.surer * math.log2(beyond)
            if (lower := found.lower(needed)) > best:
                alpha, best = candidate, lower
            if found.degenerate or looks[-1.0].evidence > -config.sure / 2:
                break  # a slope grows with alpha for ever, and what barely pays need not be looked at further out
        return alpha

    def _together(self, looks: Mapping[float, BatchGain], sure: float) -> bool:
        """Whether another window like each of the last ones would gain for sure, by all of them together.

        Every window counts, by its look back where nobody looked ahead. Of those alone that spoke for going on, chance
        is sure in every second run of thirty windows.
        """
        ahead = looks[1.0].evidence if 1.0 in looks else -looks[-1.0].evidence
        self._ahead = [*self._ahead, ahead][-self.config.patience :]
        n = len(self._ahead)
        return 1.0 in looks and n >= 3 and sum(self._ahead) / math.sqrt(n) > sure

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, as JSON-ready values."""
        return {
            "since": self._since,
            "changes": self._changes,
            "settled": self._settled,
            "harm": self._harm,
            "hot": self._hot,
            "ahead": list(self._ahead),
            "judged": self._judged,
            "rounding": self._rounding,
            "unseen": self._unseen,
            "probation": None if self._probation is None else asdict(self._probation),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the memory of `state()`; the configuration stays the one this controller was built with."""
        self._since, self._changes, self._settled = state["since"], state["changes"], state["settled"]
        self._harm, self._hot = state["harm"], state["hot"]
        self._ahead, self._judged = list(state["ahead"]), state["judged"]
        self._rounding, self._unseen = state["rounding"], state["unseen"]
        kept = state["probation"]
        self._probation = None if kept is None else Probation(list(kept["rewards"]), kept["lenient"])


def _harmed(back: BatchGain, window: Window, errors: float) -> bool:
    """Whether the window's start was better. Where the weights degenerated only a direction is known, so the reward
    must have fallen as well."""
    if back.degenerate:
        return back.evidence > errors and window.falls
    return not back.left_out and back.evidence > errors


def _harm(back: BatchGain, window: Window) -> float:
    """Standard errors by which a window did harm: the batch's word, and with half its weight that of the reward.

    A reward that does not fall is no sign of health where it has hit its floor. Where the batch is mute most
    completions may earn the same in any window, so that a fall counts for no more than single ones can make of it.
    """
    if back.informative_groups < 2:
        return window.counted_fall
    return (back.evidence + window.fall / 2) / math.sqrt(1.25)


def _undone(reason: str) -> Decision:
    return replace(stay(reason), alpha=-1.0, rate_factor=1 / 3, back="window")


def _rate(factor: float, reason: str) -> Decision:
    return replace(stay(reason), rate_factor=factor)


def _step(factor: float, nats: float, why: str) -> Decision:
    reason = f"a step moves the policy {nats:.2g} nats per token, {why}"
    return replace(_rate(factor, reason), divergence=nats)
