"""The names of tasks that come from somewhere: `SOURCE`, or `SOURCE?key=value&key=value`.

`data.jsonl:math?tokens=64` and `reasoning_gym:gcd?shots=4` are such names. Options are read here, so that an
unknown one is refused in the same words everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nextrl.errors import InputError, shown
from nextrl.registry import unknown

Value = int | float | bool | str

MAX_LENGTH = 1_000_000
"""Tokens of a completion; contexts of models end there."""


@dataclass(frozen=True)
class TaskName:
    """A task's name, taken apart.

    Attributes:
        full: as written.
        source: what stands before the first `?`.
        options: what stands after it.
    """

    full: str
    source: str
    options: Mapping[str, Value]

    def integer(self, key: str, default: int, least: int, most: int | None = None) -> int:
        """An option that counts something.

        Raises:
            InputError: it is no whole number, below `least` or above `most`.
        """
        value = self.options.get(key, default)
        found = isinstance(value, int) and not isinstance(value, bool)
        if not found or value < least or (most is not None and value > most):  # type: ignore[operator]
            bound = "" if most is None else f" and at most {most}"
            raise InputError(
                f"task '{self.full}': {key} must be a whole number of at least {least}{bound}, not {shown(value)}"
            )
        return int(value)

    def only(self, *known: str) -> None:
        """Check that no other options were given.

        Raises:
            InputError: one was.
        """
        for key in self.options:
            if key not in known:
                raise InputError(f"task '{self.full}': option {unknown(key, known)}")


def parse(name: str) -> TaskName:
    """Take a name apart.

    Raises:
        InputError: an option is not of the form key=value, or given twice.
    """
    source, _, query = name.partition("?")
    options: dict[str, Value] = {}
    for part in query.split("&") if query else []:
        key, equals, text = part.partition("=")
        if not key or not equals or not text:
            raise InputError(
                f"task '{name}': '{part}' is not an option; write key=value, several joined by &"
            )
        if key in options:
            raise InputError(f"task '{name}': option '{key}' is given twice")
        options[key] = _value(text)
    return TaskName(name, source, options)


def _value(text: str) -> Value:
    """The option's text as a number or a truth value where it reads as one."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
