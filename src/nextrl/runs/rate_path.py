"""The way of one run's learning rate over its steps, from what its record, or its entry in a result, knows of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

Figures = Sequence[float | None]
Pair = tuple[float, float]


def rate_path(
    steps: Figures,
    learning_rate: Figures,
    rate_steps: Figures,
    rates: Figures,
    decided: Sequence[tuple[float | None, float | None]],
) -> list[Pair]:
    """(steps taken so far, rate from there on), in order; empty where no rate is known.

    Records of earlier versions hold no `rates`: theirs is known where it was evaluated and where it was decided on.

    Args:
        steps, learning_rate: of the evaluations.
        rate_steps, rates: the steps that were taken at another rate than the step before, and that rate.
        decided: step and rate of each decision.
    """
    seen = [*_known(zip(steps, learning_rate, strict=False)), *_known(decided)]
    seen.sort(key=lambda pair: pair[0])
    taken = [(step - 1, rate) for step, rate in _known(zip(rate_steps, rates, strict=False))]
    if not taken:
        return seen
    before = [pair for pair in seen if pair[0] < taken[0][0]]  # an earlier version may have begun the run
    last = max((step for step in steps if step is not None), default=0)
    return [*before, *taken, *([(last, taken[-1][1])] if last > taken[-1][0] else [])]


def _known(pairs: Iterable[tuple[float | None, float | None]]) -> list[Pair]:
    """The pairs of which both are known, and whose rate is one."""
    return [(x, y) for x, y in pairs if x is not None and y is not None and y > 0]


@dataclass(frozen=True)
class Cooling:
    """How the end of a run brought its rate down.

    Attributes:
        begins: steps taken when it began, as closely as the path knows.
        rate: the rate before it.
    """

    begins: float
    rate: float


def cooling(path: Sequence[Pair], changed: Sequence[float]) -> Cooling | None:
    """The first fall of a rate that no decision brought about, of a run whose schedule is constant; None without one.

    Args:
        path: see `rate_path`.
        changed: steps at which a decision changed the rate, or put an earlier one back.
    """
    for (_, before), (step, rate) in pairwise(path):
        if rate < before and step not in changed:
            return Cooling(step, before)
    return None
