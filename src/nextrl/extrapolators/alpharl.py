"""`alpharl`: partial least squares between each matrix's leading singular vectors and the accuracy, inverted.

AlphaRL (2510.00553): along a run, the leading left vectors of `W_t - W_0` and the accuracy y are tied by a
PLS with one component. Inverted at a target accuracy it gives the vector to leap to. Here, per module: `x_t =
sigma_t u_t` and `v_t` each against y_t (scikit-learn's PLSRegression, one component, centred, not scaled).
With loading p and inner coefficient q, `x(y) = mean(x) + p (y - mean(y)) / q`. The rest of `W_T - W_0` beyond
rank 1 is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextrl.errors import InputError, needs
from nextrl.extrapolators.base import Tags, register, require
from nextrl.extrapolators.predictions import check_alpha
from nextrl.extrapolators.triples import span_triples
from nextrl.trajectory import trainer_log
from nextrl.trajectory.combinations import known_steps, slope_weights
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.trajectory import Trajectory


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
    """Nonlinear in alpha: both vectors of the leading pair move.

    Attributes:
        left: module -> u sigma by accuracy. right: module -> v by accuracy.
        now: module -> the leading rank-1 part at T. accuracy: the line's value at T. gain: accuracy that
            alpha = 1 aims to add.
    """

    left: Mapping[str, Inverted]
    right: Mapping[str, Inverted]
    now: Mapping[str, LowRank]
    accuracy: float
    gain: float

    def delta(self, module: str, alpha: float = 1.0) -> LowRank:
        """The predicted rank-1 matrix minus the one at T, (m, n), rank 2."""
        alpha = check_alpha(alpha)
        if module not in self.left:
            return self.now[module] * 0.0
        goal = min(1.0, self.accuracy + alpha * self.gain)
        u, v = self.left[module].at(goal), torch.nn.functional.normalize(self.right[module].at(goal), dim=0)
        return LowRank(u[:, None], v[:, None]) - self.now[module]


@register
@dataclass(frozen=True)
class AlphaRL:
    """A PLS with one component per module and side.

    Attributes:
        accuracy: step -> accuracy at (some of) the checkpoints; by default the mean training reward up to
            each, from `trainer_state.json`.
        target: the accuracy that alpha = 1 aims at; by default what a line through the accuracies reaches h
            steps on, at most 1.
    """

    accuracy: Mapping[int, float] | None = None
    target: float | None = None
    name: ClassVar[str] = "alpharl"
    reference: ClassVar[str] = "AlphaRL, arXiv 2510.00553"
    summary: ClassVar[str] = "leading vectors regressed on accuracy (PLS), inverted"
    tags: ClassVar[Tags] = Tags(needs_accuracy=True)

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """The start and three with an accuracy."""
        return 4

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> AlphaPrediction:
        """Two small regressions per module.

        Raises:
            InputError: accuracies of fewer than three checkpoints, or all the same.
        """
        require(self, traj, horizon)
        given = self.accuracy
        if given is None:
            given = trainer_log.reward_by_checkpoint(traj, trainer_log.rewards(traj))
        start = known_steps(traj)[0]
        steps = [s for s in traj.steps if s in given and s > start]
        if len(steps) < 3:
            raise InputError(
                f"alpharl needs the accuracy of at least 3 checkpoints, {len(steps)} known: keep "
                "trainer_state.json beside them, or give accuracy={step: value}"
            )
        y = np.array([given[s] for s in steps])
        if float(np.ptp(y)) <= 1e-12:
            raise InputError("alpharl: the accuracy is the same at all checkpoints; nothing to regress on")
        left, right, now = {}, {}, {}
        for module in traj.modules:
            spans = span_triples(traj, module, [(start, s) for s in (*steps, traj.steps[-1])]).aligned()
            size, v = spans.u.double() * spans.sigma[:, None], spans.v.double()
            now[module] = LowRank(size[-1:].mT, v[-1:].mT)
            if float(spans.sigma.min()) > 0:
                left[module], right[module] = _invert(size[:-1], y), _invert(v[:-1], y)
        level, rate = _line(steps, y, traj.steps[-1])
        gain = horizon * rate if self.target is None else self.target - level
        return AlphaPrediction(left, right, now, level, gain)


def _line(steps: list[int], y: NDArray[np.float64], at: int) -> tuple[float, float]:
    """Value at step `at` and slope per step of the straight line through the accuracies (single ones are noisy)."""
    x = torch.tensor(steps, dtype=torch.float64)
    slope = float(slope_weights(x).numpy() @ y)
    return float(y.mean()) + slope * (at - float(x.mean())), slope


def _invert(x: Tensor, y: NDArray[np.float64]) -> Inverted:
    """PLS of x (P, d) against y (P,), as the line through x that accuracy parametrises."""
    with needs("rivals", "method 'alpharl'"):
        from sklearn.cross_decomposition import PLSRegression
    mean, centre = x.mean(0), float(y.mean())
    if float((x - mean).abs().max()) <= 1e-12 * float(x.abs().max()):
        return Inverted(mean, torch.zeros_like(mean), centre)
    pls = PLSRegression(n_components=1, scale=False).fit(x.numpy(), y)
    loading, inner = torch.from_numpy(pls.x_loadings_[:, 0]), float(pls.y_loadings_[0, 0])
    return Inverted(mean, loading / inner if abs(inner) > 1e-12 else torch.zeros_like(mean), centre)
