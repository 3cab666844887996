"""`dmd`: dynamic mode decomposition (Koopman), the run as a linear dynamical system.

Schmid, "Dynamic mode decomposition of numerical and experimental data", J. Fluid Mech. 656 (2010), in the notation of
Tu et al. 2014 (1312.0041); both second-hand. From snapshots X and their successors Y, with `X = U S V^T`, the reduced
operator `U^T Y V S^-1` has eigenvectors w that are advanced h/k times, and U w are the modes (Tu et al. call these the
projected ones; their "exact" modes are in the span of Y).

What is ours: the snapshots are differences of successive checkpoints. Where `W_{i+1} = A W_i + b`, they follow A alone,
so that the constant b costs nothing: a straight line is one mode of eigenvalue 1, a saturating exponential one below 1,
a rotation a complex pair (test_known_futures.py holds all three). Growing modes are clipped to the unit circle. U is
never formed: inner products of differences are all that the reduced operator needs.

The differences are of real checkpoints, the last ones that follow each other at the run's spacing: points interpolated
across a gap would make identical differences, a mode of eigenvalue 1 that is not in the run. Where T lies beyond them
(a trainer saves at its end, too), the modes are advanced from the last of them, less what they move up to T.
Only where no stretch is long enough is the run resampled by linear interpolation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from nextrl.errors import InputError
from nextrl.extrapolators.base import Tags, register, require
from nextrl.extrapolators.predictions import CombinationOfCheckpoints
from nextrl.trajectory.combinations import even_points, pooled_gram
from nextrl.trajectory.trajectory import Trajectory


@register
@dataclass(frozen=True)
class DynamicModes:
    """`W_T + sum_{j=1}^{a h/k} A^j (W_T - W_{T-k})`, A the reduced operator, all modules as one vector.

    Attributes:
        delays: how many successive differences make one snapshot (Hankel DMD, second-hand). 1 is the plain method;
            motion to and fro along a single direction is a linear system only in two.
        energy: share of the snapshots' energy that the kept modes hold.
        modes: at most so many, and at most half of the snapshots: a mode fitted to one difference
            is that difference.
    """

    delays: Annotated[int, Field(ge=1)] = 1
    energy: Annotated[float, Field(gt=0, le=1)] = 0.99
    modes: Annotated[int, Field(ge=1)] = 6
    name: ClassVar[str] = "dmd"
    reference: ClassVar[str] = "Schmid 2010; Tu et al. 2014 (arXiv 1312.0041), on differences (second-hand)"
    summary: ClassVar[str] = "Koopman modes of the run, advanced h steps"
    tags: ClassVar[Tags] = Tags()

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """Three snapshots."""
        return 3 + self.delays

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> CombinationOfCheckpoints:
        """One eigendecomposition of at most (T, T).

        Raises:
            InputError: as `require`, or a run that stood still until its last checkpoint.
        """
        require(self, traj, horizon)
        grid, beyond = even_points(traj, self.min_checkpoints(horizon, traj.spacing))
        moves = grid[1:] - grid[:-1]
        gram = moves @ pooled_gram(traj) @ moves.mT
        # <[d_i, d_i-1], [d_j, d_j-1]>: Gram matrices of shifted differences add up.
        size = len(gram) - self.delays + 1
        gram = torch.stack([gram[i : i + size, i : i + size] for i in range(self.delays)]).sum(0)
        if float(gram[:-1, :-1].trace()) <= 0.0:
            raise InputError(
                f"dmd: the adapter does not move before step {traj.steps[-1] - beyond - traj.spacing}, so there is no "
                "motion to take modes from: train on, or take a method that needs only the last steps (secant, factors)"
            )
        moves = moves[-len(gram) :]
        basis = self._basis(gram[:-1, :-1])
        operator = basis.mT @ gram[:-1, 1:] @ basis
        values, vectors = torch.linalg.eig(operator)
        values = values / values.abs().clamp_min(1.0)
        last = torch.linalg.solve(vectors, (basis.mT @ gram[:-1, -1]).to(vectors.dtype))
        back = basis.to(vectors.dtype) @ vectors
        modes = _Modes(values, last, back, moves[:-1])
        return CombinationOfCheckpoints(traj, partial(modes.advanced, beyond, horizon, traj.spacing))

    def _basis(self, gram: Tensor) -> Tensor:
        """(n, p): `V S^-1`, coordinates of the kept left singular vectors over the snapshots."""
        values, vectors = torch.linalg.eigh(gram)
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        held = values.cumsum(0) / values.sum()
        # An eigenvalue of a Gram matrix below 1e-12 of the largest is rounding and not a mode.
        real = int((values > 1e-12 * values[0]).sum())
        keep = int((held < self.energy).sum()) + 1
        count = max(1, min(keep, real, self.modes, (len(gram) + 1) // 2))
        basis: Tensor = vectors[:, :count] / values[:count].sqrt()
        return basis


@dataclass(frozen=True)
class _Modes:
    """Modes of the run's motion.

    Attributes:
        values, last: (p,) complex, each mode's factor per spacing, and its size in the last difference.
        back: (n, p) complex, what each mode is over the differences.
        moves: (n, T) the differences over the checkpoints.
    """

    values: Tensor
    last: Tensor
    back: Tensor
    moves: Tensor

    def advanced(self, beyond: int, horizon: int, spacing: int, alpha: float) -> Tensor:
        """(T,) coefficients of alpha horizons of motion, from `beyond` steps after the last difference on."""
        ahead = _geometric(self.values, (beyond + abs(alpha) * horizon) / spacing)
        if beyond:
            ahead = ahead - _geometric(self.values, beyond / spacing)
        coordinates = (self.back @ (ahead * self.last)).real
        # A step back would make decaying modes explode; it is the forward step with its sign turned.
        sign = 1.0 if alpha >= 0 else -1.0
        out: Tensor = sign * (coordinates @ self.moves)
        return out


def _geometric(values: Tensor, n: float) -> Tensor:
    """`sum_{j=1}^n z^j` for each complex z, continued to real n."""
    near_one = (values - 1).abs() < 1e-9
    z = torch.where(near_one, torch.full_like(values, 0.5), values)
    out: Tensor = torch.where(near_one, torch.full_like(values, n), z * (z**n - 1) / (z - 1))
    return out
