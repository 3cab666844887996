"""A snapshot of a run: when it is asked back."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from nextrl.engines.point import Point
from nextrl.engines.rollback import Snapshot
from nextrl.judge.window import Window


def snapshot(reward: float = 0.6, variance: float = 0.0) -> Snapshot:
    return Snapshot(Point({}, [], 10), 8.0, 80.0, 1.0, reward, variance, 3)


def window(*rewards: float) -> Window:
    return Window(20, rewards, 1e-4)


@pytest.mark.parametrize(
    ("before", "rewards", "fell"),
    [
        (snapshot(), (0.4, 0.42, 0.38), True),
        (snapshot(variance=1e-4), (0.59, 0.6, 0.58), False),
        (snapshot(), (0.6 - 1e-12,) * 3, False),  # rounding
        (snapshot(variance=0.01), (0.4, 0.42, 0.38), False),  # within the noise
        (snapshot(), (0.9, 0.1, 0.4), False),
        (snapshot(), (math.nan,), False),
        (snapshot(math.nan), (0.1, 0.1), False),
        (replace(snapshot(math.nan), measured=0), (0.1, 0.1), False),
    ],
)
def test_only_a_fall_past_noise_counts(before: Snapshot, rewards: tuple[float, ...], fell: bool) -> None:
    assert before.fell(window(*rewards), errors=2.5) is fell


@pytest.mark.parametrize(("before", "after"), [(10, 10), (2, 2), (1, 9), (10, 1), (1, 1)])
def test_noise_alone_seldom_takes_a_leap_back_however_few_steps_were_measured(
    before: int, after: int
) -> None:
    """2.5 standard errors are one chance in 160; steps without rollouts of their own (NaN) are none of them."""
    draw, back = random.Random(0), 0
    for _ in range(2000):
        first, second = (tuple(draw.gauss(0.5, 0.2) for _ in range(n)) for n in (before, after))
        then = window(*first)
        taken = replace(snapshot(then.reward, then.variance), measured=then.measured)
        back += taken.fell(window(*second, math.nan, math.nan), errors=2.5)
    assert back <= 20


@pytest.mark.parametrize(
    ("measured", "rewards", "fell"),
    [
        (1, (0.2,), False),  # one step against one: nothing is known of their noise
        (1, (0.2, 0.21, 0.19, 0.2), True),  # the noise of a step is known from the other window
        (1, (0.0, 0.5, 0.1, 0.2), False),
    ],
)
def test_the_noise_of_a_step_is_known_from_either_window(
    measured: int, rewards: tuple[float, ...], fell: bool
) -> None:
    before = replace(snapshot(), measured=measured)
    assert before.fell(window(*rewards), errors=2.5) is fell


@pytest.mark.parametrize(
    ("scale", "shift"),
    [(1.0, 0.0), (0.2, 0.0), (0.01, 0.0), (100.0, 0.0), (1.0, 5.0), (1.0, -100.0), (1e-6, 3.0)],
)
def test_a_halved_reward_is_one_in_any_unit(scale: float, shift: float) -> None:
    draw, back = random.Random(0), []
    for mean in (0.3, 0.6):
        first, second = (tuple(scale * draw.gauss(m, 0.02) + shift for _ in range(10)) for m in (0.6, mean))
        then = window(*first)
        taken = replace(snapshot(then.reward, then.variance), measured=then.measured)
        back.append(taken.fell(window(*second), errors=2.5))
    assert back == [True, False]
