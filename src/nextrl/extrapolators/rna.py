"""`rna`: regularised nonlinear acceleration (Anderson's mixing, offline).

Scieur, d'Aspremont and Bach, 1606.04133 (second-hand): with residuals `r_i = W_{i+1} - W_i` and their Gram matrix
`R^T R`, solve `(R^T R / |R^T R| + lambda I) z = 1` and set `c = z / sum z`: the combination of iterates whose
residual is smallest. Theirs is `sum_i c_i W_i` (so says the authors' own code, github.com/windows7lover/
RegularizedNonlinearAcceleration); here it is `sum_i c_i W_{i+1}`, as in Anderson's mixing, one step further along. It
aims at the fixed point, not h steps ahead.

The residuals are of the last real checkpoints that follow each other at the run's spacing: across a gap, or over fewer
steps, a residual is another map's. Only where there are not three is the run resampled by linear interpolation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from nextrl.extrapolators.base import Tags, register, require
from nextrl.extrapolators.predictions import CombinationOfCheckpoints, in_proportion
from nextrl.trajectory.combinations import even_points, pooled_gram, unit
from nextrl.trajectory.trajectory import Trajectory


@register
@dataclass(frozen=True)
class NonlinearAcceleration:
    """`W_T + a (sum_i c_i W_{i+1} - W_T)`, all modules as one vector.

    Attributes:
        penalty: lambda, relative to the spectral norm of the residuals' Gram matrix.
        memory: how many residuals are used at most.
    """

    penalty: Annotated[float, Field(gt=0)] = 1e-3
    memory: Annotated[int, Field(ge=1)] = 10
    name: ClassVar[str] = "rna"
    reference: ClassVar[str] = "Regularized Nonlinear Acceleration, arXiv 1606.04133"
    summary: ClassVar[str] = "Anderson mixing of the checkpoints"
    tags: ClassVar[Tags] = Tags(averages=True)

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """Two residuals."""
        return 3

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> CombinationOfCheckpoints:
        """Solve one small linear system."""
        require(self, traj, horizon)
        points, _ = even_points(traj, self.min_checkpoints(horizon, traj.spacing))
        grid = points[-(self.memory + 1) :]
        moves = grid[1:] - grid[:-1]
        square = moves @ pooled_gram(traj) @ moves.mT
        square = square / torch.linalg.matrix_norm(square, 2)
        ones = torch.ones(len(moves), dtype=torch.float64, device="cpu")
        z = torch.linalg.solve(square + self.penalty * torch.diag(ones), ones)
        toward = (z / z.sum()) @ grid[1:] - unit(traj, traj.steps[-1])
        return CombinationOfCheckpoints(traj, in_proportion(toward))
