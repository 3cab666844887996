"""`first-update`: what the run did before its first checkpoint, again and again, from W_T.

A public replication of RELEX scales the very first update of a run by 1000 and stops (second-hand). That is this method
at the first checkpoint with alpha h = 1000 steps' worth of it; further on, it asks how long the first direction holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nextrl.extrapolators.base import Tags, register, require
from nextrl.extrapolators.predictions import CombinationOfCheckpoints
from nextrl.trajectory.combinations import known_steps, unit
from nextrl.trajectory.trajectory import Trajectory


@register
@dataclass(frozen=True)
class FirstUpdate:
    """The first displacement that is known, at its own speed. Exact on a straight line."""

    name: ClassVar[str] = "first-update"
    reference: ClassVar[str] = "a public replication of RELEX, arXiv 2605.21468 (second-hand)"
    summary: ClassVar[str] = "repeat the run's first displacement"
    tags: ClassVar[Tags] = Tags()

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """The start and one more."""
        return 2

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> CombinationOfCheckpoints:
        """`c_t = a h / (t - s)`, `c_s = -c_t`, s and t the first two known steps."""
        require(self, traj, horizon)
        start, first = known_steps(traj)[:2]
        line = (unit(traj, first) - unit(traj, start)) * (horizon / (first - start))
        return CombinationOfCheckpoints(traj, lambda alpha: alpha * line)
