"""A registry finds what was added, its error offers the nearest name, and every hint is in the same words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nextrl.errors import InputError
from nextrl.registry import Registry, did_you_mean, either, nearest, unknown


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
    assert str(caught.value) == "unknown method 'secnat'; did you mean secant? known: secant, linear"


def test_a_name_like_none_is_offered_nothing(methods: Registry[int]) -> None:
    with pytest.raises(InputError) as caught:
        methods.get("magic")
    assert str(caught.value) == "unknown method 'magic'; known: secant, linear"
    assert nearest("magic", methods) is None


def test_a_caller_may_offer_more(methods: Registry[int]) -> None:
    error = methods.unknown("plugn", known=("secant", "plugin"), otherwise="FILE.py")
    assert str(error) == (
        "unknown method 'plugn'; did you mean plugin? known: secant, plugin; or give FILE.py"
    )


def test_a_hint_offers_the_nearest_name_or_what_else_there_is() -> None:
    assert did_you_mean("secnat", ["linear", "secant"], "choose one") == "did you mean secant?"
    assert did_you_mean("magic", ["linear", "secant"], "choose one") == "choose one"
    assert did_you_mean("magic", []) == ""
    assert unknown("secnat", ["linear", "secant"]) == "'secnat' is unknown; did you mean secant?"
    assert unknown("magic", ["linear", "secant"]) == "'magic' is unknown; choose linear, secant"


def test_hints_are_made_in_one_place() -> None:
    package = Path(__file__).parents[1] / "src" / "nextrl"
    own = [path for path in package.rglob("*.py") if re.search(r"difflib|did you mean \{", path.read_text())]
    assert own == [package / "registry.py"], "use did_you_mean or unknown of nextrl.registry"


def test_names_are_listed_as_a_sentence_lists_them() -> None:
    assert either(["a", "b", "c"]) == "a, b or c"
    assert either(name for name in ("a", "b")) == "a or b"
    assert either(["a"]) == "a"
