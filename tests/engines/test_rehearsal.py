"""A schedule tried on a copy: which way the rate goes next, and whether a factor reaches it. Nothing is touched."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler as schedules
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler
from transformers.optimization import get_scheduler

from nextrl.engines.rehearsal import follows, rises


def optimizer(groups: int = 1) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": 1e-3 * (i + 1)} for i in range(groups)]
    )


class Own(LRScheduler):
    """The usual cosine by hand: its height is its own, or that of the optimizer's groups."""

    def __init__(self, made: Any, height: float | None = None, held: Any = None) -> None:
        self.height, self.held = height, held
        super().__init__(made)

    def get_lr(self) -> list[Any]:
        shape = 0.5 * (1 + math.cos(math.pi * self.last_epoch / 40))
        return [(self.height or base) * shape for base in self.base_lrs]


class Floored(LRScheduler):
    """Takes its rates from the groups, and holds them above a number of its own at the end."""

    def get_lr(self) -> list[Any]:
        return [max(1e-4, base * (1 - self.last_epoch / 20)) for base in self.base_lrs]


class Asks(schedules.ReduceLROnPlateau):
    """Cannot step without a metric."""


class Product(schedules.ExponentialLR):
    """A user's own, on torch's."""


def warmed(o: Any, after: int = 5) -> LambdaLR:
    return get_scheduler("linear", o, num_warmup_steps=after, num_training_steps=20)


def in_turn(o: Any, last: Any = None) -> schedules.SequentialLR:
    return schedules.SequentialLR(
        o, [LinearLR(o, 0.1, total_iters=4), last(o) if last else schedules.CosineAnnealingLR(o, 10)], [4]
    )


# name -> schedule, steps taken -> whether it rises next
RISES: dict[str, tuple[Any, dict[int, bool | None]]] = {
    "milestones": (lambda o: schedules.MultiStepLR(o, [3, 9], 0.1), {0: False, 3: False, 5: False, 9: False}),
    "steps": (lambda o: schedules.StepLR(o, 3), {4: False}),
    "product": (lambda o: schedules.ExponentialLR(o, 0.9), {4: False}),
    "cosine": (lambda o: schedules.CosineAnnealingLR(o, 20), {4: False}),
    "linear decay": (lambda o: warmed(o, 0), {0: False, 7: False}),
    "warm-up": (warmed, {0: True, 3: True, 5: False, 8: False}),
    "linear warm-up": (lambda o: LinearLR(o, 0.1, total_iters=4), {0: True, 3: True, 4: False}),
    "held low at first": (lambda o: schedules.ConstantLR(o, 0.5, total_iters=6), {0: True, 5: True}),
    "one cycle": (
        lambda o: schedules.OneCycleLR(o, 2e-3, total_steps=20),
        {0: True, 3: True, 12: False, 18: False},
    ),
    "in turn": (in_turn, {0: True, 3: True, 6: False}),
    "cyclic": (lambda o: schedules.CyclicLR(o, 1e-4, 1e-3, 3, cycle_momentum=False), {1: True, 4: False}),
    "chained": (
        lambda o: schedules.ChainedScheduler(
            [LinearLR(o, 0.1, total_iters=4), schedules.ExponentialLR(o, 0.9)]
        ),
        {0: True, 6: False},
    ),
    "plateau": (lambda o: schedules.ReduceLROnPlateau(o), {0: None}),
    "own": (lambda o: Own(o, 2e-3), {0: False, 5: False}),
}


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("name", RISES)
@pytest.mark.filterwarnings("ignore:Detected call of")
def test_which_way_the_rate_goes_next_is_known_and_nothing_is_touched(name: str, groups: int) -> None:
    make, expected = RISES[name]
    made = optimizer(groups)
    schedule = make(made)
    for step in range(max(expected) + 1):
        if step in expected:
            rates, state = [g["lr"] for g in made.param_groups], copy.deepcopy(_plain(schedule))
            assert rises(made, SimpleNamespace(scheduler=schedule), 20) is expected[step], step
            assert [g["lr"] for g in made.param_groups] == rates
            assert _plain(schedule) == state
        if step < max(expected):
            schedule.step()


def _plain(schedule: Any) -> dict[str, Any]:
    """What of a schedule's state are numbers."""
    kept = {k: v for k, v in schedule.state_dict().items() if isinstance(v, (int, float, list))}
    return {k: v for k, v in kept.items() if k not in ("_schedulers", "lr_lambdas")} | {
        str(i): _plain(one) for i, one in enumerate(getattr(schedule, "_schedulers", ()))
    }


def test_a_rate_that_stays_is_no_rise() -> None:
    made = optimizer()
    assert rises(made, LambdaLR(made, lambda step: 0.3), 10) is False
    assert rises(made, LambdaLR(made, lambda step: 0.3 if step < 50 else 1.0), 10) is False
    assert rises(made, None, 10) is None


FOLLOWS: dict[str, tuple[Any, bool | None]] = {
    "from the groups": (Own, True),
    "from a number of its own": (lambda o: Own(o, 2e-3), False),
    "with a floor of its own": (lambda o: Floored(o), False),
    "torch's": (lambda o: schedules.CosineAnnealingLR(o, 10, eta_min=1e-5), True),
    "torch's, that asks for a metric": (lambda o: schedules.ReduceLROnPlateau(o, min_lr=1e-5), True),
    "on torch's": (lambda o: Product(o, 0.9), True),
    "on torch's, that asks for a metric": (lambda o: Asks(o), None),
    "a warm-up of torch's before one's own": (lambda o: in_turn(o, lambda p: Own(p, 2e-3)), False),
    "a warm-up of torch's before one from the groups": (lambda o: in_turn(o, Own), True),
    "that holds the model": (lambda o: Own(o, held=torch.nn.Sequential(torch.nn.Linear(2, 2))), True),
    "that holds what holds the model": (
        lambda o: Own(o, held=SimpleNamespace(model=torch.nn.Linear(2, 2))),
        None,
    ),
}


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("name", FOLLOWS)
def test_a_schedule_that_a_factor_does_not_reach_is_known_beforehand(name: str, groups: int) -> None:
    make, expected = FOLLOWS[name]
    made = optimizer(groups)
    schedule = make(made)
    rates, state = [g["lr"] for g in made.param_groups], copy.deepcopy(_plain(schedule))
    assert follows(made, schedule, 20) is expected
    assert [g["lr"] for g in made.param_groups] == rates
    assert _plain(schedule) == state
    assert follows(made, None, 20) is True


def test_neither_the_model_nor_the_weights_of_an_optimizer_are_copied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def copied(*_: Any) -> Any:
        raise AssertionError("a weight was copied")

    made, model = optimizer(), torch.nn.Linear(2, 2)
    schedule = Own(made, held=[model, torch.optim.SGD(model.parameters())])
    for p in (*model.parameters(), *made.param_groups[0]["params"]):
        monkeypatch.setattr(p, "__deepcopy__", copied, raising=False)
    monkeypatch.setattr(torch.nn.Linear, "__deepcopy__", copied, raising=False)
    assert follows(made, schedule, 5) is True
    assert rises(made, schedule, 5) is False


def test_a_method_put_in_the_place_of_a_schedule_s_own_is_not_called() -> None:
    """A copy would have the same one, which steps the schedule itself."""
    made = optimizer()
    schedule = Own(made)
    real = schedule.step
    schedule.step = lambda *_: real()  # type: ignore[method-assign]
    assert rises(made, schedule, 5) is None
    assert schedule.last_epoch == 0


class AbsoluteFloor(LRScheduler):
    """A cosine to a floor, or after a warm-up from a rate, that are numbers of its own; it counts its calls."""

    def __init__(self, made: Any, total: int, floor: float = 0.0, warm: float = 0.0) -> None:
        self.total, self.floor, self.warm, self.calls = total, floor, warm, 0
        super().__init__(made)

    def get_lr(self) -> list[Any]:
        self.calls += 1
        CALLS.append(self.last_epoch)
        if self.warm and self.last_epoch < 10:
            return [self.warm + (base - self.warm) * self.last_epoch / 10 for base in self.base_lrs]
        shape = 0.5 * (1 + math.cos(math.pi * self.last_epoch / self.total))
        return [max(self.floor, base * shape) for base in self.base_lrs]


CALLS: list[int] = []


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("total", [100, 10_000])
@pytest.mark.parametrize(
    ("numbers", "expected"),
    [({"floor": 1e-8}, True), ({"warm": 1e-7}, True), ({"floor": 1e-4}, False), ({"warm": 5e-4}, False)],
)
def test_a_number_of_its_own_counts_where_it_is_not_next_to_nothing(
    numbers: dict[str, float], expected: bool, total: int
) -> None:
    """A floor of 1e-8 had `auto` leave the rate alone for a whole run; one at the end of a long run is seen."""
    made = optimizer()
    schedule = AbsoluteFloor(made, total, **numbers)
    assert follows(made, schedule, total) is expected
    for _ in range(total * 9 // 10):
        schedule.step()
    if "warm" in numbers:  # it is over
        expected = True
    assert follows(made, schedule, total // 10) is expected


def test_a_schedule_is_tried_at_a_few_hundred_steps_and_its_own_count_stays() -> None:
    made = optimizer()
    schedule = AbsoluteFloor(made, 10_000)
    CALLS.clear()
    assert follows(made, schedule, 10_000) is True
    assert len(CALLS) < 1000
    assert max(CALLS) == 10_000
    assert (schedule.calls, schedule.last_epoch) == (1, 0)


@pytest.mark.parametrize("draw", [lambda: float(torch.rand(())), random.random, np.random.rand])
def test_a_schedule_that_draws_its_rates_is_tried_with_the_same_numbers_and_none_of_the_trainer_s(
    draw: Callable[[], float],
) -> None:
    made = optimizer()
    schedule = LambdaLR(made, lambda step: 1.0)
    schedule.__class__ = type(
        "Drawn", (LambdaLR,), {"get_lr": lambda s: [b * (1 + draw()) for b in s.base_lrs]}
    )
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(7)
    following = draw()
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(7)
    assert follows(made, schedule, 50) is True
    assert rises(made, schedule, 50) is not None
    assert draw() == following
