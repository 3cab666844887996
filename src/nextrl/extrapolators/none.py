"""`none`: stay at `W_T`. The rival that wins wherever nothing can be predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nextrl.extrapolators.base import Tags, register, require
from nextrl.extrapolators.predictions import CombinationOfCheckpoints, in_proportion
from nextrl.trajectory.trajectory import Trajectory


@register
@dataclass(frozen=True)
class Stay:
    """`W_T`, whatever alpha."""

    name: ClassVar[str] = "none"
    reference: ClassVar[str] = "the control of every table"
    summary: ClassVar[str] = "stay where the run is"
    tags: ClassVar[Tags] = Tags(stays=True)

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """One."""
        return 1

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> CombinationOfCheckpoints:
        """Coefficients that are all zero."""
        require(self, traj, horizon)
        zero = torch.zeros(len(traj.steps), dtype=torch.float64, device="cpu")
        return CombinationOfCheckpoints(traj, in_proportion(zero))
