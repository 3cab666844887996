"""Taking a leap back: what a run was before it, and whether the training reward says it should be so again.

Held-out prompts accept a leap; the next window of training can still show that it was none. A rollback costs no
completions: it restores the adapter, the learning rate and Adam's moments as they were, and the window that showed it
is lost. `auto` takes back steps and windows with the same two functions for moments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nextrl.engines.live_weights import State
from nextrl.engines.optimizer_state import copied, put_back
from nextrl.engines.optimizers import unwrapped
from nextrl.judge.few_samples import normal_of_t
from nextrl.judge.window import Window

Moments = list[dict[str, Any]]
"""One dict per optimizer parameter, in the order of its groups: name of the state -> what it is (`optimizer_state`).

A parameter that is trained beside the adapter (`modules_to_save`) has its value there as well, under `VALUE`."""

VALUE = "nextrl_value"


@dataclass
class Snapshot:
    """The run before a leap.

    Attributes:
        step: when the leap was made.
        alpha: what it was.
        steps: optimizer steps that it claimed to save.
        factor: product of all changes of the learning rate until then.
        reward, variance: mean training reward of the window before, and its squared standard error.
        state: the adapter's factors.
        moments: the optimizer's state.
        measured: steps of that window whose reward was measured.
    """

    step: int
    alpha: float
    steps: float
    factor: float
    reward: float
    variance: float
    state: State
    moments: Moments
    measured: int

    def fell(self, window: Window, fall: float, errors: float) -> bool:
        """Whether the window after the leap earned less than the one before it, past noise and past what matters.

        The noise of a step is taken to be the same in both windows (Student's test), so that one measured step on
        either side can be compared with several on the other. One against one proves nothing.

        Args:
            window: the first whole window after the leap.
            fall: smallest fall that matters; a share of the reward's size where that is above 1.
            errors: standard errors of the difference that the fall must exceed, on the scale of a standard normal.
        """
        before, after = self.measured, window.measured
        lost, degrees = self.reward - window.reward, before + after - 2
        # NaN (nothing measured) compares as False.
        if degrees < 1 or not lost > fall * max(1.0, abs(self.reward)):
            return False
        squares = _squares(self.variance, before) + _squares(window.variance, after)
        error = math.sqrt(squares / degrees * (1 / before + 1 / after))
        return normal_of_t(lost / error if error else math.inf, degrees) > errors


def _squares(variance: float, count: int) -> float:
    """Sum of squared deviations of so many steps, from the squared standard error of their mean."""
    return variance * count * (count - 1) if count > 1 else 0.0


def whole(live: Mapping[str, Any]) -> bool:
    """Whether each process holds whole parameters, and so whole moments: those cut in pieces are not taken back."""
    cut = ("full_tensor", "ds_id", "_hp_mapping")
    return not any(hasattr(p, name) for p in live.values() for name in cut)


def parameters(optimizer: Any) -> list[Tensor]:
    """The optimizer's parameters in the order of its groups."""
    inner = unwrapped(optimizer)
    return [p for group in inner.param_groups for p in group["params"]]


def trained_beside(optimizer: Any, adapter: Iterable[Tensor]) -> list[Tensor]:
    """What the optimizer trains beside the adapter (`modules_to_save`).

    An optimizer over all of a model's parameters holds the frozen ones, too: those are not among them.
    """
    own = {id(p) for p in adapter}
    return [p for p in parameters(optimizer) if p.requires_grad and id(p) not in own]


def read_moments(optimizer: Any, adapter: Iterable[Tensor] | None = None) -> Moments:
    """A copy of the optimizer's state, and of the numbers in its groups, in the CPU's memory.

    Up to four are kept at a time, for which a GPU that trains a large model has no room.

    Args:
        adapter: parameters whose values are kept elsewhere; those of what is trained beside them are kept here. None
            keeps no values.

    Raises:
        InputError: see `optimizer_state.copied`.
    """
    every = parameters(optimizer)
    beside = set() if adapter is None else {id(p) for p in trained_beside(optimizer, adapter)}
    return [
        kept | ({VALUE: p.detach().to("cpu", copy=True)} if id(p) in beside else {})
        for p, kept in zip(every, copied(optimizer, every), strict=True)
    ]


def values_of(moments: Moments) -> list[Tensor]:
    """The values in a copy of what is trained beside the adapter, in the order of `trained_beside`."""
    return [kept[VALUE] for kept in moments if VALUE in kept]


@torch.no_grad()
def write_moments(optimizer: Any, moments: Moments) -> None:
    """Put a copy back, in place: whoever holds the tensors keeps holding them; an empty list changes nothing."""
    if not moments:
        return
    every = parameters(optimizer)
    for p, kept in zip(every, moments, strict=True):
        if VALUE in kept:
            p.copy_(kept[VALUE])
    put_back(optimizer, every, [{k: v for k, v in kept.items() if k != VALUE} for kept in moments])
