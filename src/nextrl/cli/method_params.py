"""`--param key=value`: a method's own parameters, for the verbs that fit methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from nextrl.errors import InputError
from nextrl.extrapolators import Extrapolator, get
from nextrl.extrapolators.base import class_of, params_from_text
from nextrl.extrapolators.parameters import accepted, split

Params = Annotated[
    list[str] | None,
    typer.Option("--param", metavar="KEY=VALUE", help="A parameter of the method's own; repeat for several."),
]


def params_of(method: str | None, texts: Sequence[str] | None) -> dict[str, Any]:
    """The parameters of the method that a verb was given.

    Raises:
        InputError: no method was named, or it has no such parameter, or not of that kind.
    """
    if not texts:
        return {}
    if method is None:
        raise InputError("--param is of one method: name it with --method")
    return params_from_text(method, texts)


def methods_with(named: str | None, texts: Sequence[str] | None) -> str | list[Extrapolator] | None:
    """The methods of a comma-separated list, each with those of the parameters that it has; the list where none is.

    Raises:
        InputError: no methods were named, none of them has a parameter, or a value is of another kind.
    """
    if not texts:
        return named
    if named is None:
        raise InputError("--param is of named methods: name them with --methods")
    names = [name.strip() for name in named.split(",") if name.strip()]
    have = {name: accepted(class_of(name)) for name in names}
    for text in texts:
        key, _ = split(text)
        if not any(known is None or key in known for known in have.values()):
            listed = "; ".join(
                f"{name}: {', '.join(known) or 'none'}" for name, known in have.items() if known is not None
            )
            raise InputError(f"--param {key}: no method named has such a parameter ({listed})")
    return [get(name, **params_from_text(name, _own(texts, known))) for name, known in have.items()]


def _own(texts: Sequence[str], known: dict[str, Any] | None) -> list[str]:
    return [text for text in texts if known is None or split(text)[0] in known]
