"""Probation: rewards in, a verdict out."""

from __future__ import annotations

import math
from random import Random

import pytest

from nextrl.judge.probation import Probation
from nextrl.judge.window import Window

STILL = (0.26, 0.24, 0.27, 0.25, 0.24, 0.26, 0.23, 0.25, 0.26, 0.25)
HIGHER = tuple(reward + 0.1 for reward in STILL)
LOST = (0.26, 0.28, 0.05, 0.02, 0.03, 0.02)


def window(rewards: tuple[float, ...]) -> Window:
    return Window(step=10, rewards=rewards, rate=1e-3)


def verdicts(probation: Probation, *windows: tuple[float, ...], rise: float = 1.0) -> list[bool | None]:
    return [probation.verdict(window(rewards), rise) for rewards in windows]


def test_the_verdict_falls_at_the_twenty_fifth_reward() -> None:
    assert verdicts(Probation(), STILL, STILL, STILL) == [None, None, False]
    assert verdicts(Probation(), STILL, STILL, HIGHER) == [None, None, True]
    assert verdicts(Probation(lenient=True), STILL, STILL, STILL) == [None, None, True]
    assert verdicts(Probation(), STILL, STILL, HIGHER, rise=99.0) == [None, None, False]


def test_the_last_reward_of_a_window_is_counted_once() -> None:
    probation = Probation()
    assert probation.new
    verdicts(probation, STILL)
    assert not probation.new
    assert probation.rewards == list(STILL[:-1])
    verdicts(probation, (math.nan, *STILL))
    assert len(probation.rewards) == 9 + 9


@pytest.mark.parametrize("lenient", [False, True])
def test_what_is_lost_is_not_waited_for(lenient: bool) -> None:
    probation = Probation(lenient=lenient)
    assert not probation.lost(window(LOST[:5]))
    assert not probation.lost(window(STILL))
    assert probation.lost(window(LOST))
    assert verdicts(probation, LOST) == [False]


def test_what_was_seen_before_loses_nothing_by_itself() -> None:
    """A window that has only begun has nothing new to say."""
    probation = Probation(rewards=list(LOST))
    assert not probation.lost(window(()))
    assert not probation.lost(window(LOST[-1:]))
    assert probation.lost(window(LOST[-2:]))


def test_a_warm_up_leaves_the_first_rewards_to_compare_with() -> None:
    probation = Probation()
    for _ in range(3):
        probation.warms_up(window(STILL))
    assert probation.rewards == list(STILL[:5])
    assert verdicts(probation, HIGHER, HIGHER) == [None, None]
    assert verdicts(probation, HIGHER) == [True]


@pytest.mark.parametrize(
    ("succeeds", "completions", "most"),
    [
        (0.25, 128, 0.03),
        (0.04, 128, 0.05),
        (0.1, 64, 0.06),
        (0.98, 16, 0.01),
        (0.02, 16, 0.01),
        (0.002, 128, 0.02),
    ],
)
def test_chance_hardly_ever_ends_a_probation_early(succeeds: float, completions: int, most: float) -> None:
    """Of 200 runs of 28 steps whose reward stands still."""
    random = Random(0)
    ended = 0
    for _ in range(200):
        seen: tuple[float, ...] = ()
        for _ in range(28):
            seen += (sum(random.random() < succeeds for _ in range(completions)) / completions,)
            if Probation().lost(window(seen)):
                ended += 1
                break
    assert ended <= 200 * most


@pytest.mark.parametrize(
    ("succeeds", "completions", "least"),
    [(0.98, 16, 0.98), (0.5, 16, 0.9), (0.1, 128, 0.9), (0.02, 512, 0.9)],
)
def test_a_collapse_ends_a_probation_early(succeeds: float, completions: int, least: float) -> None:
    """Of 200 runs in which a twentieth is left of the reward after two steps, those that end within eight more."""
    random, ended = Random(0), 0
    for _ in range(200):
        shares = [succeeds] * 2 + [succeeds / 20] * 8
        seen = [sum(random.random() < share for _ in range(completions)) / completions for share in shares]
        ended += any(Probation().lost(window(tuple(seen[:n]))) for n in range(6, 11))
    assert ended >= 200 * least


def drifting(random: Random, correlation: float, harder: float) -> tuple[float, ...]:
    """28 steps whose noise hangs together, less by so much of its standard deviation with each."""
    noise, seen = random.gauss(0.0, 1.0) / math.sqrt(1.0 - correlation**2), []
    for step in range(28):
        seen.append(noise - step * harder)
        noise = correlation * noise + random.gauss(0.0, 1.0)
    return tuple(seen)


@pytest.mark.parametrize(
    ("correlation", "harder", "share"),
    [(0.5, 0.0, 0.14), (0.8, 0.0, 0.34), (0.0, 0.2, 0.92), (0.0, 0.5, 1.0)],
)
def test_rewards_that_are_not_comparable_end_probations(
    correlation: float, harder: float, share: float
) -> None:
    """What docs/auto.md says of them."""
    random, ended = Random(0), 0
    for _ in range(300):
        seen = drifting(random, correlation, harder)
        ended += any(Probation().lost(window(seen[:n])) for n in range(6, 29))
    assert ended / 300 == pytest.approx(share, abs=0.05)
