"""What a trainer leaves beside its adapters and a trajectory does not hold: rewards and Adam's beta1.

Read are `trainer_state.json` (transformers' and TRL's log) and `optimizer.pt` of a trajectory's last checkpoint, so
nothing later than that checkpoint is ever read. Absent files are no error: the caller says what it assumed.
"""

from __future__ import annotations

import json
import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from nextrl.checkpoints import AdapterCheckpoint
from nextrl.trajectory.persistence import DEFAULT_BETA1
from nextrl.trajectory.trajectory import Trajectory

REWARD_KEYS = ("reward", "rewards/mean", "eval_reward")


def folder(traj: Trajectory) -> Path | None:
    """The folder of the trajectory's last checkpoint, or None for factors in memory."""
    last = traj.checkpoints[-1]
    return last.file.path.parent if isinstance(last, AdapterCheckpoint) else None


def rewards(traj: Trajectory) -> dict[int, float]:
    """Training reward by optimizer step, up to the trajectory's last step; empty where none was logged."""
    place = folder(traj)
    if place is None:
        return {}
    try:
        state = json.loads((place / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return {}
    history = state.get("log_history") if isinstance(state, dict) else None
    found: dict[int, float] = {}
    for entry in history if isinstance(history, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), (int, float)):
            continue
        value = next((entry[k] for k in REWARD_KEYS if isinstance(entry.get(k), (int, float))), None)
        if value is not None and math.isfinite(value) and entry["step"] <= traj.steps[-1]:
            found[int(entry["step"])] = float(value)
    return dict(sorted(found.items()))


def reward_by_checkpoint(traj: Trajectory, by_step: Mapping[int, float]) -> dict[int, float]:
    """Mean reward of the steps between each checkpoint and the one before it; those without any are left out.

    Where the run begins with a leap, what was earned before it is left out too.
    """
    means, before = {}, traj.start or -1
    for step in traj.steps:
        window = [r for s, r in by_step.items() if before < s <= step]
        if window:
            means[step] = sum(window) / len(window)
        before = step
    return means


def adam_beta1(traj: Trajectory) -> float | None:
    """beta1 from the param groups of `optimizer.pt`, or None where the file is absent or of another kind."""
    place = folder(traj)
    if place is None or not (place / "optimizer.pt").is_file():
        return None
    try:
        state = torch.load(place / "optimizer.pt", map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile):
        return None
    groups = state.get("param_groups") if isinstance(state, dict) else None
    betas = groups[0].get("betas") if isinstance(groups, list) and groups else None
    if not isinstance(betas, (tuple, list)) or not betas:
        return None
    beta1 = float(betas[0])
    return beta1 if 0.0 <= beta1 < 1.0 else None


def beta1_or_default(traj: Trajectory) -> float:
    """The run's own beta1 where its trainer left it, else `DEFAULT_BETA1`."""
    own = adam_beta1(traj)
    return DEFAULT_BETA1 if own is None else own
