"""`factors`: repeat the last h steps of A and of B themselves; the adapter stays a rank-r adapter.

Fast Forward (2409.04206, by its abstract) repeats the last optimizer step of a LoRA run until the loss on a tiny
validation set stops improving. Here the step is the last h steps, its sign and length are free, and a validation
reward picks them. That it is A and B that are stepped is our reading: the abstract does not say.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from nextrl.errors import InputError
from nextrl.extrapolators.base import Tags, register, require, spacings_in
from nextrl.extrapolators.predictions import InsideFactors
from nextrl.trajectory.combinations import nearest_of, wide
from nextrl.trajectory.trajectory import Trajectory


@register
@dataclass(frozen=True)
class Factors:
    """`A_T + a h/(T-s) (A_T - A_s)`, `B` alike, s the checkpoint on disk nearest to T - h.

    In the product, `B A + a (B dA + dB A) + a^2 dB dA`: first the window's own direction, then a term
    quadratic in alpha that the window on dense weights does not have.
    """

    name: ClassVar[str] = "factors"
    reference: ClassVar[str] = "Fast Forward, arXiv 2409.04206, with a signed and validated alpha"
    summary: ClassVar[str] = "repeat the last h steps inside A and B"
    tags: ClassVar[Tags] = Tags()

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """T and T - h, both on disk."""
        return spacings_in(horizon, spacing) + 1

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> InsideFactors:
        """No numbers are fitted; the factors are read when they are asked for."""
        require(self, traj, horizon)
        end, before = traj.steps[-1], traj.steps[:-1]
        if not before:
            raise InputError(
                "factors needs two checkpoints on disk (a fresh adapter's A is not zero): keep step 0"
            )
        start = nearest_of(before, end - horizon)
        return InsideFactors(traj, partial(_repeated, traj, start, end, horizon / (end - start)))


def _repeated(
    traj: Trajectory, start: int, end: int, scale: float, module: str, alpha: float
) -> tuple[Tensor, Tensor]:
    """The factors at `end`, alpha times so many times the way from `start` further on."""
    now = tuple(wide(f) for f in traj.factors(end, module))
    then = tuple(wide(f) for f in traj.factors(start, module))
    a, b = (x + alpha * scale * (x - y) for x, y in zip(now, then, strict=True))
    return a, b
