"""What a trainer left that is of another kind is unknown, not a traceback: each value in each place, in turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hostile_inputs as hostile
from nextrl.trajectory import trainer_log
from nextrl.trajectory.trajectory import Trajectory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile.write_template(tmp_path_factory.mktemp("run") / "run")


@pytest.mark.parametrize("value", hostile.VALUES, ids=lambda value: repr(value)[:20])
def test_a_step_a_reward_and_a_beta_of_any_kind(run: Path, value: Any) -> None:
    traj, last = Trajectory.load(run), run / "checkpoint-40"
    good = {"step": 1, "reward": 0.5}
    for entry in ({"step": value, "reward": 1.0}, {"step": 2, "reward": value}, value):
        (last / "trainer_state.json").write_bytes(hostile.dumps({"log_history": [entry, good]}))
        rewards = trainer_log.rewards(traj)
        assert all(isinstance(step, int) and abs(reward) < 1e300 for step, reward in rewards.items())
    for group in ({"betas": (value, 0.9)}, {"betas": value}, value):
        torch.save({"param_groups": [group]}, last / "optimizer.pt")
        beta1 = trainer_log.adam_beta1(traj)
        assert beta1 is None or 0 <= beta1 < 1
