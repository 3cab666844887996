"""Numbers that a user's Python hands in, of whatever library; what is none is an `InputError` in one line.

Each reader takes an argument's name and what was given for it. The public functions and the table of `LeapCallback`'s
arguments read with them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nextrl.errors import InputError, shown

Kind = Callable[[str, Any], Any]
"""(an argument's name, what was given) -> what is gone on with, or an InputError."""

MAX_SEED = 2**32 - 1
"""numpy's; torch would take more."""


def integer_from(least: int, most: int | None = None) -> Kind:
    """A whole number, of whatever library; 10.0 is one."""

    def read(name: str, value: Any) -> int:
        number = integer(name, value)
        if number < least:
            raise InputError(f"{name} must be at least {least}, not {shown(number)}")
        if most is not None and number > most:
            raise InputError(f"{name} must be at most {most}, not {shown(number)}")
        return number

    return read


def integer(name: str, value: Any) -> int:
    """A whole number of any sign, of whatever library."""
    found = _int(value)
    if found is None:
        raise InputError(f"{name} must be a whole number, not {shown(value)}")
    return found


def number(name: str, value: Any) -> float:
    """A number, of whatever library, and not NaN."""
    found = _float(value)
    if found is None:
        raise InputError(f"{name} must be a number, not {shown(value)}")
    return found


def several(kind: Kind) -> Kind:
    """One or more of a kind; a single one may stand by itself."""

    def read(name: str, value: Any) -> tuple[Any, ...]:
        if isinstance(value, str | bytes | Mapping):
            raise InputError(f"{name} must be a list of numbers, not {shown(value)}")
        try:
            values = tuple(value)
        except TypeError:
            return (kind(name, value),)
        if not values:
            raise InputError(f"{name} is empty: name at least one, or leave {name}= out")
        return tuple(kind(f"each of {name}", one) for one in values)

    return read


def _float(value: Any) -> float | None:
    """The number that a value is; None where it is none, or NaN."""
    if isinstance(value, bool | np.bool_ | str | bytes):
        return None
    try:
        found = float(value)
    # A RuntimeError is torch's, of more than one number.
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return None if math.isnan(found) else found


def _int(value: Any) -> int | None:
    """The whole number that a value is; None where it is none."""
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)
    except TypeError:
        found = _float(value)
    return int(found) if found is not None and found.is_integer() else None
