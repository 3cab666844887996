"""Things that users choose by name: a registry, and an error that offers the nearest name that there is.

Extrapolators, tasks, verifiers, base models, algorithms, optimizers and checkpoint layouts are each kept in one. This
file stands below every room that keeps such names: it imports nothing but `errors`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from nextrl.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
    """Values by name, in the order in which they were added.

    Args:
        kind: what a value is, as an error message says it ("method", "task").
        entries: what is known from the start.
    """

    def __init__(self, kind: str, entries: Mapping[str, T] | None = None) -> None:
        self.kind = kind
        self._entries = dict(entries or {})

    def add(self, name: str, value: T) -> None:
        """Make `value` known under `name`, in place of what was known under it before."""
        self._entries[name] = value

    def names(self) -> tuple[str, ...]:
        """Every name, in the order in which they were added."""
        return tuple(self._entries)

    def get(self, name: str) -> T:
        """The value of that name.

        Raises:
            InputError: there is none; the message offers the nearest name and lists all.
        """
        if name not in self._entries:
            raise self.unknown(name)
        return self._entries[name]

    def unknown(self, name: str, *, known: Iterable[str] | None = None, otherwise: str = "") -> InputError:
        """The error for a name that is not known, to be raised by a caller who has looked elsewhere too.

        Args:
            name: what was asked for.
            known: the names to offer, where they are not just those of this registry.
            otherwise: what the user could have given instead of a name, "a local folder".
        """
        known = self.names() if known is None else tuple(known)
        hint = f" {said}" if (said := did_you_mean(name, known)) else ""
        rest = f"; or give {otherwise}" if otherwise else ""
        return InputError(f"unknown {self.kind} '{name}';{hint} known: {', '.join(known)}{rest}")

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def either(names: Iterable[str]) -> str:
    """Names of which one is to be chosen, as a sentence lists them: "a, b or c"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is most likely a misspelling of, or None where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return close[0] if close else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The question that offers the nearest name, or `otherwise` where none is close."""
    near = nearest(name, known)
    return otherwise if near is None else f"did you mean {near}?"


def unknown(name: str, known: Sequence[str]) -> str:
    """One clause about a name that is not known: the nearest that is, or all of them."""
    choose = f"choose {', '.join(known)}"
    return f"'{name}' is unknown; {did_you_mean(name, known, choose)}"
