"""`relex-pinned`: RELEX's slope added to `W_T`, so that what rank 1 leaves out is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nextrl.extrapolators.base import register
from nextrl.extrapolators.predictions import Coefficients, in_proportion
from nextrl.extrapolators.relex import Relex, rank_one_line
from nextrl.trajectory.trajectory import Trajectory


@register
@dataclass(frozen=True)
class RelexPinned(Relex):
    """`W_T + a h slope v`, v and slope as in `relex`."""

    name: ClassVar[str] = "relex-pinned"
    reference: ClassVar[str] = "RELEX, arXiv 2605.21468, from W_T instead of its projection"
    summary: ClassVar[str] = "relex's step, taken from where the run is"

    def _rule(self, traj: Trajectory, module: str, horizon: int) -> Coefficients:
        v, _, slope = rank_one_line(traj, module)
        return in_proportion(horizon * slope * v)
