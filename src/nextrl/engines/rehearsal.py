"""What a schedule is going to do, found out on a copy of it that sets the rates of an optimizer without weights.

A schedule's class tells its shape only where it is known, and a user's own one may make its rates from numbers that
nobody else knows. So its next steps are taken beforehand, on a copy. Neither the schedule nor the optimizer is touched.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nextrl.engines.optimizers import held_in, unwrapped
from nextrl.engines.schedules import leading, scheduler_itself, set_rate_factor

log = logging.getLogger(__name__)

_KNOWN = ("torch", "transformers")
"""Packages whose schedules `schedules.set_rate_factor` knows by name: every rate of theirs follows a factor."""

_FACTOR = 2.0  # that a schedule is tried with: a power of two, so that products are exact
_METHODS = ("step", "get_lr")  # what makes the rates; a copy has them from the class
_MOST = 10**4  # steps that are taken beforehand, at most


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
        ahead = _ahead(optimizer, scheduler, steps)
        now = next(ahead)[index]
        for rates in ahead:
            if not math.isclose(rates[index], now):
                return rates[index] > now
    except _Untried:
        log.debug("the schedule cannot be tried beforehand", exc_info=True)
        return None
    return False


def follows(optimizer: Any, scheduler: Any, steps: int) -> bool | None:
    """Whether a factor reaches each rate that the schedule sets in so many steps, as far as its class is not known.

    A schedule of a user's own that makes rates from its own `max_lr`, say, would set the next one as if nobody had
    changed any.

    Returns:
        None where nobody knows, see `rises`.
    """
    if _is_known(scheduler_itself(scheduler)):
        return True
    try:
        plain, scaled = _ahead(optimizer, scheduler, steps), _ahead(optimizer, scheduler, steps, _FACTOR)
        for one, other in zip(plain, scaled, strict=False):
            if not all(math.isclose(_FACTOR * a, b, rel_tol=1e-6) for a, b in zip(one, other, strict=True)):
                return False
    except _Untried:
        log.debug("the schedule cannot be tried beforehand", exc_info=True)
        return None
    return True


def _is_known(scheduler: Any) -> bool:
    """Whether nothing of a schedule, and of those that it is made of, is of a user's own making."""
    package = type(scheduler).__module__.partition(".")[0]
    own = scheduler is None or package in _KNOWN
    return own and all(_is_known(inner) for inner in getattr(scheduler, "_schedulers", ()))


def _ahead(optimizer: Any, scheduler: Any, steps: int, factor: float = 1.0) -> Iterator[list[float]]:
    """The rates of all groups as they are, times a factor, and then after each of the coming steps.

    Fewer than `steps` where the schedule ends before, as `OneCycleLR` does: what it said until then counts.

    Raises:
        _Untried: not even one step can be taken.
    """
    stand_in, own = _copied(optimizer, scheduler_itself(scheduler))
    set_rate_factor(stand_in, own, factor)
    yield _rates(stand_in)
    for step in range(min(steps, _MOST)):
        try:
            with warnings.catch_warnings():  # of a schedule that steps without its optimizer
                warnings.simplefilter("ignore")
                own.step()
        except Exception as error:
            if not step:
                raise _Untried("its first step") from error
            return
        yield _rates(stand_in)


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
