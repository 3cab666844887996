"""Rewards read from a trainer, and rates scaled with their schedules (rollouts themselves: test_callback.py)."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, SequentialLR
from trl import SFTTrainer

import trl_runs
from nextrl.engines.schedules import set_rate_factor
from nextrl.engines.trl.rollouts import InGroups, RewardMeter, TrainerRollouts
from trl_runs import VALIDATION


def in_groups(*places: int) -> list[Any]:
    """Some validation rows, each as often as a training batch has it."""
    return list(InGroups([VALIDATION[i] for i in places], 4))


def fake() -> Any:
    """A trainer that has nothing but its metrics: of the kinds that the seam knows, SFT's needs least beside them."""
    trainer = SFTTrainer.__new__(SFTTrainer)
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    trainer.padding_free = False
    return trainer


def test_each_reward_is_read_once() -> None:
    trainer = fake()
    meter = RewardMeter(trainer)
    rewards = trainer._metrics["train"]["reward"]
    rewards.append(0.5)
    assert meter.new() == 0.5
    rewards += [0.2, 0.4]  # two generations in one optimizer step
    assert meter.new() == pytest.approx(0.3)


def test_a_log_clears_the_list_and_the_next_reward_is_new() -> None:
    trainer = fake()
    meter = RewardMeter(trainer)
    for value in (0.1, 0.2, 0.3):
        trainer._metrics["train"]["reward"].append(value)
        assert meter.new() == value
        trainer._metrics["train"].clear()


def test_a_buffered_step_repeats_the_last_reward_and_leaves_no_empty_metric() -> None:
    trainer = fake()
    meter = RewardMeter(trainer)
    assert math.isnan(meter.new())
    trainer._metrics["train"]["reward"].append(0.7)
    assert meter.new() == 0.7
    trainer._metrics["train"].clear()
    assert meter.new() == 0.7
    assert "reward" not in trainer._metrics["train"]


def test_a_reward_that_is_no_number_is_skipped() -> None:
    trainer = fake()
    meter = RewardMeter(trainer)
    trainer._metrics["train"]["reward"] += [0.5, math.nan]
    assert meter.new() == 0.5


def optimizer() -> torch.optim.Optimizer:
    one, two = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    return torch.optim.AdamW([{"params": [one], "lr": 1.0}, {"params": [two], "lr": 0.1}])


SCHEDULES: dict[str, Any] = {
    "warm-up": lambda o: LambdaLR(o, lambda s: min(1.0, (s + 1) / 5)),
    "cosine": lambda o: CosineAnnealingLR(o, T_max=12),
    "sequence": lambda o: SequentialLR(o, [LinearLR(o, 0.1, total_iters=4), CosineAnnealingLR(o, 8)], [4]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_scaled_schedule_is_the_schedule_times_the_factor(name: str) -> None:
    plain, scaled = optimizer(), optimizer()
    schedules = SCHEDULES[name](plain), SCHEDULES[name](scaled)
    for step in range(11):
        if step == 2:
            set_rate_factor(scaled, schedules[1], 3.0)
            assert schedules[1].get_last_lr() == [g["lr"] for g in scaled.param_groups]
        factor = 3.0 if step >= 2 else 1.0
        for a, b in zip(plain.param_groups, scaled.param_groups, strict=True):
            assert b["lr"] == pytest.approx(factor * a["lr"], rel=1e-6)
        for o, schedule in ((plain, schedules[0]), (scaled, schedules[1])):
            o.step()
            schedule.step()


def test_wrapped_optimizers_and_absent_schedules_are_reached() -> None:
    inner = optimizer()
    set_rate_factor(SimpleNamespace(optimizer=inner), None, 2.0)  # type: ignore[arg-type]
    assert [g["lr"] for g in inner.param_groups] == [2.0, 0.2]


def test_rewards_weigh_the_trainer_s_functions_and_skip_what_was_not_graded(tmp_path: Any) -> None:
    def ones(completions: list[str], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    def some(completions: list[str], **_: Any) -> list[float | None]:
        return [10.0 if i % 2 else None for i in range(len(completions))]

    trainer = trl_runs.trainer(tmp_path, rewards=[ones, some], reward_weights=[0.5, 2.0])
    rollouts = TrainerRollouts(trainer)
    rewards = rollouts.rewards(in_groups(0), seed=0)
    assert rewards.tolist() == [0.5, 20.5, 0.5, 20.5]
    assert rewards.dtype == torch.float64
    assert rollouts.completions == 4
    assert 1 <= rollouts.mean_length <= 6
