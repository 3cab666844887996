"""`quadratic`: the parabola through three checkpoints, T, T - h and T - 2h.

Leap+Verify (2602.19580) proposes leaps by finite differences, linear and quadratic, and accepts one only if a held-out
loss allows it. Its abstract reports 24 % accepted (124M parameters, 5 steps ahead, stable regime) and 37 % (1.5B,
transition); the 37 % is its linear predictor's, not this one's (second-hand). Here a method only proposes; what is
accepted is decided on held-out prompts (`judge.paired_search`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from nextrl.extrapolators.base import Tags, register, require, spacings_in
from nextrl.extrapolators.predictions import CombinationOfCheckpoints
from nextrl.trajectory.combinations import distinct_steps, unit
from nextrl.trajectory.trajectory import Trajectory


@register
@dataclass(frozen=True)
class Quadratic:
    """Lagrange's parabola in steps, evaluated at T + a h. Exact on parabolas, and very loud on noise."""

    name: ClassVar[str] = "quadratic"
    reference: ClassVar[str] = "Leap+Verify, arXiv 2602.19580"
    summary: ClassVar[str] = "parabola through three checkpoints"
    tags: ClassVar[Tags] = Tags()

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """T, T - h and T - 2h."""
        return 2 * spacings_in(horizon, spacing) + 1

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> CombinationOfCheckpoints:
        """Three nodes: T and the checkpoints nearest to T - h and to T - 2h."""
        require(self, traj, horizon)
        end = traj.steps[-1]
        nodes = (*reversed(distinct_steps(traj, (end - horizon, end - 2 * horizon))), end)
        return CombinationOfCheckpoints(traj, partial(_on_the_parabola, traj, nodes, horizon))


def _on_the_parabola(traj: Trajectory, nodes: Sequence[int], horizon: int, alpha: float) -> Tensor:
    """Coefficients of the parabola through three nodes, the last of them T, from W_T on."""
    end = nodes[-1]
    at = end + alpha * horizon
    out = -unit(traj, end)
    for i, node in enumerate(nodes):
        others = [o for j, o in enumerate(nodes) if j != i]
        out = out + unit(traj, node) * (
            (at - others[0]) * (at - others[1]) / ((node - others[0]) * (node - others[1]))
        )
    return out
