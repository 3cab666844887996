"""`linear`: continue the line from the start, `W_0 + b (W_T - W_0)` with `b = (T + a h) / T`, T counted from the
start.

2601.04537 trains 100 steps, leaps 100 and repeats; ExPO (2404.16792) is the same line with a = .3 to
.5 of the whole displacement (both second-hand).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nextrl.extrapolators.base import Tags, register, require
from nextrl.extrapolators.predictions import CombinationOfCheckpoints, in_proportion
from nextrl.trajectory.combinations import unit
from nextrl.trajectory.trajectory import Trajectory


@register
@dataclass(frozen=True)
class Linear:
    """The chord from W_0 to T, continued at its mean speed. Exact on a straight line from the start."""

    name: ClassVar[str] = "linear"
    reference: ClassVar[str] = "arXiv 2601.04537; ExPO, arXiv 2404.16792"
    summary: ClassVar[str] = "continue the line from the start"
    tags: ClassVar[Tags] = Tags()

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """The start and T."""
        return 2

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> CombinationOfCheckpoints:
        """`c_T = a h / (T - start)`."""
        require(self, traj, horizon)
        end = traj.steps[-1]
        line = unit(traj, end) * (horizon / (end - traj.start))
        return CombinationOfCheckpoints(traj, in_proportion(line))
