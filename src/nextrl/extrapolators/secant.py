"""`secant`: repeat the last h steps, `W_T + a (W_T - W_{T-h})`, at full rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nextrl.extrapolators.base import Tags, register, require, spacings_in
from nextrl.extrapolators.predictions import CombinationOfCheckpoints, in_proportion
from nextrl.trajectory.combinations import nearest_step, unit
from nextrl.trajectory.trajectory import Trajectory


@register
@dataclass(frozen=True)
class Secant:
    """The chord over the last horizon, continued. Exact on a straight line."""

    name: ClassVar[str] = "secant"
    reference: ClassVar[str] = "nextrl: the last window at full rank (docs/design.md, words and mathematics)"
    summary: ClassVar[str] = "repeat the last h steps"
    tags: ClassVar[Tags] = Tags()

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """T and T - h."""
        return spacings_in(horizon, spacing) + 1

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> CombinationOfCheckpoints:
        """`c_T = a h / (T - s)`, `c_s = -c_T`, s the checkpoint nearest to T - h."""
        require(self, traj, horizon)
        end = traj.steps[-1]
        start = nearest_step(traj, end - horizon)
        chord = (unit(traj, end) - unit(traj, start)) * (horizon / (end - start))
        return CombinationOfCheckpoints(traj, in_proportion(chord))
