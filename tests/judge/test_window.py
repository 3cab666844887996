"""What a window's rewards show by themselves."""

from __future__ import annotations

from random import Random

import pytest

from nextrl.judge.window import Window, counted, fallen

COLLAPSED = 0.05
"""What is left of a success rate where a policy collapsed."""


def window(rewards: list[float]) -> Window:
    return Window(len(rewards), tuple(rewards), 1e-3)


def earned(random: Random, succeeds: float, completions: int) -> float:
    return sum(random.random() < succeeds for _ in range(completions)) / completions


@pytest.mark.parametrize("scale", [0.01, 1e6, -0.07])
def test_rewards_that_are_all_the_same_fall_by_nothing_but_rounding(scale: float) -> None:
    for count in range(1, 300):
        same = [count * scale] * 11
        assert abs(window(same).fall) < 1e-3
        assert abs(window(same).counted_fall) < 1e-3
        assert abs(fallen(same * 2, 5, 10)) < 1e-3
    assert window([0.0] * 11).fall == window([0.0] * 11).counted_fall == 0.0


def test_a_fall_is_as_sure_whatever_the_unit_of_rewards() -> None:
    rewards = [0.9375, 1.0, 1.0, 0.875, 1.0, 1.0, 0.9375, 0.5, 0.4375]
    for scale, shift in ((1.0, 0.0), (100.0, 0.0), (0.01, -7.0), (5.0, 300.0)):
        moved = [scale * reward + shift for reward in rewards]
        for sure in (fallen, counted):
            assert sure(moved, 3, 2) == pytest.approx(sure(rewards, 3, 2), rel=1e-6)


@pytest.mark.parametrize(("succeeds", "completions"), [(0.98, 16), (0.02, 16), (0.002, 128), (0.5, 16)])
def test_single_completions_are_no_sure_fall(succeeds: float, completions: int) -> None:
    """Of 400 windows of 11 steps in which nothing changes."""
    random, sure = Random(0), 0
    for _ in range(400):
        sure += window([earned(random, succeeds, completions) for _ in range(11)]).counted_fall > 3.3
    assert sure <= 2


def test_a_rise_is_as_sure_as_it_was() -> None:
    rising = window([0.3, 0.35, 0.32, 0.4, 0.42, 0.5, 0.47, 0.55])
    assert rising.counted_fall == rising.fall < -1.0


@pytest.mark.parametrize(
    ("succeeds", "completions", "share"),
    [(0.98, 16, 0.95), (0.98, 128, 1.0), (0.5, 128, 0.95), (0.2, 512, 0.9)],
)
def test_a_collapse_is_one_by_either_count(succeeds: float, completions: int, share: float) -> None:
    """Seen at some step of a window's eleven, after the sixth of which the policy collapsed: by both, or by neither."""
    random, seen, by_count = Random(0), 0, 0
    for _ in range(100):
        steps = [earned(random, succeeds * (1.0 if n < 6 else COLLAPSED), completions) for n in range(11)]
        windows = [window(steps[:n]) for n in range(7, 12)]
        seen += any(w.fall > 4.0 for w in windows)
        by_count += any(w.counted_fall > 4.0 for w in windows)
    assert share * 100 <= by_count <= seen
