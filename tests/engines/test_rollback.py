"""A snapshot of a run: when it is asked back, and that everything comes back."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from nextrl.engines.rollback import Snapshot, read_moments, write_moments
from nextrl.judge.window import Window


def snapshot(reward: float = 0.6, variance: float = 0.0) -> Snapshot:
    return Snapshot(10, 8.0, 80.0, 1.0, reward, variance, {}, [])


def window(*rewards: float) -> Window:
    return Window(20, None, rewards, 1e-4)


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


def test_moments_come_back_to_the_bit_and_in_place() -> None:
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(3)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": weights[:1]}, {"params": weights[1:]}])

    def step() -> None:
        for w in weights:
            w.grad = torch.randn(3)
        optimizer.step()

    step()
    kept = read_moments(optimizer)
    held = optimizer.state[weights[0]]["exp_avg"]
    step()
    assert not torch.equal(held, kept[0]["exp_avg"])
    write_moments(optimizer, kept)
    assert optimizer.state[weights[0]]["exp_avg"] is held
    for now, then in zip(read_moments(optimizer), kept, strict=True):
        assert now.keys() == then.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(now[k], then[k]) for k in now)


def test_moments_that_are_missing_come_back_where_the_parameter_lies() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, device="meta"))
    optimizer = torch.optim.AdamW([parameter])
    write_moments(optimizer, [{"exp_avg": torch.ones(2), "step": torch.tensor(3.0)}])
    found = optimizer.state[parameter]
    assert (found["exp_avg"].device.type, found["step"].device.type) == ("meta", "cpu")


def test_an_optimizer_that_has_not_stepped_gets_its_state_from_the_snapshot() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    write_moments(torch.optim.AdamW([weight]), [{}])
    fresh = torch.optim.AdamW([weight])
    write_moments(fresh, [{"exp_avg": torch.ones(2), "step": 3}])
    assert fresh.state[weight]["step"] == 3
    assert torch.equal(fresh.state[weight]["exp_avg"], torch.ones(2))
