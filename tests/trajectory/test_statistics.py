"""Statistics of paths whose answers are known."""

import math

import pytest
import torch

from nextrl.trajectory.statistics import DriftNoise, drift_and_noise, line, persistence_table, predictability

STEPS = list(range(10, 210, 10))


def gram(path):
    return path.double() @ path.double().mT


def walk(drift, noise, seed=0, dimension=4000):
    g = torch.Generator().manual_seed(seed)
    moves = drift * torch.ones(200, dimension) + noise * torch.randn(200, dimension, generator=g)
    return moves.cumsum(0)[[s - 1 for s in STEPS]]


def test_a_straight_line():
    g = gram(walk(0.01, 0.0))
    assert line(g, STEPS).r2 == pytest.approx(1.0)
    assert line(g, STEPS).share == pytest.approx(1.0)
    assert all(c == pytest.approx(1.0) for c in persistence_table(g, STEPS, [20])[20].values())
    assert all(c == pytest.approx(1.0) for c in predictability(g, STEPS).values())
    fit = drift_and_noise(g, STEPS)
    assert fit.mu2 == pytest.approx(4000 * 1e-4, rel=1e-3)
    assert fit.crossing == pytest.approx(0.0, abs=1e-2)


def test_a_random_walk():
    g = gram(walk(0.0, 0.02))
    table = persistence_table(g, STEPS, [10, 100, 150])
    assert all(abs(c) < 0.1 for c in table[10].values())
    assert list(table[100]) == [200]
    assert table[150] == {}
    fit = drift_and_noise(g, STEPS)
    assert fit.s2 == pytest.approx(4000 * 4e-4, rel=0.05)
    assert fit.crossing > 500


def test_drift_and_noise_are_told_apart():
    fit = drift_and_noise(gram(walk(0.01, 0.05)), STEPS)
    assert fit.mu2 == pytest.approx(4000 * 1e-4, rel=0.1)
    assert fit.s2 == pytest.approx(4000 * 25e-4, rel=0.1)
    assert fit.crossing == pytest.approx(25, rel=0.2)


def test_no_movement_is_nan_not_an_error():
    zero = torch.zeros(3, 3, dtype=torch.float64)
    assert math.isnan(line(zero, [10, 20, 30]).r2)
    assert all(math.isnan(c) for c in predictability(zero, [10, 20, 30]).values())
    assert drift_and_noise(zero, [10, 20, 30]) is None


@pytest.mark.parametrize(
    ("crossing", "words"),
    [
        (0.503, "drift exceeds noise at every window looked at (10 to 200 steps)"),
        (math.inf, "noise exceeds drift at every window looked at (10 to 200 steps)"),
        (42.3, "drift overtakes noise at windows of about 42 steps"),
    ],
)
def test_where_drift_overtakes_noise_in_words(crossing: float, words: str) -> None:
    assert DriftNoise(1.0, 1.0, crossing, [10, 50, 200], [1.0, 2.0, 3.0]).in_words == words
