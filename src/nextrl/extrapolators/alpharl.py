"""`alpharl`: partial least squares between each matrix's leading left vector and the accuracy, inverted.

AlphaRL (2510.00553): along a run, `x_t = sigma_t u_t` of the leading pair of `W_t - W_0` and the accuracy y_t are tied
by a PLS with one component. Inverted at a target accuracy y* it gives the vector x(y*) to leap to, and the leap is
`x(y*) v^T` with v as it is at T; v is not regressed. Two variants, which differ in what becomes of the leading pair
`x_T v^T` that W_T holds already:

- `paper` puts `x(y*) v^T` in its place, and keeps the rest of `W_T - W_0` beyond rank 1 (second-hand). The regression
  passes by x_T, so that the leap does not shrink to nothing with alpha: near 0 it still goes from W_T to the fitted x
  of today's accuracy. alpha = 0 itself stays.
- `code` adds `x(y*) v^T` to W_T in whole and scales each entry of x and y to unit variance before the regression, as
  the public code does (github.com/caiyuchen-ustc/Alpha-RL at 2d8861e, `AlphaPredVector.py` and
  `AlphaRLBuildPerdictModel.py`). That has no alpha: here alpha multiplies the product, so that 0 stays.

The regression itself is scikit-learn's PLSRegression in both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextrl.errors import InputError, needs, shown
from nextrl.extrapolators.base import Tags, register, require
from nextrl.extrapolators.predictions import check_alpha
from nextrl.extrapolators.triples import span_triples
from nextrl.trajectory import trainer_log
from nextrl.trajectory.combinations import known_steps, slope_weights
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.trajectory import Trajectory

Variant = Literal["paper", "code"]


@dataclass(frozen=True)
class Inverted:
    """One fitted PLS: y -> vector.

    Attributes:
        mean: (d,) mean vector. slope: (d,) change of the vector for one unit of accuracy. centre: mean accuracy.
    """

    mean: Tensor
    slope: Tensor
    centre: float

    def at(self, accuracy: float) -> Tensor:
        """(d,) float64 the vector that belongs to an accuracy."""
        return self.mean + (accuracy - self.centre) * self.slope


@dataclass(frozen=True)
class AlphaPrediction:
    """The leap to the vectors of an accuracy.

    Attributes:
        variant: "paper" or "code".
        left: module -> u sigma by accuracy; none for a module that stood still.
        now: module -> the leading rank-1 part at T, (u sigma, v).
        accuracy: the line's value at T. gain: accuracy that alpha = 1 aims to add. most: no more than this.
    """

    variant: Variant
    left: Mapping[str, Inverted]
    now: Mapping[str, LowRank]
    accuracy: float
    gain: float
    most: float

    def delta(self, module: str, alpha: float = 1.0) -> LowRank:
        """What is added to W_T, (m, n), rank 1: v is that of T; nothing at alpha = 0."""
        alpha, now = check_alpha(alpha), self.now[module]
        if module not in self.left or alpha == 0.0:
            return now * 0.0
        if self.variant == "code":
            return LowRank(alpha * self.left[module].at(self._goal(1.0))[:, None], now.right)
        return LowRank(self.left[module].at(self._goal(alpha))[:, None] - now.left, now.right)

    def _goal(self, alpha: float) -> float:
        return min(self.most, self.accuracy + alpha * self.gain)


@register
@dataclass(frozen=True)
class AlphaRL:
    """A PLS with one component per module.

    Attributes:
        accuracy: step -> accuracy at (some of) the checkpoints; by default the mean training reward up to
            each, from `trainer_state.json`. The paper evaluates each checkpoint on held-out problems.
        target: the accuracy y* that alpha = 1 aims at, the paper's own way, set by hand: it may lie above 1 (the
            code's example has 1.7). By default what a line through the accuracies reaches h steps on, at most 1.
        variant: "paper" or "code", see above.
    """

    accuracy: Mapping[int, float] | None = None
    target: float | None = None
    variant: Variant = "paper"
    name: ClassVar[str] = "alpharl"
    reference: ClassVar[str] = "AlphaRL, arXiv 2510.00553"
    summary: ClassVar[str] = "leading left vectors regressed on accuracy (PLS), inverted"
    tags: ClassVar[Tags] = Tags(needs_accuracy=True)

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """The start and three with an accuracy."""
        return 4

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> AlphaPrediction:
        """One small regression per module.

        Raises:
            InputError: accuracies of fewer than three checkpoints, or all the same, or an unknown variant.
        """
        require(self, traj, horizon)
        if self.variant not in get_args(Variant):
            raise InputError(
                f"alpharl: variant must be {' or '.join(get_args(Variant))}, not {self.variant!r}"
            )
        given = self.accuracy
        if given is None:
            given = trainer_log.reward_by_checkpoint(traj, trainer_log.rewards(traj))
        if not isinstance(given, Mapping):
            raise InputError(
                f"alpharl: accuracy must map steps to values, as {{10: 0.4}}, not be {shown(given)}"
            )
        start = known_steps(traj)[0]
        steps = [s for s in traj.steps if s > start and math.isfinite(given.get(s, math.nan))]
        if len(steps) < 3:
            raise InputError(
                f"alpharl needs the accuracy of at least 3 checkpoints, {len(steps)} known: keep "
                "trainer_state.json beside them, or give accuracy={step: value}"
            )
        y = np.array([given[s] for s in steps])
        if float(np.ptp(y)) <= 1e-12:
            raise InputError("alpharl: the accuracy is the same at all checkpoints; nothing to regress on")
        left, now = {}, {}
        for module in traj.modules:
            spans = span_triples(traj, module, [(start, s) for s in (*steps, traj.steps[-1])]).aligned()
            size, v = spans.u.double() * spans.sigma[:, None], spans.v.double()
            now[module] = LowRank(size[-1:].mT, v[-1:].mT)
            if float(spans.sigma.min()) > 0:
                left[module] = _invert(size[:-1], y, scale=self.variant == "code")
        level, rate = _line(steps, y, traj.steps[-1])
        gain, most = (
            (horizon * rate, _end(y, level)) if self.target is None else (self.target - level, math.inf)
        )
        return AlphaPrediction(self.variant, left, now, level, gain, most)


def _end(y: NDArray[np.float64], level: float) -> float:
    """The most that a leap may aim at: accuracies end at 1. Of rewards outside 0 to 1 no end is known.

    The line through accuracies near 1 may lie above it at T: then no gain is left, and the leap must not turn back.
    """
    return max(1.0, level) if float(y.min()) >= 0.0 and float(y.max()) <= 1.0 else math.inf


def _line(steps: list[int], y: NDArray[np.float64], at: int) -> tuple[float, float]:
    """Value at step `at` and slope per step of the straight line through the accuracies (single ones are noisy)."""
    x = torch.tensor(steps, dtype=torch.float64, device="cpu")
    slope = float(slope_weights(x).numpy() @ y)
    return float(y.mean()) + slope * (at - float(x.mean())), slope


def _invert(x: Tensor, y: NDArray[np.float64], *, scale: bool) -> Inverted:
    """PLS of x (P, d) against y (P,), as the line through x that accuracy parametrises."""
    with needs("rivals", "method 'alpharl'"):
        from sklearn.cross_decomposition import PLSRegression
    mean, centre = x.mean(0), float(y.mean())
    still = Inverted(mean, torch.zeros_like(mean), centre)
    if float((x - mean).abs().max()) <= 1e-12 * float(x.abs().max()):
        return still
    pls = PLSRegression(n_components=1, scale=scale).fit(x.numpy(), y)
    scores = pls.x_scores_[:, 0]
    # Accuracy on scores by least squares, as the code does; inverted, one unit of accuracy is so much of a score.
    inner = float(scores @ (y - centre) / (scores @ scores))
    if abs(inner) <= 1e-12:
        return still
    one = torch.from_numpy(pls.inverse_transform(np.array([[1 / inner]]))[0])
    return Inverted(mean, one - mean, centre)
