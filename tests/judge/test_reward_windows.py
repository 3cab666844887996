"""A reward that stands still neither falls nor rises, however many windows there are to choose the best from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from nextrl.judge.advice import Advice
from nextrl.judge.advise import decide
from nextrl.judge.reward_windows import reward_windows
from synthetic_runs import measured

RUNS = 1000


def of_windows(windows: list[list[float]], excess: float = 0.0) -> Advice:
    """The advice where these rewards were logged."""
    seen = reward_windows(windows)
    return decide(
        measured(
            excess,
            reward=seen.last,
            best=seen.best,
            rise=seen.rise,
            first=seen.first,
            lowest=seen.lowest,
            fall_by_chance=seen.fall_by_chance,
            rise_by_chance=seen.rise_by_chance,
        )
    )


def signs(reward: np.ndarray, completions: int, logged: int, seed: int = 0) -> tuple[float, float]:
    """Share of runs said to fall and to rise; `reward` (windows,), each logged in so many parts."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(RUNS):
        each = completions // logged
        windows = rng.binomial(each, reward[:, None], (len(reward), logged)) / each
        answer = of_windows(windows.tolist()).answer
        found.append(("fell from" in answer or "all but gone" in answer, "still rises" in answer))
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
        (10, 80, 0.2, 10, 0.85),
        (1, 1280, 0.2, 10, 0.9),
        (1, 320, 0.2, 20, 0.9),
        (1, 80, 0.4, 5, 0.9),
    ],
)
def test_a_real_fall_is_seen(logged: int, completions: int, size: float, windows: int, least: float) -> None:
    reward = np.full(windows, 0.5)
    reward[-2:] -= size
    assert signs(reward, completions, logged)[0] > least


def in_order(steps: int, rng: np.random.Generator) -> np.ndarray:
    """Data sorted by how hard they are, gone through again every forty steps."""
    return np.sin(np.arange(steps) / 40 * 2 * np.pi + rng.uniform(0, 6.28)) + rng.standard_normal(steps)


def like_the_last(share: float) -> Callable[[int, np.random.Generator], np.ndarray]:
    """Each reward keeps so much of the one before (AR 1)."""

    def series(steps: int, rng: np.random.Generator) -> np.ndarray:
        found = rng.standard_normal(steps)
        found[0] /= math.sqrt(1 - share**2)
        for i in range(1, steps):
            found[i] += share * found[i - 1]
        return found

    return series


@pytest.mark.parametrize("windows", [10, 40])
@pytest.mark.parametrize("series", [in_order, like_the_last(0.3), like_the_last(0.6)])
def test_steps_that_are_like_the_one_before_are_no_fall(
    series: Callable[[int, np.random.Generator], np.ndarray], windows: int
) -> None:
    """What was logged within a window is then alike, and windows differ by more than its spread says."""
    rng, fell = np.random.default_rng(0), 0
    for _ in range(500):
        seen = reward_windows(series(10 * windows, rng).reshape(windows, 10).tolist())
        fell += seen.best - seen.last > (seen.fall_by_chance or 0.0)
    assert fell / 500 < 0.09


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
    assert "+0.06 over the last windows, and up to +0.08 counts as none" in flat.reasons[-1]


def of_series(means: Sequence[float], excess: float, scale: float, shift: float = 0.0) -> Advice:
    """The advice where each window's ten steps were logged, each with a noise of .01 times the scale."""
    rng = np.random.default_rng(0)
    return of_windows([(scale * rng.normal(mean, 0.01, 10) + shift).tolist() for mean in means], excess)


RISING = (0.30, 0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65)
FALLING = (0.30, 0.45, 0.55, 0.60, 0.62, 0.50, 0.40, 0.36)
UNITS = [(1, 0), (0.1, 0), (0.02, 0), (100, 0), (1, -1), (1, 5), (20, -10)]


@pytest.mark.parametrize(("scale", "shift"), UNITS)
def test_the_unit_that_rewards_come_in_changes_no_advice(scale: float, shift: float) -> None:
    assert of_series(RISING, -0.1, scale, shift).advice == "continue"
    for excess in (-0.1, 0.6):
        fell = of_series(FALLING, excess, scale, shift)
        assert (fell.advice, fell.factor) == ("lower_lr", pytest.approx(1 / 3))
        assert "fell from" in fell.answer


@pytest.mark.parametrize("means", [np.linspace(0.01, 0.08, 8), np.linspace(0.02, 0.11, 8)])
def test_a_hard_task_that_is_learned_is_no_run_that_shakes(means: np.ndarray) -> None:
    """Little of the way to a reward of 1, and still far more than chance would bring."""
    rng = np.random.default_rng(0)
    seen = of_windows([(rng.binomial(512, mean, 10) / 512).tolist() for mean in means])
    assert seen.advice == "continue"
    # Where nothing says the noise it may be either, and nobody is sure of it.
    blind = decide(replace(seen.features, fall_by_chance=None, rise_by_chance=None))
    assert (blind.advice, blind.confidence) == ("lower_lr", "low")


def test_a_plateau_that_drifts_a_little_has_not_fallen() -> None:
    assert of_series((0.30, 0.50, 0.60, 0.61, 0.60, 0.60, 0.58, 0.57), 0.0, 1.0).advice == "average"


@pytest.mark.parametrize(("lowest", "factor"), [(0.0, 0.1), (-0.5, 1 / 3)])
def test_only_a_reward_that_cannot_be_negative_is_all_but_gone_near_zero(
    lowest: float, factor: float
) -> None:
    lost = {"reward": 0.01, "best": 0.6, "rise": -0.3, "first": 0.3, "lowest": lowest}
    assert decide(measured(0.9, **lost)).factor == pytest.approx(factor)


def test_rewards_are_the_same_where_none_of_the_last_windows_differs() -> None:
    rose = [[0.1, 0.4], [0.6, 0.8]]
    single = [0.7, 0.7 + 4e-8, 0.7 - 4e-8]  # float32
    assert reward_windows([*rose, *3 * [[1.0, 1.0]]]).same == 1.0
    assert reward_windows([*rose, *3 * [single]]).same == pytest.approx(0.7)
    assert reward_windows(3 * [[-2.0, -2.0]]).same == -2.0
    assert reward_windows([*rose, [1.0, 1.0], [1.0, 1.0], [1.0, 0.98]]).same is None
    assert reward_windows(3 * [[0.5]]).same is None  # three may agree by chance
