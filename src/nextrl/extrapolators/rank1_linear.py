"""`rank1-linear`: the leading direction of the whole displacement, its size on a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from nextrl.extrapolators.base import Tags, register, require
from nextrl.extrapolators.predictions import NewDirection
from nextrl.trajectory.combinations import known_steps, slope_weights
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.trajectory import Trajectory


@register
@dataclass(frozen=True)
class RankOneLinear:
    """`W_T + a h slope u v^T`, (u, v) the leading pair of `W_T - W_0`.

    AlphaRL (2510.00553, by its abstract) has it that the leading singular subspace of the update evolves linearly
    ("rank-1 linear dynamics"); what it does with it is `alpharl`. This is that claim at its word, and our own method:
    the line is fitted to the coordinates `u^T (W_t - W_0) v` and not to each checkpoint's own singular value, since the
    coordinate is linear in the weights, so that noise does not bias it upwards.
    """

    name: ClassVar[str] = "rank1-linear"
    reference: ClassVar[str] = "nextrl: the claim of rank-1 linear dynamics, arXiv 2510.00553, at its word"
    summary: ClassVar[str] = "leading direction of the whole displacement, size on a line"
    tags: ClassVar[Tags] = Tags()

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """The start and two more."""
        return 3

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> NewDirection:
        """One exact leading triple and one slope per module."""
        require(self, traj, horizon)
        known = known_steps(traj)
        weights = slope_weights(torch.tensor(known, dtype=torch.float64, device="cpu"))
        directions = {}
        for module in traj.modules:
            top = traj.delta(module, known[0], known[-1]).top(1)
            u, v = top.u[:, 0], top.v[:, 0]
            deltas = (traj.delta(module, known[0], step) for step in known[1:])
            along = torch.stack(
                [
                    torch.zeros((), dtype=torch.float64, device="cpu"),
                    *(d.left.mT @ u @ (d.right.mT @ v) for d in deltas),
                ]
            )
            directions[module] = LowRank(top.u * (horizon * (weights @ along)), top.v)
        return NewDirection(directions)
