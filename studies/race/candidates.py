"""Directions tried for the race and not shipped: averages with a step, denoised slopes, persistence by module.

Each is an extrapolator like those of the package (`@register` makes it known by name while a study runs), alpha = 1
meaning h steps. They were made for runs whose learning rate is already right, where plain directions lose; what became
of them is in docs/predictors.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nextrl.extrapolators import CombinationOfCheckpoints, InsideFactors, Tags, register, require, spacings_in
from nextrl.trajectory.combinations import pooled_gram, slope_weights, step_numbers, unit
from nextrl.trajectory.persistence import adam_persistence, excess
from nextrl.trajectory.trajectory import Trajectory

BETA1 = 0.9


class _Study:
    """What all of them share: three checkpoints are enough, and none is in a paper."""

    reference: ClassVar[str] = "docs/predictors.md"

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """T - h and T, and one more."""
        return max(3, spacings_in(horizon, spacing) + 1)


def _combine(traj: Trajectory, module: str, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(A, B) combined over checkpoints with (T,) weights, each factor on its own."""
    a, b = (torch.zeros_like(f) for f in traj.factors(traj.steps[-1], module))
    for step, w in zip(traj.steps, weights.tolist(), strict=True):
        if w:
            now = traj.factors(step, module)
            a, b = a + w * now[0], b + w * now[1]
    return a, b


@register
@dataclass(frozen=True)
class FactorSlope(_Study):
    """`factors` with the least-squares slope over the last h steps instead of the chord of its two ends."""

    name: ClassVar[str] = "factors-ols"
    summary: ClassVar[str] = "least-squares slope of A and B over the last h steps"

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> InsideFactors:
        """One weight a checkpoint."""
        require(self, traj, horizon)
        steps = step_numbers(traj)
        inside = steps >= traj.steps[-1] - horizon
        slope = torch.zeros_like(steps)
        slope[inside] = slope_weights(steps[inside]) * horizon
        end = unit(traj, traj.steps[-1])
        return InsideFactors(traj, lambda module, alpha: _combine(traj, module, end + alpha * slope))


@register
@dataclass(frozen=True)
class FactorAverage(_Study):
    """`lawa` inside the factors: the mean of A and the mean of B over the last h steps; nothing is truncated."""

    name: ClassVar[str] = "lawa-factors"
    summary: ClassVar[str] = "mean of A and of B over the last h steps"
    tags: ClassVar[Tags] = Tags(averages=True)

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> InsideFactors:
        """Equal weights."""
        require(self, traj, horizon)
        end, mean = unit(traj, traj.steps[-1]), _mean(traj, horizon)
        return InsideFactors(traj, lambda module, alpha: _combine(traj, module, end + alpha * (mean - end)))


@register
@dataclass(frozen=True)
class AverageThenStep(_Study):
    """The mean of the last h steps, plus alpha times what the means of two successive windows differ by.

    alpha = -1 is not needed to stay: staying put is scored beside it. alpha = 0.5 brings the mean back to where its own
    lag (h / 2 steps) left it, which makes it a denoised end point; beyond that it extrapolates.
    """

    name: ClassVar[str] = "lawa-step"
    summary: ClassVar[str] = "mean of the last h steps and a step between means"

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> InsideFactors:
        """Two means."""
        require(self, traj, horizon)
        late, early = _mean(traj, horizon), _mean(traj, horizon, back=horizon)
        return InsideFactors(
            traj, lambda module, alpha: _combine(traj, module, late + alpha * (late - early))
        )


@register
@dataclass(frozen=True)
class DenoisedSlope(_Study):
    """Least-squares slope over all checkpoints after the path was cut to its first two principal directions.

    All modules as one vector: with the Gram matrix G of `W_t - W_0` and its two leading eigenvectors E, the rows become
    `E E^T` times the rows, which needs T x T numbers only.
    """

    directions: int = 2
    name: ClassVar[str] = "denoised"
    summary: ClassVar[str] = "slope of the path's first two principal directions"

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> CombinationOfCheckpoints:
        """One eigendecomposition."""
        require(self, traj, horizon)
        vectors = torch.linalg.eigh(pooled_gram(traj))[1][:, -self.directions :]
        steps = step_numbers(traj)
        late = steps >= steps[-1] - horizon
        weights = torch.zeros_like(steps)
        weights[late] = slope_weights(steps[late]) * horizon
        slope = vectors @ (vectors.mT @ weights)
        return CombinationOfCheckpoints(traj, lambda alpha: alpha * slope)


@register
@dataclass(frozen=True)
class RidgeSlope(_Study):
    """A slope that shrinks with its own noise: least squares over all checkpoints, recent ones weighted more.

    Weights exp(-(T - t) / h); the slope is multiplied by signal / (signal + noise), both measured: |slope|^2 against
    its expected square from the residuals of the line.
    """

    name: ClassVar[str] = "ridge"
    summary: ClassVar[str] = "weighted slope, shrunk by its own noise"

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> CombinationOfCheckpoints:
        """One weighted regression and one ratio."""
        require(self, traj, horizon)
        gram, steps = pooled_gram(traj), step_numbers(traj)
        w = ((steps - steps[-1]) / horizon).exp()
        design = torch.stack([torch.ones_like(steps), steps - steps[-1]], 1)
        solve = torch.linalg.solve(design.mT @ (w[:, None] * design), design.mT * w)  # (2, T)
        residual = torch.eye(len(steps), dtype=steps.dtype) - design @ solve
        noise = float((residual @ gram @ residual.mT).diagonal().sum()) / max(1, len(steps) - 2)
        square = float(solve[1] @ gram @ solve[1])
        expected = noise * float(solve[1].square().sum())
        shrink = max(0.0, 1.0 - expected / square) if square > 0 else 0.0
        slope = solve[1] * horizon * max(shrink, 0.05)
        return CombinationOfCheckpoints(traj, lambda alpha: alpha * slope)


@register
@dataclass(frozen=True)
class PersistentModules(_Study):
    """`factors` for the half of the modules whose own windows persist most above Adam's memory; the others stay."""

    name: ClassVar[str] = "factors-persistent"
    summary: ClassVar[str] = "repeat the last h steps of the more persistent half of the modules"

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> InsideFactors:
        """One cosine a module."""
        require(self, traj, horizon)
        end, start = unit(traj, traj.steps[-1]), unit(traj, traj.steps[-1] - horizon)
        before = unit(traj, traj.steps[-1] - 2 * horizon)
        zero = adam_persistence(horizon, BETA1)
        above = {}
        for module in traj.modules:
            gram = traj.gram(module)
            late, early = end - start, start - before
            size = float((late @ gram @ late) * (early @ gram @ early)) ** 0.5
            above[module] = excess(float(late @ gram @ early) / size, zero) if size > 0 else -1.0
        middle = sorted(above.values())[len(above) // 2]

        def rule(module: str, alpha: float) -> tuple[Tensor, Tensor]:
            step = alpha * (end - start) if above[module] >= middle else torch.zeros_like(end)
            return _combine(traj, module, end + step)

        return InsideFactors(traj, rule)


def _mean(traj: Trajectory, horizon: int, back: int = 0) -> Tensor:
    """(T,) equal weights over the checkpoints of the h steps that end `back` steps before T."""
    steps, stop = step_numbers(traj), traj.steps[-1] - back
    inside = ((steps <= stop) & (steps >= stop - horizon)).double()
    return inside / inside.sum()
