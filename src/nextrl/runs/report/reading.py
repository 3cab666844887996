"""Read a result that may be partial: an arm without greedy accuracy, a null, a key that an older run did not write.

The page must come out of whatever a stopped or older run left, so every reader here answers with nothing instead
of raising; `write_report` alone refuses what is not a result at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def number(value: Any) -> float | None:
    """`value` as a finite float, else None (strings, booleans, NaN and infinities included)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def numbers(value: Any, length: int) -> list[float | None]:
    """A list of exactly `length` entries: `value`'s numbers, cut or filled up with None."""
    items = [number(item) for item in value[:length]] if isinstance(value, list | tuple) else []
    return items + [None] * (length - len(items))


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def records(value: Any) -> Sequence[Mapping[str, Any]]:
    """The mappings of a list, in order; anything else is left out."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list | tuple) else []


def text(value: Any) -> str | None:
    """A non-empty string, else None."""
    return value if isinstance(value, str) and value.strip() else None


def points(value: Any) -> list[tuple[float, float]]:
    """{"10": .9, "20": .95} as sorted pairs of numbers; entries that are not numbers are left out."""
    pairs = []
    for key, item in mapping(value).items():
        y = number(item)
        try:
            x = float(key)
        except ValueError:
            continue
        if y is not None and math.isfinite(x):
            pairs.append((x, y))
    return sorted(pairs)
