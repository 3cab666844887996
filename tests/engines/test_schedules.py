"""The rate under a schedule: scaled whole, read as a share of its height; a rate that is ignored is noticed."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from transformers import TrainerCallback
from transformers.optimization import GreedyLR, get_scheduler

from nextrl import LeapCallback
from nextrl.engines.memory import Memory
from nextrl.engines.rehearsal import falls
from nextrl.engines.run_rate import RunRate
from nextrl.engines.schedules import RateCheck, falls_by_itself, rate_of, set_rate_factor, share_of
from trl_runs import fresh_model, trainer


def optimizer(lr: Any = 1e-3) -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=lr)


# Schedules that make rates of more than one number.
SCHEDULES: dict[str, Any] = {
    "OneCycleLR": lambda o: OneCycleLR(o, max_lr=2e-3, total_steps=12),
    "three phases": lambda o: OneCycleLR(
        o, max_lr=2e-3, total_steps=12, three_phase=True, anneal_strategy="linear"
    ),
    "CyclicLR": lambda o: CyclicLR(o, base_lr=1e-4, max_lr=1e-3, step_size_up=3, cycle_momentum=False),
    "restarts": lambda o: CosineAnnealingWarmRestarts(o, T_0=4, eta_min=1e-4),
    "plateau": lambda o: ReduceLROnPlateau(o, patience=0, factor=0.5, min_lr=2e-4),
    "greedy": lambda o: GreedyLR(o, patience=0, factor=0.5, min_lr=2e-4, max_lr=4e-3),
    "sequence": lambda o: SequentialLR(
        o, [ConstantLR(o, 0.5, 3), OneCycleLR(o, max_lr=2e-3, total_steps=12)], [3]
    ),
}


@pytest.mark.parametrize("factor", [4.0, 0.25])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_later_rate_is_the_factor_times_what_it_would_have_been(name: str, factor: float) -> None:
    plain, scaled = optimizer(), optimizer()
    schedules = [(o, SCHEDULES[name](o)) for o in (plain, scaled)]
    rates = []
    for step in range(11):
        if step == 2:
            set_rate_factor(scaled, schedules[1][1], factor)
        rates.append(rate_of(plain))
        assert rate_of(scaled) == (factor if step >= 2 else 1.0) * rates[-1]
        for o, schedule in schedules:
            o.step()
            schedule.step(*([1.0] if name in ("plateau", "greedy") else []))
    assert len(set(rates)) > 2


def test_a_rate_that_is_a_tensor_stays_the_same_tensor() -> None:
    rate = torch.tensor(1e-3)
    made = torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.ones(2))]} for _ in range(2)], lr=rate)
    held = [group["lr"] for group in made.param_groups]
    schedule = LambdaLR(made, lambda step: 1.0)
    set_rate_factor(made, schedule, 4.0)
    assert [float(group["lr"]) for group in made.param_groups] == pytest.approx([4e-3] * 2)
    assert all(group["lr"] is one for group, one in zip(made.param_groups, held, strict=True))
    schedule.step()
    assert rate_of(made) == pytest.approx(4e-3)


def test_a_share_is_of_the_schedule_s_height() -> None:
    made = optimizer()
    schedule = OneCycleLR(made, max_lr=2e-3, total_steps=12, pct_start=0.5)
    shares = []
    for _ in range(12):
        shares.append(share_of(made, schedule))
        made.step()
        if len(shares) < 12:
            schedule.step()
    assert shares[0] == pytest.approx(1 / 25)
    assert max(shares) == pytest.approx(1.0, abs=0.02)
    assert shares[-1] < 0.01
    made = optimizer()
    assert share_of(made, CyclicLR(made, 1e-4, 1e-3, cycle_momentum=False)) == pytest.approx(0.1)
    assert share_of(optimizer(), None) == 1.0


@pytest.mark.parametrize(
    ("name", "options", "falls"),
    [
        ("constant", {}, False),
        ("constant_with_warmup", {"num_warmup_steps": 3}, False),
        ("linear", {"num_warmup_steps": 3, "num_training_steps": 10}, True),
        ("cosine_with_restarts", {"num_warmup_steps": 0, "num_training_steps": 10}, True),
        # At its height where the cooldown would begin, and down at the end.
        (
            "warmup_stable_decay",
            {
                "num_warmup_steps": 1,
                "num_training_steps": 10,
                "scheduler_specific_kwargs": {"num_decay_steps": 1},
            },
            True,
        ),
    ],
)
def test_a_schedule_that_falls_by_itself_is_known_beforehand(name: str, options: Any, falls: bool) -> None:
    assert falls_by_itself(get_scheduler(name, optimizer(), **options), 8, 11) is falls


def test_schedules_that_lower_the_rate_when_they_see_fit_are_known() -> None:
    for name in ("OneCycleLR", "CyclicLR", "restarts", "plateau", "greedy"):
        assert falls_by_itself(SCHEDULES[name](optimizer()), 8, 11), name
    assert not falls_by_itself(None, 8, 11)


def down(o: Any, start: int, steps: int) -> Any:
    """Warm-up, stable, decay, of torch's own parts."""
    parts = [LinearLR(o, 0.25, total_iters=2), ConstantLR(o, 1.0), LinearLR(o, 1.0, 0.01, total_iters=steps)]
    return SequentialLR(o, parts, [2, start])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda o: MultiStepLR(o, [9], 0.1), True),
        (lambda o: MultiStepLR(o, [12], 0.1), False),  # after the run's end
        (lambda o: down(o, 9, 2), True),
        (lambda o: down(o, 12, 2), False),
        (lambda o: LinearLR(o, 0.1, total_iters=11), False),  # it rises to the end
        (lambda o: ConstantLR(o, 1.0), False),
        (lambda o: OneCycleLR(o, max_lr=2e-3, total_steps=12), True),
        (lambda o: LambdaLR(o, lambda step: 1.0 if step < 9 else 0.1), True),
        (lambda o: None, False),
    ],
)
def test_whether_a_schedule_is_going_to_fall_is_tried_where_its_kind_does_not_say_it(
    make: Any, expected: bool
) -> None:
    made = optimizer()
    schedule = make(made)
    for _ in range(7):  # the eighth step of eleven is to come
        if schedule is not None:
            made.step()
            schedule.step()
    before = made.param_groups[0]["lr"]
    assert falls(made, schedule, 8, 11) is expected
    assert made.param_groups[0]["lr"] == before


# What a rate is a share of, and whose it is: a run as `RunRate` sees it.


class Told:
    """A run whose schedule is tried beforehand with this result."""

    ranks, max_steps, optimizer_name = SimpleNamespace(leader=True), 20, "AdamW"

    def __init__(self, share: float, rises: bool | None = None, follows: bool | None = True) -> None:
        self.share, self.rate, self.released = share, share, 1.0
        self.rises = lambda steps: rises
        self.follows = lambda steps: follows

    def release_rate(self, factor: float) -> None:
        self.released *= factor


def rate_of_run(run: Told) -> RunRate:
    policy: Any = SimpleNamespace(undoes=True)
    return RunRate(run, policy, True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rises", "step", "ahead"),
    [(True, 0, 1.0), (True, 7, 1.0), (False, 0, 0.2), (False, 7, 0.2), (None, 0, 1.0), (None, 7, 0.2)],
)
def test_a_share_that_is_seen_first_is_of_what_the_schedule_heads_for(
    rises: bool | None, step: int, ahead: float
) -> None:
    run = Told(0.2, rises)
    rate = rate_of_run(run)
    assert rate.share_ahead(step) == pytest.approx(0.2 / ahead)
    run.share = 0.4  # and where it rises after all, it is a warm-up
    assert rate.share_ahead(step + 1) == pytest.approx(0.4)
    again = rate_of_run(run)
    again.restore(rate.state())
    run.share = 0.3
    assert again.share_ahead(step + 2) == pytest.approx(1.0)


def test_a_run_taken_up_at_a_rate_of_zero_has_no_share() -> None:
    assert rate_of_run(Told(0.0, False)).share_ahead(7) == 0.0


@pytest.mark.parametrize(
    ("follows", "factor", "rates", "noticed"),
    [
        (None, 10.0, [1.0, 10.0, 10.0, 0.95], 3),  # as if there had been no factor, as soon as it moves
        (None, 0.1, [1.0, 0.1, 1.02], 2),
        (None, 10.0, [1.0, 9.5, 9.0, 0.9], None),  # followed at first, and fell then
        (None, 10.0, [1.0, 9.5, 5.0], None),
        (None, 1.5, [1.0, 1.5, 1.0], None),  # does not stand out
        (True, 10.0, [1.0, 10.0, 1.0], None),  # one of torch's, at a milestone
        (False, 1.0, [1.0], 0),
    ],
)
def test_a_schedule_that_cannot_be_tried_is_judged_by_its_first_move(
    follows: bool | None,
    factor: float,
    rates: list[float],
    noticed: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = Told(1.0, follows=follows)
    rate, memory = rate_of_run(run), Memory({})
    for step, run.rate in enumerate(rates):
        memory.factor = factor if step and rate.adapts else memory.factor
        rate.leave_to_schedule(step + 1, memory)
        assert rate.adapts is (noticed is None or step < noticed)
    assert len(caplog.records) == (noticed is not None)
    assert memory.factor == (factor if noticed is None else 1.0)
    assert run.released == (factor if noticed else 1.0)


# A rate that is ignored.


class Deaf(torch.optim.AdamW):
    """Steps at the rate that it was made with."""

    def step(self, closure: Any = None) -> None:
        held = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = 1e-6
        super().step()
        for group, lr in zip(self.param_groups, held, strict=True):
            group["lr"] = lr


class Rates(TrainerCallback):
    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])


@pytest.mark.parametrize("kind", [Deaf, torch.optim.AdamW])
def test_an_optimizer_that_ignores_the_rate_is_noticed_by_its_next_step(
    tmp_path: Path, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model, rates = fresh_model(), Rates()
    made = kind([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    callback = LeapCallback()
    run = trainer(tmp_path, [callback, rates], model=model, optimizers=(made, None), max_steps=5)
    run.train()
    assert callback.decisions[0].rate_factor > 100
    lines = [
        r.getMessage()
        for r in caplog.records
        if "does not take its rate from its param_groups" in r.getMessage()
    ]
    if kind is not Deaf:
        assert lines == []
        assert rates.rates[1] > 1e-4
        return
    (line,) = lines
    assert line.startswith("nextrl, step 2: the learning rate was multiplied by")
    assert "Deaf does not" in line
    assert "\n" not in line
    assert [r.levelno for r in caplog.records if r.getMessage() == line] == [logging.WARNING]
    assert rates.rates[1] > 1e-4
    assert rates.rates[2:] == pytest.approx([1e-6] * 3)  # as if it had never been changed
    assert [d.step for d in callback.decisions if d.rate_factor != 1.0] == [1]


def test_one_step_of_another_length_is_no_evidence_against_a_small_change() -> None:
    check = RateCheck()
    check.changed(1.0, 1e-3)
    assert not check.ignored(1.0, 2e-3)
    assert not check.settled
    assert not check.waiting


def test_a_step_without_a_finite_length_is_compared_with_nothing() -> None:
    check = RateCheck()
    for length in (math.inf, math.nan, 0.0):
        check.changed(length, 1e-3)
        assert not check.waiting


def test_small_changes_add_up() -> None:
    def noticed(follow: bool) -> int:
        check = RateCheck()
        for number in range(1, 40):
            check.changed(1.0, 1e-3)
            if check.ignored(0.5 if follow else 1.0, 5e-4):
                return number
        return 0

    assert noticed(follow=True) == 0
    assert 8 < noticed(follow=False) < 20


def test_a_step_of_no_length_is_waited_out() -> None:
    check = RateCheck()
    check.changed(1.0, 1e-6)
    assert not check.ignored(0.0, 1e-3)
    assert check.waiting
    assert not check.ignored(math.nan, 1e-3)
    assert check.ignored(1.0, 1e-3)
