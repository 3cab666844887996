"""A step's movement, told apart from what rounding adds: against passes whose rounding is drawn, on and off."""

from __future__ import annotations

import math
import random

import pytest
import torch

from nextrl.engines.precision import resolution
from nextrl.judge.rounding import Moved, Reading, tell_apart

BF16 = resolution(torch.bfloat16)
STEPS = [1e-8, 1e-7, 1e-6, 4e-5, 4e-4, 4e-3, 0.012, 0.04, 0.4]


def passes(
    step: float, rounding: float, seed: int = 0, spread: float = 0.25, begins: float = 0.0
) -> tuple[Reading, list[float]]:
    """Readings of a step of so many nats, and the multiples asked for.

    Args:
        spread: of the rounding from one pass to the next, relative.
        begins: multiple of the step from which roundings turn at all; a tenth of it before which none does.
    """
    draws, asked = random.Random(seed), []

    def read(alpha: float) -> float:
        asked.append(alpha)
        share = 1.0 if not begins else min(1.0, max(0.0, math.log10(10.0 * alpha / begins)))
        return step * alpha**2 + share * rounding * math.exp(draws.gauss(0.0, spread))

    return read, asked


def told(step: float, rounding: float, **drawn: float) -> Moved:
    read, _ = passes(step, rounding, **drawn)  # type: ignore[arg-type]
    return tell_apart(read, BF16, read(1.0))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("rounding", [0.0, 8e-4, 0.004, 0.02])
def test_a_step_far_below_the_rounding_is_measured(step: float, rounding: float) -> None:
    """By chance some come out too long, which raises a rate by less; none comes out far too short."""
    found = [told(step, rounding, seed=seed) for seed in range(100)]
    ratios = sorted(moved.nats / step for moved in found)
    assert 0.85 < ratios[50] < 1.2 or 0.01 < step < 5.0 * rounding
    assert ratios[0] > 0.5
    assert ratios[90] < 1.5 or 0.01 < step < 5.0 * rounding
    assert all((moved.rounding or 0.0) < 0.01 for moved in found)


def test_on_the_average_neither_too_long_nor_too_short() -> None:
    found = [told(4e-5, 0.004, seed=seed).nats for seed in range(200)]
    assert sum(found) / len(found) == pytest.approx(4e-5, rel=0.05)


def test_what_rounding_adds_is_found_too() -> None:
    found = [told(4e-5, 0.004, seed=seed, spread=0.1).rounding or 0.0 for seed in range(100)]
    assert sum(found) / len(found) == pytest.approx(0.004, rel=0.1)
    assert told(4e-3, 1e-4).rounding is None


@pytest.mark.parametrize("begins", [0.3, 1.0, 3.0, 10.0, 30.0, 100.0])
def test_roundings_that_only_begin_to_turn_are_not_taken_for_the_step(begins: float) -> None:
    """So small a step turns none; longer ones do, which is a jump of the nats, once."""
    for step in (1e-7, 1e-6):
        ratios = sorted(told(step, 0.004, seed=seed, begins=begins).nats / step for seed in range(100))
        assert ratios[0] > 0.5  # too long by chance is safe: the rate is raised by less, and looked at again
        assert ratios[50] < 2.0


def test_a_step_that_no_multiple_shows_is_left_alone_unless_nothing_shows_at_all() -> None:
    unseen = told(1e-12, 0.004, spread=0.0)
    assert (unseen.nats, unseen.hidden) == (pytest.approx(0.004), 0.0)
    nothing = told(0.0, 0.0)
    assert nothing.nats == nothing.hidden == pytest.approx(BF16 / 4096**2)


def test_a_long_step_costs_one_pass_at_most_and_is_never_multiplied() -> None:
    for step, multiples in ((0.4, [1.0]), (0.05, [1.0, 0.25])):
        read, asked = passes(step, 0.004)
        tell_apart(read, BF16, read(1.0))
        assert asked == multiples


@pytest.mark.parametrize(("step", "most"), [(4e-3, 4), (4e-5, 7), (4e-7, 8), (0.0, 8)])
def test_the_passes_that_it_takes(step: float, most: int) -> None:
    for seed in range(40):
        read, asked = passes(step, 0.004, seed=seed)
        tell_apart(read, BF16, read(1.0))
        assert len(asked) - 1 <= most


@pytest.mark.parametrize("step", [1e-7, 1e-5, 4e-4, 4e-3, 0.012, 0.05])
@pytest.mark.parametrize("rounding", [0.0, 0.004])
@pytest.mark.parametrize("lost", [0.03, 0.1, 0.5])
def test_a_policy_that_is_lost_further_out_is_not_taken_for_rounding(
    step: float, rounding: float, lost: float
) -> None:
    """From so many nats on the policy collapses, and shows the same 16 nats whatever comes after."""
    for seed in range(40):
        draws = random.Random(seed)

        def read(alpha: float) -> float:
            shown = step * alpha**2
            shown = shown if shown < lost else 16.0
            return shown + rounding * math.exp(draws.gauss(0.0, 0.2))  # noqa: B023

        found = tell_apart(read, BF16, read(1.0))
        assert max(found.nats, found.hidden) > 0.4 * step
        assert found.nats < 4.0 * step + 2.0 * rounding or step >= lost


@pytest.mark.parametrize("shown", [0.009, 0.012, 0.028, 0.05, 0.2])
@pytest.mark.parametrize("beyond", [0.4, 0.6, 1.0, 16.0, 1000.0])
def test_a_policy_whose_nats_do_not_grow_any_more_is_no_rounding(shown: float, beyond: float) -> None:
    """At a rate a thousand times too high every multiple shows the same: the rate was raised to 1e19 for it."""

    def read(alpha: float) -> float:
        return shown * min(1.0, beyond * alpha) ** 2

    assert tell_apart(read, BF16, read(1.0)).nats >= 0.3 * read(1.0)


@pytest.mark.parametrize("power", [1.2, 1.5, 1.8])
@pytest.mark.parametrize("shown", [1e-3, 0.004, 0.05])
def test_a_step_that_grows_oddly_is_not_taken_for_rounding(power: float, shown: float) -> None:
    def read(alpha: float) -> float:
        return shown * alpha**power

    assert tell_apart(read, BF16, shown).nats >= 0.45 * shown


def test_what_is_no_number_and_what_is_lost_already_is_not_looked_at_again() -> None:
    def never(alpha: float) -> float:
        raise AssertionError

    assert math.isnan(tell_apart(never, BF16, math.nan).nats)
    assert tell_apart(never, BF16, math.inf).nats == math.inf
    assert tell_apart(never, BF16, 16.3).nats == 16.3


def test_where_rounding_begins_to_turn_a_rate_far_too_low_is_found() -> None:
    """Of SmolLM2 by autocast at 1e-6, TRL's own rate: a sixteenth of the step turns few roundings, and says nothing."""
    for first in (0.0022, 0.0033):

        def read(alpha: float, first: float = first) -> float:
            return 6.7e-7 * alpha**2 + (0.00022 if alpha < 0.2 else first)

        found = tell_apart(read, BF16, first)
        assert found.nats == pytest.approx(6.7e-7, rel=0.05)
        assert found.rounding == pytest.approx(first, rel=0.01)


def test_what_smollm2_showed_in_bfloat16() -> None:
    """Its second step, at 1.3e-4: eight times it nearly loses the policy. In float32 such a step has .003."""
    shown = {1.0: 0.00349, 2.0: 0.012, 4.0: 0.0442, 8.0: 0.772}
    found = tell_apart(shown.__getitem__, BF16, shown[1.0])
    assert found.nats == pytest.approx(0.0027, rel=0.02)
    assert found.rounding is None  # .0008 of .0035: no more than a guess


def test_what_a_tiny_model_showed_at_a_rate_near_its_ruin() -> None:
    """Raised for it four times in a row, to 4e8, where whatever did not grow was rounding."""
    for shown in ({1.0: 0.00395, 2.0: 0.05, 4.0: 4.18}, {1.0: 0.00575, 2.0: 3.0, 4.0: 4.59}):
        found = tell_apart(shown.__getitem__, BF16, shown[1.0])
        assert 0.8 * shown[1.0] < found.nats <= shown[1.0]  # nobody knows how much of it was rounding
        assert found.hidden == 0.0
