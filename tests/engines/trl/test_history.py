"""Checkpoints in memory: bounded, counted from the last leap, and the trajectory that a run on disk would give."""

from __future__ import annotations

import torch
from peft import get_peft_model

import lora_runs
from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.trl.history import AdapterHistory


def test_the_first_stays_and_the_second_oldest_goes() -> None:
    history = AdapterHistory(most=4)
    history.begin(100, {})
    for step in range(110, 161, 10):
        history.add(step, {}, reward=step / 1000)
    assert history.steps == [100, 140, 150, 160]
    assert len(history.states) == 4
    assert history.accuracy() == {40: 0.14, 50: 0.15, 60: 0.16}
    history.begin(160, {})
    assert (history.steps, history.accuracy()) == ([160], {})


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
    moved = adapter.displacement(states[0], states[2])
    for module, delta in zip(adapter.pairs, moved, strict=True):
        torch.testing.assert_close(
            traj.delta(module, 0, 20).dense(), delta.dense().double(), rtol=1e-4, atol=1e-6
        )
