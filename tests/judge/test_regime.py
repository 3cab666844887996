"""One name for an excess persistence, and one measure of it."""

from __future__ import annotations

import math

import pytest
import torch

import synthetic_runs as synthetic
from nextrl.judge.advice import Thresholds
from nextrl.judge.advice_features import features
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.regime import (
    DEFAULT_WINDOW,
    MEANING,
    MIXED,
    OSCILLATES,
    SIGNAL,
    PersistenceWindow,
    even_gram,
    mean_excess,
    recent_windows,
    regime_of,
)
from nextrl.trajectory.trajectory import Trajectory


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.9, 0.7], "signal"),
        ([0.75], "mixed"),
        ([0.5], "mixed"),
        ([0.3], "mixed"),
        ([0.25], "noise"),
        ([0.1, -0.4], "noise"),
        ([], "noise"),
    ],
)
def test_regimes(values: list[float], expected: str) -> None:
    windows = [PersistenceWindow(10, e, 0.0, e) for e in values]
    assert regime_of(mean_excess(windows)) == expected


def test_the_bounds_are_in_order_and_every_regime_has_a_meaning() -> None:
    assert OSCILLATES < 0 < MIXED < SIGNAL < 1
    assert set(MEANING) == {"signal", "mixed", "noise"}
    assert Thresholds().oscillates == OSCILLATES


def test_persistence_at_the_end_is_the_trajectory_s_own_cosine() -> None:
    traj = synthetic.run(synthetic.walk(1.0), range(10, 201, 10))
    windows = recent_windows(even_gram(traj), traj.spacing, 0.9)
    assert [w.steps for w in windows] == [10, 20, 50]
    for window in windows:
        assert window.c == pytest.approx(traj.persistence(window.steps), abs=1e-6)
    assert features(traj).windows == windows


def test_a_run_that_does_not_move_has_no_windows() -> None:
    still = {"w": (torch.ones(1, 2), torch.ones(3, 1))}
    traj = Trajectory.from_factors([10, 20, 30, 40], [still] * 4)
    # From step 0 to 10 it moved, so only windows that end before would show anything.
    assert recent_windows(even_gram(traj), traj.spacing, 0.9) == ()


def test_a_window_that_is_not_a_number_is_not_one_that_stood_still() -> None:
    gram = even_gram(synthetic.run(synthetic.walk(1.0)))
    gram[-1, -1] = math.nan
    assert math.isnan(mean_excess(recent_windows(gram, 10, 0.9)))


def test_the_windows_of_auto_and_of_pages_are_as_long_by_default() -> None:
    assert ControllerConfig().every == DEFAULT_WINDOW == 10
