"""`ols`: the least-squares slope of the weights over the last half of the run, from `W_T`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from nextrl.extrapolators.base import Tags, register, require
from nextrl.extrapolators.predictions import CombinationOfCheckpoints
from nextrl.trajectory.combinations import known_steps, slope_weights, unit
from nextrl.trajectory.trajectory import Trajectory


@register
@dataclass(frozen=True)
class LeastSquares:
    """`W_T + a h slope`, the slope fitted on the checkpoints of the last `share` of the run.

    Attributes:
        share: fraction of the steps that is used, .5 by default (at least three checkpoints are).
    """

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    name: ClassVar[str] = "ols"
    reference: ClassVar[str] = "ordinary least squares on step numbers"
    summary: ClassVar[str] = "least-squares slope over the last half"
    tags: ClassVar[Tags] = Tags()

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """Three, so that there is something to average."""
        return 3

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> CombinationOfCheckpoints:
        """One weight per checkpoint: `h (t - mean) / sum (t - mean)^2`."""
        require(self, traj, horizon)
        known = known_steps(traj)
        since = known[-1] - self.share * (known[-1] - known[0])
        used = [s for s in known if s >= since]
        used = list(known[-3:]) if len(used) < 3 else used
        weights = slope_weights(torch.tensor(used, dtype=torch.float64, device="cpu"))
        slope = sum(
            (w * unit(traj, s) for w, s in zip(weights, used, strict=True)),
            torch.zeros((), dtype=torch.float64, device="cpu"),
        )
        return CombinationOfCheckpoints(traj, partial(_ahead, slope, horizon))


def _ahead(slope: Tensor, horizon: int, alpha: float) -> Tensor:
    return alpha * horizon * slope
