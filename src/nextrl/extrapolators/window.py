"""`window`: the leading singular triple of the last h steps, `W_T + a sigma u v^T` of `W_T - W_{T-h}`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from nextrl.extrapolators.base import Tags, register, require, spacings_in
from nextrl.extrapolators.predictions import NewDirection
from nextrl.trajectory.combinations import nearest_step
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.trajectory import Trajectory


@register
@dataclass(frozen=True)
class Window:
    """`secant` cut down to the `rank` leading directions of each module.

    Attributes:
        rank: how many singular triples are kept, 1 by default.
    """

    rank: Annotated[int, Field(ge=1)] = 1
    name: ClassVar[str] = "window"
    reference: ClassVar[str] = "NExt, arXiv 2604.11446: its local delta, without a network"
    summary: ClassVar[str] = "the leading rank-1 direction of the last h steps"
    tags: ClassVar[Tags] = Tags()

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """T and T - h."""
        return spacings_in(horizon, spacing) + 1

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> NewDirection:
        """One exact top-k decomposition per module."""
        require(self, traj, horizon)
        end = traj.steps[-1]
        start = nearest_step(traj, end - horizon)
        scale = horizon / (end - start)
        directions = {}
        for module in traj.modules:
            top = traj.delta(module, start, end).top(self.rank)
            directions[module] = LowRank(top.u * (top.sigma[..., None, :] * scale), top.v)
        return NewDirection(directions)
