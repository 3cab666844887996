"""A trainer's optimizer: inside its wrapper, and whether a leap would stay under it and its rate can be set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch

from nextrl.errors import InputError

T = TypeVar("T")

HOLDS_WEIGHTS = {
    "ScheduleFree": "the point z that it steps from, and the average x that a run ends with",
    "Lookahead": "the slow weights that it goes back to",
}
"""A part of the class's name -> what such an optimizer holds besides moments."""


def unwrapped(optimizer: Any) -> Any:
    """The optimizer inside accelerate's wrapper, or what was given."""
    return getattr(optimizer, "optimizer", optimizer)


def held_in(holder: Any, kind: type[T]) -> list[T]:
    """What an object holds of a kind, in its attributes and in the lists, tuples and dicts there."""
    return [
        one
        for value in getattr(holder, "__dict__", {}).values()
        for one in _parts(value)
        if isinstance(one, kind)
    ]


def _parts(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, dict):
        yield from value.values()


def check_optimizer(optimizer: Any) -> None:
    """See that an optimizer's weights are the model's alone, that its state is its own, and that it has a rate.

    A leap moves the weights in the model. A second copy of them in the optimizer's state stays behind, and the next
    steps draw the model back to it: under schedule-free AdamW (Defazio et al., 2405.15682) half of a leap was gone
    after six steps.

    What is taken back goes back with the optimizer's state. One that steps through others inside it leaves it to them,
    and what it shows itself is empty: moments would stay where weights go back.

    Args:
        optimizer: the trainer's, or accelerate's wrapper around it.

    Raises:
        InputError: it keeps weights of its own, makes its rate itself, has moments that cannot be copied, or leaves
            them to other optimizers.
    """
    inner = unwrapped(optimizer)
    names = [kind.__name__ for kind in type(inner).__mro__]
    for part, held in HOLDS_WEIGHTS.items():
        if any(part in name for name in names):
            raise InputError(
                f"{type(inner).__name__} keeps weights of its own ({held}), which a leap would not move, so that the "
                "next steps would undo it: leave LeapCallback out, or train with another optimizer (adamw_torch)"
            )
    if any(kind.__module__.partition(".")[0] == "torchao" for kind in type(inner).__mro__):
        raise InputError(
            f"{type(inner).__name__} of torchao keeps moments that can neither be copied nor saved, so that nothing "
            "could be taken back: use bitsandbytes' (adamw_8bit) or adamw_torch, or leave LeapCallback out"
        )
    if hidden := _keep_its_state(inner):
        raise InputError(
            f"{type(inner).__name__} steps through optimizers inside it ({', '.join(hidden)}), which keep the moments, "
            "so that a step taken back would leave these as they are: train with one optimizer that keeps all of its "
            "state itself (adamw_torch), or leave LeapCallback out"
        )
    groups = getattr(inner, "param_groups", ())
    if any(group.get("lr") is None or group.get("relative_step") for group in groups):
        raise InputError(
            f"{type(inner).__name__} makes its own learning rate (relative_step), which nobody else can set or read: "
            "give it one (Adafactor: lr=1e-3, relative_step=False), or leave LeapCallback out"
        )


def _keep_its_state(inner: Any) -> list[str]:
    """The classes of optimizers inside this one that have a state of their own.

    Where it shows their state as its own, as DeepSpeed's do, what is copied is all of it.
    """
    shown = getattr(inner, "state", None)
    hidden = (one for one in held_in(inner, torch.optim.Optimizer) if one.state is not shown)
    return sorted({type(one).__name__ for one in hidden})
