"""A method's own parameters: which there are, whether values are of their kinds, and values written as text.

The parameters are those of the class's constructor, which a dataclass makes of its fields. The range of a number is
part of its annotation, in pydantic's words: `rank: Annotated[int, Field(ge=1)] = 1`.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
import typing
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import TypeAdapter, ValidationError

from nextrl.errors import InputError, shown
from nextrl.registry import did_you_mean
from nextrl.scalars import integer, number

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "none"}


def accepted(method: type) -> dict[str, tuple[Any, ...]] | None:
    """Parameter -> the kinds that it may be of, empty where nothing is said; None where any name is taken."""
    try:
        given = inspect.signature(method).parameters.values()
    except ValueError:  # a class whose constructor is not Python's own
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in given):
        return None
    hints = _hints(method)
    named = [parameter for parameter in given if parameter.kind is not parameter.VAR_POSITIONAL]
    return {parameter.name: _kinds(parameter, hints) for parameter in named}


def checked(name: str, method: type, params: Mapping[str, Any]) -> dict[str, Any]:
    """A method's parameters as they were given, each of its kind.

    Args:
        name: the method's.
        method: its class.
        params: parameter -> value, a number of whatever library.

    Raises:
        InputError: the method has no such parameter (the message lists those it has), or a value is of another kind or
            out of its range.
    """
    known = accepted(method)
    if known is None:
        return dict(params)
    for unknown in (parameter for parameter in params if parameter not in known):
        raise _unknown(name, unknown, known)
    read = {key: _value(f"method {name!r}: {key}", value, known[key]) for key, value in params.items()}
    for key, value in read.items():
        _check_range(f"method {name!r}: {key}", method, key, value)
    return read


def check_ranges(method: object) -> None:
    """See that the numbers that a method was built with lie in their ranges.

    Raises:
        InputError: one does not.
    """
    kind = type(method)
    name = str(getattr(method, "name", kind.__name__))
    for key in _ranges(kind):
        _check_range(f"method {name!r}: {key}", kind, key, getattr(method, key, None))


def _check_range(what: str, method: type, key: str, value: Any) -> None:
    range_ = _ranges(method).get(key)
    if range_ is None:
        return
    said = "must be finite" if value in (math.inf, -math.inf) else ""
    try:
        range_.validate_python(value)
    except ValidationError as error:
        said = error.errors()[0]["msg"].replace("Input should be", "must be")
    if said:
        raise InputError(f"{what} {said}, not {shown(value)}")


def from_text(name: str, method: type, texts: Sequence[str]) -> dict[str, Any]:
    """A method's parameters written as `key=value`; a value is read by the kind of its parameter.

    Args:
        name, method: as `checked` takes them.
        texts: one parameter each; the last of a key counts.

    Raises:
        InputError: a text is no `key=value`, the method has no such parameter, or the value is of another kind.
    """
    known, found = accepted(method), {}
    for text in texts:
        key, value = split(text)
        if known is not None and key not in known:
            raise _unknown(name, key, known)
        found[key] = _read(f"method {name!r}: {key}", value, () if known is None else known[key])
    return found


def split(text: str) -> tuple[str, str]:
    """(key, value) of `key=value`.

    Raises:
        InputError: it is none.
    """
    key, sign, value = text.partition("=")
    if not (key.strip() and sign and value.strip()):
        raise InputError(f"--param {shown(text)}: must be key=value, as in rank=2")
    return key.strip(), value.strip()


def _unknown(name: str, key: str, known: Mapping[str, Any]) -> InputError:
    hint = f" {said}" if (said := did_you_mean(key, known)) else ""
    there = f"it takes {', '.join(known)}" if known else "it takes none"
    return InputError(f"method {name!r} has no parameter {shown(key)};{hint} {there}")


def _hints(method: type, *, extras: bool = False) -> dict[str, Any]:
    try:
        return typing.get_type_hints(method.__init__, include_extras=extras)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):  # of what is imported for type checkers only
        return {}


def _ranges(method: type) -> dict[str, TypeAdapter[Any]]:
    return _ranges_of(cast(Hashable, method))


@functools.cache
def _ranges_of(method: Any) -> dict[str, TypeAdapter[Any]]:
    """Parameter -> what its annotation says of it beyond its kind, for those of which it says something."""
    said = {key: tuple(_metadata(hint)) for key, hint in _hints(method, extras=True).items()}
    # The kind is read by `checked`, which takes any library's numbers; pydantic would take Python's alone.
    return {key: TypeAdapter(Annotated[Any | None, *found]) for key, found in said.items() if found}


def _metadata(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) is Annotated:
        yield from hint.__metadata__
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for one in typing.get_args(hint):
            yield from _metadata(one)


def _kinds(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> tuple[Any, ...]:
    hint, default = hints.get(parameter.name), parameter.default
    if hint is None:
        return () if default is parameter.empty or default is None else (type(default),)
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _choices(kinds: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(v for kind in kinds if typing.get_origin(kind) is Literal for v in typing.get_args(kind))


def _plain(kinds: Sequence[Any]) -> bool:
    """Whether a value's kind can be told: numbers, truth values, text, none, and named choices."""
    return bool(kinds) and all(kind in _KINDS or typing.get_origin(kind) is Literal for kind in kinds)


def _value(what: str, value: Any, kinds: Sequence[Any]) -> Any:
    if not _plain(kinds):
        return value
    if (value is None and type(None) in kinds) or (isinstance(value, bool) and bool in kinds):
        return value
    if isinstance(value, str):
        if value in _choices(kinds) or str in kinds:
            return value
        raise InputError(f"{what} must be {_said(kinds)}, not {shown(value)}")
    for kind, read in ((int, integer), (float, number)):
        if kind in kinds:
            try:
                return read(what, value)
            except InputError:
                continue
    if value in _choices(kinds):
        return value
    raise InputError(f"{what} must be {_said(kinds)}, not {shown(value)}")


def _read(what: str, text: str, kinds: Sequence[Any]) -> Any:
    if not kinds:
        return text
    if type(None) in kinds and text.lower() in ("none", "null"):
        return None
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                continue
    if str in kinds or text in _choices(kinds):
        return text
    if not any(kind in _KINDS and kind is not type(None) for kind in kinds) and not _choices(kinds):
        raise InputError(f"{what} cannot be written as text: give it in Python")
    raise InputError(f"{what} must be {_said(kinds)}, not {shown(text)}")


def _said(kinds: Sequence[Any]) -> str:
    """The kinds in words, as a message lists them."""
    named = [_KINDS[kind] for kind in kinds if kind in _KINDS]
    return " or ".join([*map(str, _choices(kinds)), *named])
