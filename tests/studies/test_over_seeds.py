"""Mean and standard error as text."""

from __future__ import annotations

from studies.over_seeds import mean_and_error


def test_the_error_is_the_spread_over_the_root_of_the_number() -> None:
    assert mean_and_error([0.1, 0.3]) == "0.200 ± 0.100"
    assert mean_and_error([1.0, 2.0, 3.0, 4.0], digits=2) == "2.50 ± 0.65"


def test_one_seed_has_no_error() -> None:
    assert mean_and_error([0.5]) == "0.500"


def test_a_sign_can_be_asked_for() -> None:
    assert mean_and_error([0.5], sign="+") == "+0.500"
    assert mean_and_error([-0.5], sign="+") == "-0.500"
