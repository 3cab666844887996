"""The learning rate of a trainer under its schedule: multiply it, so that the schedule's shape stays, and read it.

A schedule computes rates from numbers of its own: most from one base rate, which is scaled with the rate, others from
rates besides (the height of `OneCycleLR`, the floor of a cosine). Those of torch and transformers are known here by
name, so that every later rate is the factor times what it would have been.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import lr_scheduler

from nextrl.engines.optimizers import unwrapped

# In an optimizer's groups: rates that schedules left there (the base rate; OneCycleLR's height and end; SWALR's).
_IN_GROUPS = ("initial_lr", "max_lr", "min_lr", "swa_lr")

# A schedule's class -> its attributes that are rates, or differences of rates, besides `base_lrs`.
_RATES = {
    "CosineAnnealingLR": ("eta_min",),
    "CosineAnnealingWarmRestarts": ("eta_min",),
    "CyclicLR": ("max_lrs",),
    "ReduceLROnPlateau": ("min_lrs", "default_min_lr", "eps"),
    "GreedyLR": ("min_lrs", "max_lrs", "_init_lrs", "eps"),
}

# Schedules that lower the rate by themselves when they see fit, whatever share of their height it has.
_FALLING = ("ReduceLROnPlateau", "GreedyLR", "OneCycleLR", "CyclicLR", "CosineAnnealingWarmRestarts")

log = logging.getLogger(__name__)

_LOOKED_AT = 10**5  # steps at which a function of the step is looked at, at most


def set_rate_factor(optimizer: torch.optim.Optimizer, scheduler: Any, factor: float) -> None:
    """Multiply the learning rate, and all that the schedule makes later rates from, by the same factor."""
    inner = unwrapped(optimizer)
    _scale_groups(inner, factor)
    _scale(scheduler_itself(scheduler), inner, factor)


def set_base_rate(optimizer: torch.optim.Optimizer, scheduler: Any, base: float) -> None:
    """Bring the rate that a schedule begins from to this one, in the optimizer and in the schedule.

    A checkpoint may have held the state of the one and not of the other, so that either may have another base. The
    present rate becomes the one that the schedule last set, on the new base.
    """
    inner, own = unwrapped(optimizer), scheduler_itself(scheduler)
    in_group, in_schedule = base_rates(optimizer, scheduler)
    if not in_group or not in_schedule:
        return
    last = [float(rate) * (base / in_schedule) for rate in own._last_lr]
    _scale_groups(inner, base / in_group)
    for each, rate in zip(inner.param_groups, last, strict=True):
        _put_rate(each, rate)
    _scale(own, inner, base / in_schedule)


def base_rates(optimizer: torch.optim.Optimizer, scheduler: Any) -> tuple[float, float]:
    """The rate that a schedule begins from, as the optimizer has it and as the schedule has it."""
    inner = unwrapped(optimizer)
    index, group = leading(inner, ())
    return base_rate(inner) or float(group["lr"]), float(scheduler_itself(scheduler).base_lrs[index])


def _scale_groups(inner: Any, factor: float) -> None:
    """Multiply the rates in an optimizer's groups."""
    # A compiled step may hold a rate that is a tensor: it stays the same one. Several groups may share it.
    shared = {id(group["lr"]): group["lr"] for group in inner.param_groups if isinstance(group["lr"], Tensor)}
    for rate in shared.values():
        rate.mul_(factor)
    for group in inner.param_groups:
        for name in ("lr", *_IN_GROUPS):
            if name in group and id(group[name]) not in shared:
                group[name] = _times(group[name], factor)


def _put_rate(group: dict[str, Any], rate: float) -> None:
    """Set a group's present rate; one that is a tensor stays the same tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def release(optimizer: torch.optim.Optimizer, scheduler: Any, factor: float) -> None:
    """Take a factor back from all that later rates are made from, and leave the present ones as they are."""
    groups = unwrapped(optimizer).param_groups
    present = [float(group["lr"]) for group in groups]
    set_rate_factor(optimizer, scheduler, 1.0 / factor)
    for group, rate in zip(groups, present, strict=True):
        _put_rate(group, rate)


def rate_of(optimizer: Any, heights: Sequence[float] = ()) -> float:
    """The present learning rate, of the first group that is ever trained at any (`heights`: see `share_of`)."""
    return float(leading(optimizer, heights)[1]["lr"])


def base_rate(optimizer: Any, heights: Sequence[float] = ()) -> float | None:
    """The rate that the schedule makes others from, of that group; None where it makes them from the present one."""
    base = leading(optimizer, heights)[1].get("initial_lr")
    return None if base is None else float(base)


def share_of(optimizer: Any, scheduler: Any, heights: Sequence[float] = ()) -> float:
    """The present rate as a share of the schedule's height: below 1 in a warm-up and in a decay.

    Args:
        heights: of a schedule made of a function of the step, see `heights_of`; without them, 1.
    """
    (index, group), inner = leading(optimizer, heights), scheduler_itself(scheduler)
    rate = float(group["lr"])
    # A schedule made of several keeps no rate of its own, but each leaves it with the optimizer.
    full = group.get("initial_lr", next(iter(getattr(inner, "base_lrs", ())), rate))
    if "max_lr" in group:
        full = group["max_lr"]
    elif isinstance(inner, lr_scheduler.CyclicLR):
        full = inner.max_lrs[index]
    full = float(full) * (heights[index] if heights else 1.0)
    return rate / full if full else 1.0


def heights_of(scheduler: Any, steps: int) -> list[float]:
    """The largest value in a run of so many steps of each function that a `LambdaLR` multiplies a group's rate by.

    Mostly that is 1; a schedule in Noam's style has a rate of 1 and a function that is one itself. Empty for another
    schedule.
    """
    inner = scheduler_itself(scheduler)
    if not isinstance(inner, lr_scheduler.LambdaLR):
        return []
    return [_height(scale, steps) for scale in inner.lr_lambdas]


def _height(scale: Callable[[int], float], steps: int) -> float:
    seen: list[float] = []
    try:
        own = copy.deepcopy(scale)  # one that counts its calls must not hear of these
        seen.extend(float(own(step)) for step in range(0, steps + 1, 1 + steps // _LOOKED_AT))
    except Exception:
        # A table that is shorter than the run, which may well end before: what it said until there counts.
        log.debug("a function of the schedule ends at step %d of %d", len(seen), steps, exc_info=True)
    most = max(seen, default=1.0)
    # Between the steps that were looked at there may be a little more.
    return 1.0 if math.isclose(most, 1.0, rel_tol=0.01) else most


def set_elsewhere(optimizer: Any, scheduler: Any) -> bool:
    """Whether a rate is another one than the schedule last left there, since somebody else has set it."""
    last = getattr(scheduler_itself(scheduler), "_last_lr", None)
    groups = unwrapped(optimizer).param_groups
    if last is None or len(last) != len(groups):
        return False
    return not all(
        math.isclose(float(g["lr"]), float(r), rel_tol=1e-6) for g, r in zip(groups, last, strict=True)
    )


def falls_by_itself(scheduler: Any, begin: int, end: int) -> bool | None:
    """Whether a schedule's kind says that it lowers the rate between two steps of the run (from 1).

    Returns:
        None where its kind does not say it: `rehearsal.falls` tries it.
    """
    inner = scheduler_itself(scheduler)
    if inner is None:
        return False
    if isinstance(inner, lr_scheduler.LambdaLR):
        return any(scale(end - 1) < scale(begin - 1) for scale in inner.lr_lambdas)
    return True if any(name in _FALLING for name in _classes(inner)) else None


def _scale(scheduler: Any, optimizer: torch.optim.Optimizer, factor: float) -> None:
    # A SequentialLR or ChainedScheduler holds others, each with base rates of its own.
    for inner in getattr(scheduler, "_schedulers", ()):
        _scale(inner, optimizer, factor)
    own = [name for kind in _classes(scheduler) for name in _RATES.get(kind, ())]
    for name in ("base_lrs", *own):
        if hasattr(scheduler, name):
            setattr(scheduler, name, _times(getattr(scheduler, name), factor))
    if hasattr(scheduler, "_last_lr"):
        scheduler._last_lr = [_times(group["lr"], 1.0) for group in optimizer.param_groups]


def _times(rate: Any, factor: float) -> Any:
    """A rate, or a list of rates, multiplied."""
    return [_times(one, factor) for one in rate] if isinstance(rate, (list, tuple)) else rate * factor


def _classes(scheduler: Any) -> list[str]:
    return [kind.__name__ for kind in type(scheduler).__mro__]


def leading(optimizer: Any, heights: Sequence[float]) -> tuple[int, dict[str, Any]]:
    """The first group with a rate, and its number: one of weights that are kept as they are has 0 throughout.

    The same one at every step: by what rates are made from, not by the present ones, which a warm-up begins at 0.
    """
    groups = unwrapped(optimizer).param_groups
    for index, group in enumerate(groups):
        if group.get("initial_lr", group["lr"]) and (not heights or heights[index]):
            return index, group
    return 0, groups[0]


def scheduler_itself(scheduler: Any) -> Any:
    """The scheduler inside accelerate's wrapper."""
    return getattr(scheduler, "scheduler", scheduler)


class RateCheck:
    """Whether an optimizer's steps follow the rate in its groups, by their lengths before and after a change of it.

    A step of Adam, of Lion, of SGD is as long as the rate says, times what the gradients say; from one step to the next
    that is taken to vary by a factor of `e^SPREAD` (one standard deviation). Each change adds the log-likelihood ratio
    of "the length followed the rate" against "it did not" to the evidence.
    """

    SPREAD, SURE = 0.7, 6.0

    def __init__(self) -> None:
        self.evidence = 0.0
        self._before: tuple[float, float] | None = None

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, as JSON-ready values."""
        return {"evidence": self.evidence, "before": self._before}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the memory of `state()`."""
        self.evidence = state["evidence"]
        self._before = None if state["before"] is None else (state["before"][0], state["before"][1])

    @property
    def waiting(self) -> bool:
        """Whether the rate has changed, and the next step's length is to be seen."""
        return self._before is not None

    @property
    def settled(self) -> bool:
        """Whether enough was seen."""
        return abs(self.evidence) > self.SURE

    def changed(self, length: float, rate: float) -> None:
        """The rate was changed after a step of this length, which was taken at this rate."""
        if not self.settled and self._before is None and 0.0 < length < math.inf and rate > 0.0:
            self._before = length, rate

    def ignored(self, length: float, rate: float) -> bool:
        """Whether, by this step of this length at this rate and all before it, the rate is ignored.

        A step without any length (no reward differed from another one) says nothing, and the next is waited for.
        """
        if self._before is None or not (length > 0.0 and rate > 0.0 and math.isfinite(length)):
            return False
        expected, found = math.log(rate / self._before[1]), math.log(length / self._before[0])
        self.evidence += expected * (found - expected / 2) / self.SPREAD**2
        self._before = None
        return self.evidence < -self.SURE
