"""A registry finds what was added, and its error offers the nearest name."""

from __future__ import annotations

import pytest

from nextrl.errors import InputError
from nextrl.registry import Registry, nearest


@pytest.fixture
def methods() -> Registry[int]:
    registry = Registry("method", {"secant": 1})
    registry.add("linear", 2)
    return registry


def test_names_keep_their_order_and_the_last_value_counts(methods: Registry[int]) -> None:
    methods.add("secant", 3)
    assert methods.names() == tuple(methods) == ("secant", "linear")
    assert (methods.get("secant"), len(methods), "linear" in methods) == (3, 2, True)


def test_a_misspelled_name_is_offered_the_nearest(methods: Registry[int]) -> None:
    with pytest.raises(InputError) as caught:
        methods.get("secnat")
    assert str(caught.value) == "unknown method 'secnat'; did you mean 'secant'? known: secant, linear"


def test_a_name_like_none_is_offered_nothing(methods: Registry[int]) -> None:
    with pytest.raises(InputError) as caught:
        methods.get("magic")
    assert str(caught.value) == "unknown method 'magic'; known: secant, linear"
    assert nearest("magic", methods) is None


def test_a_caller_may_offer_more(methods: Registry[int]) -> None:
    error = methods.unknown("plugn", known=("secant", "plugin"), otherwise="FILE.py")
    assert str(error) == (
        "unknown method 'plugn'; did you mean 'plugin'? known: secant, plugin; or give FILE.py"
    )
