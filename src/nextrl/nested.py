"""Dictionaries and lists inside each other: as JSON may hold them, and flattened to dotted keys."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any


def json_ready(value: Any) -> Any:
    """The value in JSON's own types: string keys, tuples as lists, and null for the numbers that JSON lacks."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of nested settings, the keys joined by dots: {"train": {"seed": 0}} gives ("train.seed", 0)."""
    for key, item in settings.items():
        if isinstance(item, Mapping):
            yield from dotted(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item
