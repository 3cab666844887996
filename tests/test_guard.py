"""What the guard objects to, and what it lets pass."""

from __future__ import annotations

import math
from typing import Any

import pytest

from nextrl.errors import InputError
from nextrl.guard import Answers, Guard

USUAL = Answers(length=10.0, truncated=0.05)


@pytest.mark.parametrize(
    ("candidate", "objection"),
    [
        (Answers(19.0, 0.1, 2.0), None),
        (Answers(21.0, 0.0, 0.0), "completions grow from 10 to 21 tokens"),
        (Answers(10.0, 0.3, 0.0), "30% of the completions do not end, 5% without it"),
        (Answers(10.0, 0.0, 4.0), "leaves the current policy by 4 nats a token"),
        (Answers(10.0, 0.0, math.inf), "by inf nats"),
        (Answers(math.nan, math.nan, math.nan), None),
    ],
)
def test_each_bound_has_its_clause(candidate: Answers, objection: str | None) -> None:
    found = Guard().objection(USUAL, candidate)
    assert found is None if objection is None else objection in str(found)


def test_where_everything_is_cut_off_anyway_nothing_grows() -> None:
    assert Guard().objection(Answers(6.0, 1.0), Answers(6.0, 1.0, 0.1)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"longest": 1.0}, "longest must be above 1"),
        ({"truncated": 1.5}, "share of completions"),
        ({"divergence": 0.0}, "divergence must be above 0"),
    ],
)
def test_senseless_bounds_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Guard(**options)
