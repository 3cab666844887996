"""`first-update`: what the run did before its first checkpoint, again and again, from W_T.

A public replication of RELEX (github.com/basetenlabs/relex-replication; its `extrapolate.py` at 1af1475 was read)
scales the very first update of a run, `W_0 + 1000 (W_1 - W_0)`, and stops. Its README has 66.7 % on MATH for that and
63.8 % for step 500 of the same run (Qwen2.5-Math-1.5B; the factor was chosen on the test set); on Qwen3-4B-Base, by a
factor of 300, it gains on one task of four, and less than training does. That is this method at the first checkpoint
with alpha h = 999 steps' worth of it; further on, it asks how long the first direction holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nextrl.extrapolators.base import Tags, register, require
from nextrl.extrapolators.predictions import CombinationOfCheckpoints, in_proportion
from nextrl.trajectory.combinations import known_steps, unit
from nextrl.trajectory.trajectory import Trajectory


@register
@dataclass(frozen=True)
class FirstUpdate:
    """The first displacement that is known, at its own speed. Exact on a straight line."""

    name: ClassVar[str] = "first-update"
    reference: ClassVar[str] = (
        "github.com/basetenlabs/relex-replication, a replication of RELEX (arXiv 2605.21468)"
    )
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
        return CombinationOfCheckpoints(traj, in_proportion(line))
