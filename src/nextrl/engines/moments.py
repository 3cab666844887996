"""A copy of all that a step changes beside the adapter: the optimizer's state, and what is trained beside it.

Whoever takes something back, be it `auto` a step or a window or a named method its leap, puts such a copy back with the
adapter. How the state of one optimizer is copied is in `optimizer_state`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from nextrl.engines.optimizer_state import copied, put_back
from nextrl.engines.optimizers import unwrapped

Moments = list[dict[str, Any]]
"""One dict per optimizer parameter, in the order of its groups: name of the state -> what it is (`optimizer_state`).

A parameter that is trained beside the adapter (`modules_to_save`) has its value there as well, under `VALUE`."""

VALUE = "nextrl_value"


def unsharded(live: Mapping[str, Any]) -> bool:
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
