"""How far the step just taken moved the policy, for the policy that decides on it."""

from __future__ import annotations

import logging
import math
from functools import partial

from nextrl.engines.live_weights import State
from nextrl.engines.point import Point
from nextrl.engines.run_protocol import Run
from nextrl.judge.rounding import Moved, tell_apart
from nextrl.say import say

log = logging.getLogger(__name__)

# Cosine with the way to 0 above which a step was weight decay's: decoupled it has 1, coupled to Adam .8.
_DECAY = 0.7
_SINGLE = 1e-9  # nats per token hidden by passes less precise than float32's
_HIDES = (
    "passes are in half precision, and trained weights are as well or lie beside the adapter: rounding may hide that "
    "the learning rate is too low (docs/precision.md); if rewards hardly rise, try ten times the rate"
)


class StepDivergence:
    """Nats per token between the policies before and after a step, on that step's own rollouts.

    Args:
        run: the trainer and what belongs to it.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._said = False  # whether it was said that rounding may hide a low rate

    def of(self, before: Point, most: int, exact: bool) -> Moved:
        """How far the step moved the policy, by so many completions of each process.

        Where a step had no gradient (no reward differed from another one), weight decay moves the factors all the same,
        and two passes over the same weights may round otherwise. Neither says anything of the rate: it counts as 0.

        Weights in half precision may not have moved at all, and only the optimizer's state shows that there was a
        gradient. That is not a step without one: it counts as what the precision hides.

        Args:
            before: where the step began.
            exact: take out what half precision adds. Of weights that are rounded themselves it is not: their step is no
                part of a longer one. Nor where something is trained beside the adapter, which is not moved here.
        """
        run = self._run
        nats = float(run.ranks.tell(run.tools.fresh.moved(before.state, most)))
        length, shrinking = run.way(before.state, before.moments)
        if math.isfinite(nats) and length == 0.0:
            hidden = run.resolution if run.ranks.tell(run.took_gradient(before.moments)) else 0.0
            return Moved(hidden, hidden)
        if math.isfinite(nats) and shrinking > _DECAY:
            return Moved(0.0)
        if exact and run.resolution > _SINGLE:
            if run.stretches:
                return tell_apart(
                    partial(self._by, before.state, run.adapter.read(), most), run.resolution, nats
                )
            self._say_once()
        shown = max(nats, run.resolution)
        return Moved(shown, hidden=shown if shown < 10.0 * run.resolution else 0.0)

    def _by(self, before: State, now: State, most: int, alpha: float) -> float:
        """Nats per token between the weights before the step and those alpha times the step beyond them."""
        run = self._run
        with run.adapter.holding(run.adapter.along(before, now, alpha - 1.0)):
            return float(run.ranks.tell(run.tools.fresh.moved(before, most)))

    def _say_once(self) -> None:
        if not self._said and self._run.ranks.leader:
            say(log, "%s", _HIDES)
        self._said = True
