"""What the guard objects to, and what it lets pass."""

from __future__ import annotations

import math
from typing import Any

import pytest

from nextrl.errors import InputError
from nextrl.judge.guard import Answers, Guard, pooled

USUAL = Answers(length=10.0, truncated=0.05)


@pytest.mark.parametrize(
    ("candidate", "objection"),
    [
        (Answers(19.0, 0.1, 0.9), None),
        (Answers(21.0, 0.0, 0.0), "completions grow from 10 to 21 tokens"),
        (Answers(10.0, 0.3, 0.0), "30% of the completions do not end, 5% without it"),
        (Answers(10.0, 0.0, 4.0), "leaves the current policy by 4 nats per token"),
        (Answers(10.0, 0.0, math.inf), "by inf nats"),
        (Answers(math.nan, math.nan, math.nan), None),
    ],
)
def test_each_bound_has_its_clause(candidate: Answers, objection: str | None) -> None:
    found = Guard().objection(USUAL, candidate)
    assert found is None if objection is None else objection in str(found)


def test_where_everything_is_cut_off_anyway_nothing_grows() -> None:
    assert Guard().objection(Answers(6.0, 1.0), Answers(6.0, 1.0, 0.1)) is None


def test_few_completions_do_not_show_a_broken_format() -> None:
    # 11 and 13 of 16: seen with SmolLM2, and nothing but noise. Three and four in five of 256 are none.
    few = Answers(4.0, 11 / 16, count=16), Answers(4.0, 13 / 16, count=16)
    assert Guard().objection(*few) is None
    many = Answers(4.0, 0.60, count=256), Answers(4.0, 0.80, count=256)
    assert Guard().objection(*many) is not None
    # Where no answer ends any more, sixteen are enough.
    assert Guard().objection(Answers(4.0, 0.1, count=16), Answers(4.0, 1.0, count=16)) is not None


def test_stretches_are_pooled_by_their_size() -> None:
    found = pooled([Answers(4.0, 0.5, 0.1, count=16), Answers(6.0, 0.25, 0.2, count=48)])
    assert (found.length, found.truncated, found.count) == (5.5, 0.3125, 64)
    assert found.divergence == pytest.approx(0.175)
    assert math.isnan(pooled([Answers(math.nan, math.nan, count=4)]).length)


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


@pytest.mark.parametrize("bound", ["longest", "truncated", "divergence"])
@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_a_bound_that_would_never_object_is_refused(bound: str, value: float) -> None:
    with pytest.raises(InputError, match=bound):
        Guard(**{bound: value})
