"""What a schedule is going to do, found out on a copy of it that sets the rates of an optimizer without weights.

A schedule's class tells its shape only where it is known, and a user's own one may make its rates from numbers that
nobody else knows. So its next steps are taken beforehand, on a copy. Neither the schedule nor the optimizer is touched.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nextrl.engines.optimizers import held_in, unwrapped
from nextrl.engines.schedules import falls_by_itself, leading, scheduler_itself, set_rate_factor
from nextrl.tasks.evaluate import seeded

log = logging.getLogger(__name__)

_KNOWN = ("torch", "transformers")
"""Packages whose schedules `schedules.set_rate_factor` knows by name: every rate of theirs follows a factor."""

_FACTOR = 2.0  # that a schedule is tried with: a power of two, so that products are exact
_METHODS = ("step", "get_lr")  # what makes the rates; a copy has them from the class
_MOST = 10**4  # steps that are taken beforehand, at most
# Steps after which rates are compared: so many in a row, then so many up to the end.
_EACH, _FURTHER = 200, 200
_LITTLE = 0.02  # of a group's highest rate: what rates may miss a factor by, as a floor of 1e-8 makes them


class _Untried(Exception):
    """A schedule cannot be copied without copying what it belongs to, or it steps on more than a count of steps."""


def rises(optimizer: Any, scheduler: Any, steps: int, heights: Sequence[float] = ()) -> bool | None:
    """Whether the next change of the rate, within so many steps, is a rise; where it stays as it is, it is none.

    Args:
        heights: see `schedules.share_of`.

    Returns:
        None where nobody knows: the schedule cannot be copied, or asks for a metric.
    """
    index = leading(optimizer, heights)[0]
    try:
        with seeded(0):  # a schedule may draw its rates
            ahead = _ahead(optimizer, scheduler, range(1, min(steps, _MOST) + 1))
            now = next(ahead)[index]
            for rates in ahead:
                if not math.isclose(rates[index], now):
                    return rates[index] > now
    except _Untried:
        log.debug("the schedule cannot be tried beforehand", exc_info=True)
        return None
    return False


def falls(optimizer: Any, scheduler: Any, begin: int, end: int, heights: Sequence[float] = ()) -> bool:
    """Whether the schedule lowers the rate between two steps of the run (from 1), the first being the one to come.

    Args:
        heights: see `schedules.share_of`.

    Returns:
        False, too, where nobody knows, see `rises`.
    """
    if (known := falls_by_itself(scheduler, begin, end)) is not None:
        return known
    index = leading(optimizer, heights)[0]
    try:
        with seeded(0):
            ahead = [
                rates[index] for rates in _ahead(optimizer, scheduler, range(1, min(end - begin, _MOST) + 1))
            ]
    except _Untried:
        log.debug("the schedule cannot be tried beforehand", exc_info=True)
        return False
    return any(b < a and not math.isclose(a, b) for a, b in itertools.pairwise(ahead))


def follows(optimizer: Any, scheduler: Any, steps: int) -> bool | None:
    """Whether a factor reaches each rate that the schedule sets in so many steps, as far as its class is not known.

    A schedule of a user's own that makes rates from its own `max_lr`, say, would set the next one as if nobody had
    changed any. Rates are compared after some steps, not after all: each may run a user's code.

    Returns:
        None where nobody knows, see `rises`.
    """
    if _is_known(scheduler_itself(scheduler)):
        return True
    try:
        after = _some(steps)
        with seeded(0):
            plain = list(_ahead(optimizer, scheduler, after))
        with seeded(0):  # the same numbers, where a schedule draws its rates
            scaled = list(_ahead(optimizer, scheduler, after, _FACTOR))
    except _Untried:
        log.debug("the schedule cannot be tried beforehand", exc_info=True)
        return None
    heights = [max(rates) for rates in zip(_begun_from(optimizer), *plain, strict=True)]
    return all(
        abs(_FACTOR * a - b) <= _LITTLE * height
        for one, other in zip(plain, scaled, strict=False)
        for a, b, height in zip(one, other, heights, strict=True)
    )


def _some(steps: int) -> list[int]:
    """The steps, of so many, after which rates are compared: the first ones, and others up to the last."""
    further = (_EACH + (steps - _EACH) * i // _FURTHER for i in range(1, _FURTHER + 1))
    return sorted({*range(1, min(steps, _EACH) + 1), *(step for step in further if step > _EACH)})


def _begun_from(optimizer: Any) -> list[float]:
    """The rates that a schedule began from, which are higher than all that are left of its decay."""
    return [float(group.get("initial_lr", group["lr"])) for group in unwrapped(optimizer).param_groups]


def _is_known(scheduler: Any) -> bool:
    """Whether nothing of a schedule, and of those that it is made of, is of a user's own making."""
    package = type(scheduler).__module__.partition(".")[0]
    own = scheduler is None or package in _KNOWN
    return own and all(_is_known(inner) for inner in getattr(scheduler, "_schedulers", ()))


def _ahead(
    optimizer: Any, scheduler: Any, after: Iterable[int], factor: float = 1.0
) -> Iterator[list[float]]:
    """The rates of all groups as they are, times a factor, and then after each of these coming steps (from 1 on).

    Fewer where the schedule ends before, as `OneCycleLR` does: what it said until then counts. One that sets its rates
    by `last_epoch`, as torch's do, is put on where steps are left out; another one takes them for steps in a row.

    Raises:
        _Untried: not even one step can be taken.
    """
    stand_in, own = _copied(optimizer, scheduler_itself(scheduler))
    set_rate_factor(stand_in, own, factor)
    yield _rates(stand_in)
    taken = 0
    for step in after:
        _put_on(own, step - taken - 1)
        try:
            with warnings.catch_warnings():  # of a schedule that steps without its optimizer
                warnings.simplefilter("ignore")
                own.step()
        except Exception as error:
            if not taken:
                raise _Untried("its first step") from error
            return
        taken = step
        yield _rates(stand_in)


def _put_on(schedule: Any, steps: int) -> None:
    """Count so many steps of a schedule, and of those that it is made of, as taken."""
    if isinstance(last := getattr(schedule, "last_epoch", None), int):
        schedule.last_epoch = last + steps
    for inner in getattr(schedule, "_schedulers", ()):
        _put_on(inner, steps)


def _rates(optimizer: Any) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def _copied(optimizer: Any, scheduler: Any) -> tuple[torch.optim.Optimizer, Any]:
    """A stand-in for the optimizer, and a copy of the schedule that sets the rates of the stand-in."""
    inner = unwrapped(optimizer)
    stand_ins = {id(inner): _stand_in(inner)}
    memo: dict[int, Any] = {id(optimizer): stand_ins[id(inner)], id(inner): stand_ins[id(inner)]}
    for schedule in (scheduler, *getattr(scheduler, "_schedulers", ())):
        own_attributes = getattr(schedule, "__dict__", {})
        if not own_attributes.keys().isdisjoint(_METHODS):
            raise _Untried("somebody has put another method in its place, which may step the schedule itself")
        for held in held_in(schedule, torch.optim.Optimizer):
            own = unwrapped(held)
            memo[id(held)] = memo[id(own)] = stand_ins.setdefault(id(own), _stand_in(own))
        for module in held_in(schedule, nn.Module):  # the model is read by its copy, and is no part of it
            memo[id(module)] = module
        others = (value for value in own_attributes.values() if not isinstance(value, nn.Module))
        if any(held_in(value, nn.Module) for value in others):
            raise _Untried("it holds what holds the model")
    try:
        return stand_ins[id(inner)], copy.deepcopy(scheduler, memo)
    except Exception as error:
        raise _Untried("a copy of it") from error


def _stand_in(inner: Any) -> torch.optim.Optimizer:
    """An optimizer with the numbers of another one's groups, and next to no weights."""
    groups = [_numbers(group) | {"params": [nn.Parameter(torch.zeros(1))]} for group in inner.param_groups]
    made = torch.optim.SGD(groups, lr=0.0)
    made.defaults = dict(getattr(inner, "defaults", {}))
    return made


def _numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: copy.deepcopy(value) for name, value in group.items() if not name.startswith("param")}
