"""Checkpoints in memory and on disk: both count from the last leap, and give the same trajectory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file

import lora_runs
from leapt_runs import MODULE, leapt_run
from nextrl.engines.history import AdapterHistory, DiskHistory
from nextrl.engines.live_adapter import LiveAdapter
from nextrl.errors import InputError
from nextrl.extrapolators import names
from nextrl.leaps.leap import leap
from nextrl.trajectory.combinations import known_steps
from nextrl.trajectory.trajectory import Trajectory


def test_the_first_two_stay_and_the_third_oldest_goes() -> None:
    history = AdapterHistory(most=5)
    history.begin(100, {})
    for step in range(110, 161, 10):
        history.add(step, {"of": torch.tensor(step)}, reward=step / 1000)
    assert history.steps == [100, 110, 140, 150, 160]
    assert [int(state["of"]) for state in history.states[1:]] == history.steps[1:]
    assert history.accuracy() == {10: 0.11, 40: 0.14, 50: 0.15, 60: 0.16}
    history.begin(160, {})
    assert (history.steps, history.accuracy()) == ([160], {})


@pytest.mark.parametrize(("most", "kept"), [(2, [0, 60]), (3, [0, 50, 60]), (4, [0, 10, 50, 60])])
def test_of_few_checkpoints_the_last_window_stays_whole(most: int, kept: list[int]) -> None:
    history = AdapterHistory(most=most)
    history.begin(0, {})
    for step in range(10, 61, 10):
        history.add(step, {}, reward=0.5)
    assert history.steps == kept


def test_the_first_update_is_still_the_first_after_many_windows() -> None:
    """A run that goes along one matrix up to step 10, and along another from there on."""
    a, b, other = torch.eye(3, 6), torch.zeros(5, 3), torch.zeros(5, 3)
    b[0, 0], other[1, 1] = 1.0, 1.0
    history = AdapterHistory()
    history.begin(0, {"b": 0 * b})
    for step in range(10, 301, 10):
        history.add(step, {"b": b + other * (step - 10)}, reward=0.5)
    adapter: Any = SimpleNamespace(
        matrices=lambda state: {MODULE: (a, state["b"])}, scalings=lambda: {MODULE: 1.0}
    )
    traj = history.trajectory(adapter)
    assert len(traj.steps) == history.most
    moved = leap(traj, "first-update", horizon=10).delta(MODULE)
    torch.testing.assert_close(moved.dense(), (b @ a).double())
    assert float(leap(traj, "secant", horizon=10).delta(MODULE).norm()) == pytest.approx(10.0)


def test_the_trajectory_counts_from_its_own_start_and_holds_the_live_weights() -> None:
    torch.manual_seed(0)
    adapter = LiveAdapter(get_peft_model(lora_runs.model(), lora_runs.lora()))
    history, states = AdapterHistory(), []
    for step in (30, 40, 50):
        for p in adapter.parameters.values():
            p.data += 0.01 * torch.randn(p.shape)
        states.append(adapter.read())
        history.begin(step, states[-1]) if step == 30 else history.add(step, states[-1], float("nan"))
    traj = history.trajectory(adapter)
    assert traj.steps == (0, 10, 20)
    assert history.accuracy() == {}
    moved = lora_runs.displacement(adapter, states[0], states[2])
    for module, delta in zip(adapter.pairs, moved, strict=True):
        torch.testing.assert_close(
            traj.delta(module, 0, 20).dense(), delta.dense().double(), rtol=1e-4, atol=1e-6
        )


def on_disk(run: Path) -> tuple[DiskHistory, dict[int, Path]]:
    """A run that leapt by 100 steps at step 100, and is now at step 200."""
    folders = leapt_run(run, wobble=0.02)
    history = DiskHistory(run, run / "leaps")
    made = leap(history.trajectory(100), "secant", horizon=100)
    history.moved(100, made)
    return history, {**folders, 100: run / "leaps" / "leap-100"}


def in_memory(folders: dict[int, Path]) -> Trajectory:
    """The same stretch as `AdapterHistory` keeps it."""
    a, b = (f"base_model.model.{MODULE}.lora_{side}.weight" for side in "AB")
    states = {step: load_file(folder / "adapter_model.safetensors") for step, folder in folders.items()}
    history = AdapterHistory()
    history.begin(100, states[100])
    for step in range(110, 201, 10):
        history.add(step, states[step], reward=0.5)
    adapter: Any = SimpleNamespace(
        matrices=lambda state: {MODULE: (state[a], state[b])}, scalings=lambda: {MODULE: 2.0}
    )
    return history.trajectory(adapter)


@pytest.mark.parametrize("name", [n for n in names() if n not in ("alpharl", "next-paper")])
def test_after_a_leap_the_disk_and_the_memory_give_the_same_leap(name: str, tmp_path: Path) -> None:
    history, folders = on_disk(tmp_path)
    disk, memory = history.trajectory(200), in_memory(folders)
    assert (disk.start, known_steps(disk)) == (100, disk.steps)
    assert tuple(step - 100 for step in disk.steps) == memory.steps
    one, other = (leap(traj, name, horizon=30).delta(MODULE).dense() for traj in (disk, memory))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_a_leap_of_100_after_a_leap_adds_100(tmp_path: Path) -> None:
    folders = leapt_run(tmp_path)
    history = DiskHistory(tmp_path, tmp_path)
    history.restore({"since": 100, "leapt": True})
    traj = history.trajectory(200)
    step = traj.delta(MODULE, 190, 200)
    assert traj.checkpoints[0].step == 100
    assert folders[100].name == "leap-100"
    for name in ("linear", "rank1-linear", "dmd", "relex", "secant", "factors"):
        moved = leap(traj, name, horizon=100).delta(MODULE)
        assert float(moved.inner(step) / step.square) * 10 == pytest.approx(100, rel=1e-4), name


def test_after_a_rollback_the_run_begins_at_that_step(tmp_path: Path) -> None:
    """The trainer saves after the leap was taken back, so the checkpoint of that step is where the run stands."""
    leapt_run(tmp_path)
    history = DiskHistory(tmp_path, tmp_path / "leaps")
    history.moved(150, None)
    traj = history.trajectory(200)
    assert (traj.start, traj.steps, known_steps(traj)) == (150, (150, 160, 170, 180, 190, 200), traj.steps)
    step = traj.delta(MODULE, 190, 200)
    moved = leap(traj, "linear", horizon=50).delta(MODULE)
    assert float(moved.inner(step) / step.square) * 10 == pytest.approx(50, rel=1e-4)


def test_a_rollback_between_two_checkpoints_leaves_the_start_unknown(tmp_path: Path) -> None:
    leapt_run(tmp_path)
    history = DiskHistory(tmp_path, tmp_path / "leaps")
    history.moved(155, None)
    traj = history.trajectory(200)
    assert known_steps(traj) == (160, 170, 180, 190, 200)
    with pytest.raises(InputError, match="began at step 155, whose checkpoint is not there"):
        leap(traj, "linear", horizon=10).delta(MODULE)
    assert float(leap(traj, "secant", horizon=10).delta(MODULE).norm()) > 0


def test_before_any_leap_it_begins_at_the_base_model(tmp_path: Path) -> None:
    leapt_run(tmp_path)
    traj = DiskHistory(tmp_path, tmp_path / "leaps").trajectory(100)
    assert (traj.start, known_steps(traj)[0], traj.steps[0]) == (0, 0, 10)
