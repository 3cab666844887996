"""Student's t on a normal's scale, against scipy."""

from __future__ import annotations

import math

import pytest
from scipy.stats import norm, t

from nextrl.judge.few_samples import normal_of_t, t_of_normal


@pytest.mark.parametrize("degrees", [1, 3, 7, 15, 100])
@pytest.mark.parametrize("value", [0.0, 0.5, 2.0, 5.0])
def test_the_same_tail(degrees: int, value: float) -> None:
    assert normal_of_t(value, degrees) == pytest.approx(float(norm.isf(t.sf(value, degrees))), abs=0.06)
    assert normal_of_t(-value, degrees) == -normal_of_t(value, degrees)


@pytest.mark.parametrize("degrees", [1, 3, 15])
@pytest.mark.parametrize("z", [-3.0, 0.0, 1.0, 3.3])
def test_there_and_back(degrees: int, z: float) -> None:
    assert normal_of_t(t_of_normal(z, degrees), degrees) == pytest.approx(z)


def test_without_degrees_of_freedom_nothing_is_known() -> None:
    assert normal_of_t(9.0, 0) == 0.0
    assert t_of_normal(1.0, 0) == math.inf
    assert math.isfinite(normal_of_t(math.inf, 3))
    assert math.isfinite(t_of_normal(300.0, 1))
