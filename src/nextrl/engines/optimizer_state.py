"""Copies of an optimizer's state: all of it, whatever shape it has, put back in place, and as it is saved.

Adam keeps tensors and numbers for each parameter. Shampoo and SOAP keep lists of tensors there, and Prodigy the size of
its steps (`d`) in the groups, so that a step taken back with the moments alone would leave `d` grown by it. A group's
numbers travel with the state of its first parameter, and so does a state that lies under no parameter but under a name,
as PEFT's LoRA-FA keeps all of its own (peft/optimizers/lorafa.py). Not among them is what others set there: the rate
and what schedules make it from, momenta (`OneCycleLR` cycles them) and weight decay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nextrl.engines.optimizers import unwrapped
from nextrl.engines.sharded import local
from nextrl.errors import InputError

GROUP = "nextrl_group/"
"""What the names of a group's numbers begin with, in the copy of its first parameter's state."""

NAMED = "nextrl_named"
"""What the states that lie under names are called in the copy of the first parameter's."""

_SET_BY_OTHERS = ("lr", "momentum")  # as the last part of a name: `initial_lr`, `max_momentum` ...
_PLAIN = (bool, int, float, str)


def copied(optimizer: Any, parameters: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Copies, in the CPU's memory, of the state of each of these parameters, and of their groups' numbers.

    Of tensors in pieces it is this process's piece.

    Raises:
        InputError: the state holds something that can neither be copied nor saved.
    """
    inner = unwrapped(optimizer)
    kept = [
        {name: _copy(inner, name, value) for name, value in inner.state.get(p, {}).items()}
        for p in parameters
    ]
    for group, first in _groups(inner, parameters):
        kept[first] |= {
            GROUP + name: _copy(inner, name, value) for name, value in group.items() if _is_own(name, value)
        }
    if kept and (named := _named(inner)):
        kept[0][NAMED] = _copy(inner, NAMED, named)
    return kept


@torch.no_grad()
def put_back(optimizer: Any, parameters: Sequence[Tensor], copies: Sequence[Mapping[str, Any]]) -> None:
    """Make the state what it was when it was copied; whoever holds a tensor of it keeps holding it."""
    inner = unwrapped(optimizer)
    for group, first in _groups(inner, parameters):
        for name, value in copies[first].items():
            if name.startswith(GROUP):
                own = name.removeprefix(GROUP)
                group[own] = _put(group.get(own), value, parameters[first])
    for p, kept in zip(parameters, copies, strict=True):
        state = {name: value for name, value in kept.items() if name != NAMED and not name.startswith(GROUP)}
        # A parameter without any had taken no step yet, and its state is made anew at the next one.
        if state or p in inner.state:
            _put(inner.state[p], state, p)
    if copies:
        _put_named(inner, copies[0].get(NAMED, {}), parameters[0])


def _put_named(inner: Any, kept: Mapping[Any, Mapping[str, Any]], p: Tensor) -> None:
    for name in _named(inner).keys() - kept.keys():  # made since
        del inner.state[name]
    for name, state in kept.items():
        inner.state[name] = _put(inner.state.get(name), state, p)


def _named(inner: Any) -> dict[Any, dict[str, Any]]:
    """The states that lie under names, not under parameters."""
    return {key: state for key, state in inner.state.items() if isinstance(key, _PLAIN)}


def took_gradient(optimizer: Any, parameters: Sequence[Tensor], copies: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a gradient has come into the state since it was copied.

    At a step whose gradient is 0 moments decay, in a group all by the same factor, and those that there were none of
    begin with 0. So what is looked for are tensors that are no such part of what they were, but for rounding. Step
    counts say nothing.

    Args:
        optimizer, parameters, copies: see `put_back`.
    """
    inner = unwrapped(optimizer)
    kept = {id(p): copy for p, copy in zip(parameters, copies, strict=True)}
    groups = [
        [(inner.state.get(p, {}), kept[id(p)]) for p in group["params"] if id(p) in kept]
        for group in inner.param_groups
    ]
    named = copies[0].get(NAMED, {}) if copies else {}
    groups.append([(state, named.get(name, {})) for name, state in _named(inner).items()])
    return not all(_only_decayed(states) for states in groups)


def _only_decayed(states: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> bool:
    """Whether each kind of tensor in the states of a group is what it was times one number; see `took_gradient`."""
    pairs: dict[str, list[tuple[Tensor, Tensor | None]]] = {}
    for now, before in states:
        for name, value in now.items():
            if isinstance(value, Tensor) and value.dim() and value.is_floating_point():
                pairs.setdefault(name, []).append((local(value), before.get(name)))
    return all(_decayed(found) for found in pairs.values())


def _decayed(pairs: Sequence[tuple[Tensor, Tensor | None]]) -> bool:
    """Whether tensors are what they were times one number from 0 to 1, but for rounding; new ones: all 0."""
    new = old = along = rounding = 0.0
    for now, before in pairs:
        if not isinstance(before, Tensor) or before.shape != now.shape:
            if bool(now.any()):
                return False
            continue
        one, other = now.double().flatten(), before.to(now.device).double().flatten()
        new, old, along = new + float(one @ one), old + float(other @ other), along + float(one @ other)
        rounding = max(rounding, 4.0 * torch.finfo(now.dtype).eps)
    if not old:
        return not new
    shrunk = along >= 0.0 and new <= (1.0 + rounding) ** 2 * old
    return shrunk and new - along**2 / old <= rounding**2 * new


def split(copies: Sequence[Mapping[str, Any]], prefix: str) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Copies as JSON-ready values, one dict per parameter, and tensors by name.

    Tensors are named `prefix/I/KEY`, those inside a list, a tuple or a dict `prefix/I/KEY/J...`, and stand in the JSON
    as `{"tensor": name}`.
    """
    tensors: dict[str, Tensor] = {}
    values: list[dict[str, Any]] = []
    for index, kept in enumerate(copies):
        packed = {name: _packed(value, f"{prefix}/{index}/{name}", tensors) for name, value in kept.items()}
        values.append({name: value for name, value in packed.items() if not isinstance(kept[name], Tensor)})
    return values, tensors


def joined(
    values: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor], prefix: str
) -> list[dict[str, Any]]:
    """The copies that were `split`.

    Raises:
        KeyError, TypeError, ValueError: they are not what `split` makes.
    """
    copies: list[dict[str, Any]] = []
    for index, plain in enumerate(values):
        own = {name: t.clone() for name, t in tensors.items() if name.startswith(f"{prefix}/{index}/")}
        kept = {name: _unpacked(value, own) for name, value in plain.items()}
        copies.append(kept | {name.removeprefix(f"{prefix}/{index}/"): t for name, t in own.items()})
    return copies


def _groups(inner: Any, parameters: Sequence[Tensor]) -> list[tuple[dict[str, Any], int]]:
    """Each group with the place of its first parameter among these; without those that have none."""
    places = {id(p): place for place, p in reversed(list(enumerate(parameters)))}
    firsts = (
        (group, [places[id(p)] for p in group["params"] if id(p) in places]) for group in inner.param_groups
    )
    return [(group, found[0]) for group, found in firsts if found]


def _is_own(name: str, value: Any) -> bool:
    """Whether a number in a group may be the optimizer's own, which its steps change."""
    others = name.split("_")[-1] in _SET_BY_OTHERS or name in ("params", "weight_decay")
    return not others and (
        isinstance(value, Tensor) or (isinstance(value, (int, float)) and not isinstance(value, bool))
    )


def _copy(inner: Any, name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        return local(value).to("cpu", copy=True)
    if isinstance(value, dict) and all(key is None or isinstance(key, _PLAIN) for key in value):
        return {key: _copy(inner, name, part) for key, part in value.items()}
    if isinstance(value, list) or _is_tuple(value):
        parts = [_copy(inner, name, part) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    if value is None or isinstance(value, _PLAIN):
        return value
    raise InputError(
        f"{type(inner).__name__} keeps a {type(value).__name__} in its state ({name}), which can neither be copied nor "
        "saved, so that nothing could be taken back: train with another optimizer (adamw_torch), or leave "
        "LeapCallback out"
    )


def _is_tuple(value: Any) -> bool:
    """A plain one: of a named tuple nothing says how to make it again."""
    return isinstance(value, tuple) and not hasattr(value, "_fields")


def _put(now: Any, kept: Any, p: Tensor) -> Any:
    """What is to stand where `now` does: `now` itself with the copy's values, wherever it can take them."""
    if isinstance(kept, Tensor):
        if isinstance(now, Tensor) and local(now).shape == kept.shape:
            local(now).copy_(kept)
            return now
        # Where an optimizer would have made it: moments lie where the parameter does, step counts on the CPU.
        return kept.to(p.device if kept.dim() else kept.device, copy=True)
    if isinstance(kept, dict):
        held = now if isinstance(now, dict) else {}
        parts = {key: _put(held.get(key), value, p) for key, value in kept.items()}
        held.clear()
        held.update(parts)
        return held
    if isinstance(kept, (list, tuple)):
        there = list(now) if isinstance(now, (list, tuple)) else []
        there += [None] * (len(kept) - len(there))
        values = [_put(old, value, p) for old, value in zip(there, kept, strict=False)]
        if isinstance(kept, list) and isinstance(now, list):
            now[:] = values
            return now
        return values if isinstance(kept, list) else tuple(values)
    return kept


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; its tensors go to `tensors`."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        parts = [[key, _packed(part, f"{name}/{i}", tensors)] for i, (key, part) in enumerate(value.items())]
        return {"dict": parts}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_packed(part, f"{name}/{i}", tensors) for i, part in enumerate(value)]}
    return value


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The reverse; the tensors that it takes are gone from `tensors` then. Earlier versions packed nothing."""
    if (
        not isinstance(value, dict)
        or len(value) != 1
        or not value.keys() <= {"tensor", "dict", "list", "tuple"}
    ):
        return value
    kind, content = next(iter(value.items()))
    if kind == "tensor":
        return tensors.pop(content)
    if kind == "dict":
        return {key: _unpacked(part, tensors) for key, part in content}
    parts = [_unpacked(part, tensors) for part in content]
    return parts if kind == "list" else tuple(parts)
