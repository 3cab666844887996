"""A reward that stands still neither falls nor rises, however many windows there are to choose the best from."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nextrl.judge.advice import DEFAULT, decide
from nextrl.judge.reward_windows import reward_windows
from synthetic_runs import measured

RUNS = 1000


def signs(reward: np.ndarray, completions: int, logged: int, seed: int = 0) -> tuple[float, float]:
    """Share of runs said to fall and to rise; `reward` (windows,), each logged in so many parts."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(RUNS):
        each = completions // logged
        windows = rng.binomial(each, reward[:, None], (len(reward), logged)) / each
        seen = reward_windows(windows.tolist())
        fall, rise = seen.fall_by_chance or 0.0, seen.rise_by_chance or 0.0
        found.append((seen.best - seen.last > max(DEFAULT.fall, fall), seen.rise > max(DEFAULT.flat, rise)))
    fell, rose = np.mean(found, axis=0)
    return float(fell), float(rose)


@pytest.mark.parametrize("logged", [10, 1])
@pytest.mark.parametrize("windows", [10, 40])
@pytest.mark.parametrize(("completions", "reward"), [(80, 0.5), (80, 0.2), (320, 0.5), (1280, 0.2)])
def test_a_reward_that_stands_still(completions: int, reward: float, windows: int, logged: int) -> None:
    fell, rose = signs(np.full(windows, reward), completions, logged)
    assert fell < 0.05
    assert rose < 0.05


@pytest.mark.parametrize(
    ("logged", "completions", "size", "windows", "least"),
    [
        (10, 1280, 0.1, 5, 0.9),
        (10, 80, 0.2, 10, 0.9),
        (1, 1280, 0.2, 10, 0.9),
        (1, 320, 0.2, 20, 0.9),
        (1, 80, 0.4, 5, 0.9),
    ],
)
def test_a_real_fall_is_seen(logged: int, completions: int, size: float, windows: int, least: float) -> None:
    reward = np.full(windows, 0.5)
    reward[-2:] -= size
    assert signs(reward, completions, logged)[0] > least


def test_a_real_rise_is_seen() -> None:
    assert signs(0.3 + 0.02 * np.arange(10), 1280, 10)[1] > 0.9


def test_the_noise_of_logged_steps_and_of_windows_of_one_number() -> None:
    rng = np.random.default_rng(0)
    steps = rng.normal(0.5, 0.1, (400, 10))
    by_steps, by_windows = (reward_windows(w.tolist()) for w in (steps, steps.mean(1, keepdims=True)))
    # A pair of windows against another has the error of one window; 400 of them make t a normal: z(.97) = 1.88.
    expected = 0.1 / math.sqrt(10) * 1.88
    assert by_steps.rise_by_chance == pytest.approx(expected, rel=0.05)
    assert by_windows.rise_by_chance == pytest.approx(expected, rel=0.1)
    assert reward_windows([[0.5], [0.6], [0.4]]).fall_by_chance is None
    assert reward_windows([[0.5, 0.5], [0.5, 0.5]]).fall_by_chance == 0.0


def test_the_rule_asks_for_a_fall_and_a_rise_beyond_chance() -> None:
    fallen = {"reward": 0.45, "best": 0.6, "first": 0.3, "rise": 0.0}
    assert decide(measured(0.0, **fallen, fall_by_chance=0.1)).advice == "lower_lr"
    assert decide(measured(0.0, **fallen, fall_by_chance=0.2)).advice == "average"
    lost = {"reward": 0.005, "best": 0.04, "first": 0.0, "rise": 0.0}
    assert decide(measured(0.0, **lost, fall_by_chance=0.01)).factor == pytest.approx(0.1)
    assert decide(measured(0.0, **lost, fall_by_chance=0.05)).factor != pytest.approx(0.1)
    rising = {"reward": 0.6, "best": 0.6, "first": 0.3, "rise": 0.06}
    assert decide(measured(0.0, **rising, rise_by_chance=0.05)).advice == "continue"
    flat = decide(measured(0.0, **rising, rise_by_chance=0.08))
    assert flat.advice == "average"
    assert "+0.06 over the last windows, and up to +0.08 is noise" in flat.reasons[-1]
