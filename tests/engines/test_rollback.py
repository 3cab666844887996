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
    return Snapshot(Point({}, [], 10), 8.0, 80.0, 1.0, reward, variance)


def window(*rewards: float) -> Window:
    return Window(20, rewards, 1e-4)


@pytest.mark.parametrize(
    ("before", "rewards", "fell"),
    [
        (snapshot(), (0.4, 0.42, 0.38), True),
        (snapshot(), (0.55, 0.55, 0.55), False),  # too little to matter
        (snapshot(variance=0.01), (0.4, 0.42, 0.38), False),  # within the noise
        (snapshot(), (0.9, 0.1, 0.4), False),
        (snapshot(), (math.nan,), False),
        (snapshot(math.nan), (0.1, 0.1), False),
        (replace(snapshot(math.nan), measured=0), (0.1, 0.1), False),
        (snapshot(100.0), (95.0, 95.0), False),  # a share of the reward's size
        (snapshot(100.0), (90.0, 90.0), True),
    ],
)
def test_only_a_fall_past_noise_counts(before: Snapshot, rewards: tuple[float, ...], fell: bool) -> None:
    assert before.fell(window(*rewards), fall=0.08, errors=2.5) is fell


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
        back += taken.fell(window(*second, math.nan, math.nan), fall=0.08, errors=2.5)
    assert back <= 20


@pytest.mark.parametrize(
    ("measured", "rewards", "fell"),
    [
        (1, (0.2,), False),  # one step against one: nothing is known of their noise
        (1, (0.2, 0.21, 0.19, 0.2), True),  # the noise of a step is known from the other window
        (1, (0.0, 0.5, 0.1, 0.2), False),
        (None, (0.2, 0.21, 0.19), True),  # states of earlier versions do not say
    ],
)
def test_the_noise_of_a_step_is_known_from_either_window(
    measured: int | None, rewards: tuple[float, ...], fell: bool
) -> None:
    before = replace(snapshot(), measured=measured)
    assert before.fell(window(*rewards), fall=0.08, errors=2.5) is fell
