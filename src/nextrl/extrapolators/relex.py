"""`relex`: a line along the run's first principal direction, one module at a time.

RELEX (2605.21468; its code, github.com/weizhepei/RELEX at e4548ba, `scripts/svd_extrapolation.py`, was read): the
rows `W_t - W_0` of one matrix, t > 0, have a dominant right singular vector v; the coordinates `c_t = <W_t - W_0, v>`
are fitted by a line in t, and `W_0 + c(T + a h) v` is the prediction. With the Gram matrix G of the rows, its leading
eigenpair (lambda, e) gives `v = sum_t e_t (W_t - W_0) / sqrt(lambda)` and `c_t = sqrt(lambda) e_t`: no matrix is
touched.

W_0 itself is no row, there as here: a run whose step 0 lies on disk, or in a trainer's memory, is the same run.

What differs: their t counts checkpoints, one for each step, ours steps; they store rows in float16 and compute in
float32, we compute in float64; and alpha = 0 stays here, where their line would go to its own point at T. On the same
rows in float64 both give the same numbers (tests/extrapolators/test_relex.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from nextrl.extrapolators.base import Tags, register, require
from nextrl.extrapolators.predictions import Coefficients, CombinationOfCheckpoints
from nextrl.trajectory.combinations import slope_weights, step_numbers, unit
from nextrl.trajectory.trajectory import Trajectory


def principal(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients (T,) of the unit direction v over the rows, and the coordinates c (T,) along it.

    Both are zero for a module that never moved.
    """
    values, vectors = torch.linalg.eigh(gram)
    root, e = values[-1].clamp_min(0).sqrt(), vectors[:, -1]
    if float(root) <= 0:
        return torch.zeros_like(e), torch.zeros_like(e)
    return e / root, e * root


def rank_one_line(traj: Trajectory, module: str) -> tuple[Tensor, Tensor, Tensor]:
    """The direction v as coefficients (T,) over `traj.steps`, and the fitted coordinate at T and its slope per step.

    The rows are the checkpoints after the start.
    """
    rows = step_numbers(traj) > traj.start
    steps = step_numbers(traj)[rows]
    along, c = principal(traj.gram(module)[rows][:, rows])
    v = torch.zeros(len(rows), dtype=along.dtype, device=along.device)
    v[rows] = along
    slope = slope_weights(steps) @ c
    return v, c.mean() + slope * (steps[-1] - steps.mean()), slope


@register
@dataclass(frozen=True)
class Relex:
    """`W_0 + c(T + a h) v`: the rank-1 part (in time) of the run, everything else left out."""

    name: ClassVar[str] = "relex"
    reference: ClassVar[str] = "RELEX, arXiv 2605.21468; its code, github.com/weizhepei/RELEX"
    summary: ClassVar[str] = "a line along the run's first principal direction"
    tags: ClassVar[Tags] = Tags()

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """The start and two more, for a line with an intercept."""
        return 3

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> CombinationOfCheckpoints:
        """One eigenvector and one straight line per module."""
        require(self, traj, horizon)
        rules = {module: self._rule(traj, module, horizon) for module in traj.modules}
        return CombinationOfCheckpoints(traj, by_module=rules)

    def _rule(self, traj: Trajectory, module: str, horizon: int) -> Coefficients:
        end = unit(traj, traj.steps[-1])
        v, at_end, slope = rank_one_line(traj, module)
        return partial(_on_the_line, v, at_end, horizon, slope, end)


def _on_the_line(v: Tensor, at_end: Tensor, horizon: int, slope: Tensor, end: Tensor, alpha: float) -> Tensor:
    return (at_end + alpha * horizon * slope) * v - end
