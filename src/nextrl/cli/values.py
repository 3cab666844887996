"""What an option may be, beyond what its type says: callbacks that every verb gives to typer, run before the verb."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nextrl.errors import InputError, shown
from nextrl.files import MAX_STEP, MAX_UPDATES, finite, in_range, usable_path

MAX_PROMPTS = 10**7
MAX_RANK = 2**16


def path(value: Path | None) -> Path | None:
    """A path, `~` resolved.

    Raises:
        InputError: it is none that a file system could have.
    """
    return None if value is None else usable_path(value)


def place(value: str | None) -> str | None:
    """A model: a name, or a path as `path` takes it."""
    return None if value is None else str(usable_path(value))


def _integer(what: str, low: int, high: int = MAX_STEP) -> Callable[[int | None], int | None]:
    """A whole number, where one is given."""

    def checked(value: int | None) -> int | None:
        return None if value is None else in_range(value, what, low, high)

    return checked


steps = _integer("a horizon", 1)
updates = _integer("--updates-per-step", 1, MAX_UPDATES)
step = _integer("--at", 0)
start = _integer("--start", 0)
rank = _integer("--rank", 1, MAX_RANK)


def every_step(value: list[int] | None) -> list[int] | None:
    """Numbers of steps ahead."""
    return None if value is None else [in_range(step, "--horizon", 1) for step in value]


def temperature(value: float) -> float:
    """A sampling temperature; NaN passes every `min` and `max` of typer's."""
    return finite(value, "--temperature", 0.01, 1000)


def level(value: float | None) -> float | None:
    """A number of standard errors."""
    return None if value is None else finite(value, "--level", 0, 1000)


def beta1(value: float | None) -> float | None:
    """Adam's beta1.

    Raises:
        InputError: it is not in [0, 1).
    """
    if value is not None and not 0.0 <= value < 1.0:
        raise InputError(f"--beta1 must be at least 0 and below 1, not {shown(value)}")
    return value


def lengths(value: str | None) -> str | None:
    """Comma-separated numbers of steps.

    Raises:
        InputError: one of them is none.
    """
    for part in [] if value is None else value.split(","):
        if not (part.strip().isdecimal() and len(part) < 20 and 1 <= int(part) <= MAX_STEP):
            raise InputError(f"--windows {shown(value)}: must be whole numbers of steps, like 10,20,50")
    return value


def refuse_given(whose: str, options: Mapping[str, Any]) -> None:
    """Refuse options that nothing would read.

    Args:
        whose: what they belong to, "of --push-to-hub".
        options: name -> value; None, and False of a switch, where it was not given.

    Raises:
        InputError: one of them was given.
    """
    for name, value in options.items():
        if value is not None and value is not False:
            raise InputError(f"--{name} is {whose}: leave it out")
