"""One name for an excess persistence, and one measure of it."""

from __future__ import annotations

import math

import pytest
import torch

import synthetic_runs as synthetic
from nextrl.cli.analysis_text import conclusion
from nextrl.errors import InputError
from nextrl.judge import regime
from nextrl.judge.advice_features import features
from nextrl.judge.advice_signs import Thresholds
from nextrl.judge.advise import advise
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.regime import (
    DEFAULT_WINDOW,
    MEANING,
    MIXED,
    OSCILLATES,
    SIGNAL,
    PersistenceWindow,
    mean_excess,
    recent_windows,
    regime_of,
)
from nextrl.trajectory.persistence import adam_persistence
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
    windows = recent_windows(traj, 0.9)
    assert [w.steps for w in windows] == [10, 20, 50]
    for window in windows:
        assert window.c == pytest.approx(traj.persistence(window.steps), abs=1e-6)
    assert features(traj).windows == windows


def test_a_run_that_does_not_move_has_no_windows() -> None:
    still = {"w": (torch.ones(1, 2), torch.ones(3, 1))}
    traj = Trajectory.from_factors([10, 20, 30, 40], [still] * 4)
    # From step 0 to 10 it moved, so only windows that end before would show anything.
    assert recent_windows(traj, 0.9) == ()


def test_a_window_that_is_not_a_number_is_not_one_that_stood_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regime, "window_products", lambda traj: lambda *steps: (math.nan, 1.0, math.nan))
    assert math.isnan(mean_excess(recent_windows(synthetic.run(synthetic.walk(1.0)), 0.9)))


EVEN = tuple(range(10, 201, 10))
UNEVEN = {
    "a last one at max_steps": (*EVEN, 205),
    "one missing": tuple(s for s in EVEN if s != 190),
    "four missing": tuple(s for s in EVEN if not 160 <= s <= 190),
    "jitter": tuple(s + (7 * s // 10) % 9 - 4 for s in EVEN),
}


def momentum_walk(steps: tuple[int, ...], seed: int) -> Trajectory:
    """White gradients under Adam's momentum of .9 and nothing else: its excess is 0, wherever checkpoints lie."""
    g = torch.Generator().manual_seed(seed)
    a, b, momentum = torch.randn(4, 20, generator=g), torch.zeros(24, 4), torch.zeros(24, 4)
    kept = []
    for step in range(1, steps[-1] + 1):
        momentum = 0.9 * momentum + 0.1 * torch.randn(24, 4, generator=g)
        b = b + 0.01 * momentum
        if step in steps:
            kept.append({"q_proj": (a, b)})
    return Trajectory.from_factors(steps, kept)


@pytest.mark.parametrize("steps", UNEVEN.values(), ids=UNEVEN)
def test_uneven_checkpoints_do_not_look_like_a_straight_path(steps: tuple[int, ...]) -> None:
    runs = [momentum_walk(steps, seed) for seed in range(20)]
    found = [recent_windows(traj, 0.9) for traj in runs]
    assert abs(sum(map(mean_excess, found)) / len(found)) < 0.12
    assert len(found[0]) >= (1 if steps == UNEVEN["four missing"] else 2)
    for traj, windows in zip(runs[:3], found[:3], strict=True):
        for window in windows:
            middle = traj.steps[-1] - window.steps
            dot, late, early = traj.window_products(
                middle - (window.before or window.steps), middle, traj.steps[-1]
            )
            assert window.c == pytest.approx(dot / math.sqrt(late * early), abs=1e-9)
            assert window.c0 == adam_persistence(window.steps, 0.9, window.before)


def test_an_uneven_end_is_not_told_to_go_faster() -> None:
    advised = [advise(momentum_walk(UNEVEN["one missing"], seed)).advice for seed in range(4)]
    assert advised == ["average"] * 4


def test_where_no_two_windows_lie_between_checkpoints_there_is_no_regime_and_no_advice() -> None:
    traj = momentum_walk((*range(10, 101, 10), 200), 0)
    assert recent_windows(traj, 0.9) == ()
    with pytest.raises(
        InputError, match=r"last checkpoints \(steps 80, 90, 100, 200\) are too few or too unevenly"
    ):
        advise(traj)
    assert conclusion(traj, 0.9)[0].startswith("No regime: the last checkpoints (steps 80, 90, 100, 200)")


def test_short_windows_of_a_long_path_keep_their_digits() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(8, 64, generator=g), torch.randn(64, 8, generator=g)
    factors = []
    for _ in range(11):
        factors.append({"q_proj": (a, b)})
        a, b = a + 1e-6 * torch.randn(8, 64, generator=g), b + 1e-6 * torch.randn(64, 8, generator=g)
    traj = Trajectory.from_factors(range(100, 201, 10), factors, start=100)
    for window in recent_windows(traj, 0.9):
        assert window.c == pytest.approx(traj.persistence(window.steps), abs=1e-9)


def test_the_windows_of_auto_and_of_pages_are_as_long_by_default() -> None:
    assert ControllerConfig().every == DEFAULT_WINDOW == 10
