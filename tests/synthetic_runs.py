"""More paths for `nextrl.testing.synthetic_run`: runs whose future is known in closed form."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nextrl.judge.advice_features import AdviceFeatures
from nextrl.judge.regime import PersistenceWindow
from nextrl.leaps.leap import leap
from nextrl.testing import MODULES, RANK, STEPS, Path, seal_after
from nextrl.testing import drifting_walk as walk
from nextrl.testing import straight_line as line
from nextrl.testing import synthetic_run as run
from nextrl.trajectory.trajectory import Trajectory

__all__ = [
    "MODULES",
    "RANK",
    "STEPS",
    "Path",
    "Tensor",
    "Trajectory",
    "line",
    "run",
    "seal_after",
    "walk",
    "write",
]


def rank_one_line(t: float, p: Tensor, q: Tensor, noise: Tensor) -> Tensor:
    """Straight, along one rank-1 matrix."""
    return torch.outer(p[:, 0], q[0]) * (t / 100)


def parabola(t: float, p: Tensor, q: Tensor, noise: Tensor) -> Tensor:
    """Curved."""
    return p * (t / 100) + q * (t / 100) ** 2


def saturating(tau: float) -> Path:
    """1 - exp(-t / tau)."""
    return lambda t, p, q, noise: p * (1 - math.exp(-t / tau))


def rotation(t: float, p: Tensor, q: Tensor, noise: Tensor) -> Tensor:
    """Once around in 200 steps, from zero."""
    angle = 2 * math.pi * t / 200
    return p * (math.cos(angle) - 1) + q * math.sin(angle)


def oscillation(t: float, p: Tensor, q: Tensor, noise: Tensor) -> Tensor:
    """To and fro in 80 steps."""
    return p * math.sin(2 * math.pi * t / 80)


def noise(t: float, p: Tensor, q: Tensor, noise: Tensor) -> Tensor:
    """Around zero, independent at each step."""
    return noise


def offset_noise(t: float, p: Tensor, q: Tensor, noise: Tensor) -> Tensor:
    """Around a point that is not the start."""
    return p + noise


def error(traj: Trajectory, prediction, at: int, later: int, alpha: float = 1.0) -> float:
    """|predicted - actual| / |actual| over all modules."""
    wrong = real = 0.0
    for module in traj.modules:
        actual = traj.delta(module, at, later)
        wrong += float((prediction.delta(module, alpha) - actual).norm()) ** 2
        real += float(actual.norm()) ** 2
    return math.sqrt(wrong / real)


def write(
    folder: pathlib.Path,
    path: Path,
    reward: Callable[[int], float],
    *,
    beta1: float = 0.9,
    more: Sequence[dict[str, Any]] = (),
    logged_rates: Sequence[dict[str, Any]] | None = None,
    initial_lr: float | None = None,
) -> pathlib.Path:
    """The run on disk, on the base `tiny`, with the log and the optimizer's state that a trainer leaves beside it.

    Args:
        more: entries of the log beside those of the rewards.
        logged_rates: entries that hold the learning rate; 5e-5 with each reward by default.
        initial_lr: the rate that the optimizer remembers its schedule to have begun from.
    """
    config = {"target_modules": ["q_proj", "up_proj"], "base_model_name_or_path": "tiny"}
    traj = run(path, adapter_config=config)
    constant = {"learning_rate": 5e-5} if logged_rates is None else {}
    rewards = [{"step": t, "reward": reward(t), **constant} for t in range(1, traj.steps[-1] + 1)]
    group = {"betas": (beta1, 0.999)} | ({} if initial_lr is None else {"initial_lr": initial_lr})
    for step in traj.steps:
        place = folder / f"checkpoint-{step}"
        leap(traj, "none", at=step).save_adapter(place)
        state = {
            "global_step": step,
            "log_history": [
                entry for entry in (*rewards, *(logged_rates or ()), *more) if entry["step"] <= step
            ],
        }
        (place / "trainer_state.json").write_text(json.dumps(state))
        torch.save({"param_groups": [group]}, place / "optimizer.pt")
    return folder


def noisy(reward: Callable[[int], float]) -> Callable[[int], float]:
    """The reward with the noise of some hundred completions, the same every time."""
    return lambda t: reward(t) + 0.02 * math.sin(7.0 * t * t)


def measured(e: float, **changes: object) -> AdviceFeatures:
    """What `advise` measures, with this excess over three windows, and no rewards unless they are among `changes`."""
    plain = AdviceFeatures(
        step=200,
        windows=tuple(PersistenceWindow(w, e, 0.0, e) for w in (10, 20, 50)),
        beta1=0.9,
        beta1_known=True,
        recommended="none",
        horizon=0,
        skill=0.0,
        backtested=True,
    )
    return replace(plain, **changes)
