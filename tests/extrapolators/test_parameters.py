"""A method's name and its own parameters: what is refused, in which words, and values written as text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest
from pydantic import Field

from nextrl.errors import InputError
from nextrl.extrapolators import get, names, register
from nextrl.extrapolators.base import METHODS, params_from_text
from nextrl.extrapolators.parameters import accepted, check_ranges, checked, from_text
from nextrl.testing import straight_line, synthetic_run


class Named:
    reference: ClassVar[str] = "this test"
    summary: ClassVar[str] = "of a name"

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        return 2

    def fit(self, traj: Any, horizon: int, *, seed: int = 0) -> Any:
        raise AssertionError("never fitted")


@pytest.mark.parametrize("name", ["x y, z", "", "a,b", "-a", "a_b", "a.b", "../a", "a\n", "\u00e9", 3, None])
def test_a_name_of_other_characters_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match="letters, digits and hyphens"):
        register(type("Odd", (Named,), {"name": name}))
    assert name not in METHODS


def test_every_name_that_is_known_would_be_taken() -> None:
    for name in names():
        assert register(METHODS.get(name)) is METHODS.get(name)


class Many(Named):
    name: ClassVar[str] = "many"

    def __init__(
        self,
        count: int = 1,
        share: float = 0.5,
        wide: bool = False,
        kind: Literal["a", "b"] = "a",
        note: str = "",
        memory: int | None = None,
        seen: Mapping[int, float] | None = None,
        bare=2.0,
    ) -> None:
        self.given = (count, share, wide, kind, note, memory, bare)


@pytest.mark.parametrize(
    ("method", "params", "says"),
    [
        ("linear", {"foo": 1}, "method 'linear' has no parameter 'foo'; it takes none"),
        ("window", {"rnk": 1}, "method 'window' has no parameter 'rnk'; did you mean rank? it takes rank"),
        ("bema", {"x": 1}, "it takes eta, kappa, rho, gamma"),
        ("window", {"rank": "2"}, "method 'window': rank must be a whole number, not '2'"),
        ("window", {"rank": 2.5}, "method 'window': rank must be a whole number, not 2.5"),
        ("window", {"rank": True}, "method 'window': rank must be a whole number, not True"),
        ("lawa", {"count": "all"}, "method 'lawa': count must be a whole number or none, not 'all'"),
        ("next-paper", {"inputs": "c"}, "method 'next-paper': inputs must be "),
    ],
)
def test_a_parameter_that_a_method_lacks_or_of_another_kind(
    method: str, params: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError) as error:
        get(method, **params)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert "__init__" not in str(error.value)


def test_numbers_of_any_library_are_taken() -> None:
    assert get("window", rank=np.int64(2)).rank == 2  # type: ignore[attr-defined]
    assert get("ema", memory=20).memory == 20.0  # type: ignore[attr-defined]
    assert get("lawa", count=None).count is None  # type: ignore[attr-defined]


def test_text_is_read_by_the_parameter_s_own_kind() -> None:
    texts = ["count=3", "share=1e-2", "wide=TRUE", "kind=b", "note=3", "memory=none", "bare=4"]
    read = from_text("many", Many, texts)
    assert read == {
        "count": 3, "share": 0.01, "wide": True, "kind": "b", "note": "3", "memory": None, "bare": 4.0
    }  # fmt: skip
    assert Many(**read).given == (3, 0.01, True, "b", "3", None, 4.0)
    assert from_text("many", Many, ["memory=7", "count=1", "count=2"]) == {"memory": 7, "count": 2}
    assert params_from_text("linear", []) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("count", "must be key=value"),
        ("=3", "must be key=value"),
        ("count=", "must be key=value"),
        ("cuont=3", "has no parameter 'cuont'; did you mean count?"),
        ("count=3.5", "count must be a whole number, not '3.5'"),
        ("wide=1", "wide must be true or false, not '1'"),
        ("kind=c", "kind must be a or b, not 'c'"),
        ("memory=x", "memory must be a whole number or none, not 'x'"),
        ("seen=1", "seen cannot be written as text"),
    ],
)
def test_text_that_is_no_such_value_is_one_line(text: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        from_text("many", Many, [text])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_the_parameters_of_our_own_methods_have_kinds() -> None:
    for name in names():
        known = accepted(METHODS.get(name))
        assert known is not None
        assert all(known.values()), name


OUTSIDE = [
    ("window", {"rank": 0}, "rank must be greater than or equal to 1, not 0"),
    ("dmd", {"delays": 0}, "delays must be greater than or equal to 1, not 0"),
    ("dmd", {"energy": 0.0}, "energy must be greater than 0, not 0.0"),
    ("dmd", {"energy": 1.5}, "energy must be less than or equal to 1, not 1.5"),
    ("dmd", {"modes": -1}, "modes must be greater than or equal to 1, not -1"),
    ("next", {"updates": 0}, "updates must be greater than or equal to 1, not 0"),
    ("next", {"width": 10**9}, "width must be less than or equal to 65536, not 1000000000"),
    ("next-paper", {"epochs": 0}, "epochs must be greater than or equal to 1, not 0"),
    ("next-paper", {"rank": 0}, "rank must be greater than or equal to 1, not 0"),
    ("next-paper", {"learning_rate": -1e-5}, "learning_rate must be greater than 0, not -1e-05"),
    ("nowcast", {"updates": 0}, "updates must be greater than or equal to 1, not 0"),
    ("nowcast", {"scalars": 0}, "scalars must be greater than or equal to 1, not 0"),
    ("bema", {"rho": 0.0}, "rho must be greater than or equal to 0.000001, not 0.0"),
    ("bema", {"gamma": -1.0}, "gamma must be greater than or equal to 0, not -1.0"),
    ("ema", {"memory": -5.0}, "memory must be greater than 0, not -5.0"),
    ("ema", {"memory": 0.0}, "memory must be greater than 0, not 0.0"),
    ("ema", {"memory": math.inf}, "memory must be finite, not inf"),
    ("next", {"learning_rate": 1e300}, "learning_rate must be less than or equal to 1, not 1e+300"),
    ("lawa", {"count": 0}, "count must be greater than or equal to 1, not 0"),
    ("ols", {"share": 0.0}, "share must be greater than 0, not 0.0"),
    ("rna", {"memory": 0}, "memory must be greater than or equal to 1, not 0"),
    ("rna", {"penalty": -1.0}, "penalty must be greater than 0, not -1.0"),
]


@pytest.mark.parametrize(("method", "params", "says"), OUTSIDE)
def test_a_number_outside_its_range_is_refused_before_a_run_and_at_a_fit(
    method: str, params: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError) as error:
        get(method, **params)
    assert str(error.value) == f"method {method!r}: {says}"
    by_hand = METHODS.get(method)(**params)
    with pytest.raises(InputError, match=re.escape(says)):
        by_hand.fit(synthetic_run(straight_line), 20)


def test_every_number_of_our_own_methods_has_a_range() -> None:
    """A new parameter without one would let a zero through to a division, in the middle of a run."""
    free = {("alpharl", "accuracy"), ("alpharl", "target")}  # a target may lie anywhere, even above 1
    for name in names():
        method = METHODS.get(name)
        numbers = {key for key, kinds in (accepted(method) or {}).items() if {int, float} & set(kinds)}
        ranged = {key for key in numbers if refuses(name, key)}
        assert {(name, key) for key in numbers - ranged} <= free


def refuses(name: str, key: str) -> bool:
    try:
        get(name, **{key: -1})
    except InputError:
        return True
    return False


def test_a_range_of_a_method_of_ones_own() -> None:
    @dataclass(frozen=True)
    class Ranged(Named):
        name: ClassVar[str] = "ranged"
        damping: Annotated[float, Field(gt=0, lt=1)] | None = None

    check_ranges(Ranged())
    check_ranges(Ranged(0.5))
    with pytest.raises(InputError, match="method 'ranged': damping must be less than 1, not 1"):
        check_ranges(Ranged(1.0))


class KeptElsewhere(Named):
    name: ClassVar[str] = "kept-elsewhere"

    def __init__(self, damping: Annotated[float, Field(gt=0)] = 0.5) -> None:
        self._damping = damping


def test_a_range_of_a_parameter_that_is_no_attribute() -> None:
    assert checked("kept-elsewhere", KeptElsewhere, {"damping": 1})["damping"] == 1
    with pytest.raises(InputError, match="method 'kept-elsewhere': damping must be greater than 0, not 0"):
        checked("kept-elsewhere", KeptElsewhere, {"damping": 0})
