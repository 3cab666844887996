"""`lawa`: latest weight averaging, the mean of the last checkpoints.

Kaddour 2022, 2209.14981 (second-hand): the uniform mean of the k latest checkpoints, one per epoch there. Why it may
help: a mean of iterates at a constant rate can stand in for a decay of the rate, which averages the noise out, too
(second-hand). It is no extrapolation: it goes back along the run, and at a tuned rate it is the only thing that helped
in our runs (docs/design.md, what was tried).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from nextrl.extrapolators.base import Tags, register, require
from nextrl.extrapolators.predictions import CombinationOfCheckpoints, in_proportion
from nextrl.trajectory.combinations import known_steps, unit
from nextrl.trajectory.trajectory import Trajectory


@register
@dataclass(frozen=True)
class LatestWeightAverage:
    """`W_T + a (mean - W_T)`.

    Attributes:
        count: how many checkpoints are averaged; by default those of the last h steps, T - h included, and
            at least two.
    """

    count: Annotated[int, Field(ge=1)] | None = None
    name: ClassVar[str] = "lawa"
    reference: ClassVar[str] = "LAWA, arXiv 2209.14981"
    summary: ClassVar[str] = "mean of the last checkpoints"
    tags: ClassVar[Tags] = Tags(averages=True)

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """Two."""
        return 2

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> CombinationOfCheckpoints:
        """Equal weights over known steps, W_0 among them where it lies in the window and is known."""
        require(self, traj, horizon)
        known = known_steps(traj)
        in_window = sum(s >= traj.steps[-1] - horizon for s in known)
        used = known[-(self.count or max(2, in_window)) :]
        mean = torch.stack([unit(traj, s) for s in used]).mean(0)
        toward = mean - unit(traj, traj.steps[-1])
        return CombinationOfCheckpoints(traj, in_proportion(toward))
