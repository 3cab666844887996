"""Whether checkpoints go on along a line: least squares on some, judged on the ones after them.

This is the statistic behind the paper's claim that the rank-1 subspace does not evolve linearly (NExt, 2604.11446;
that it fits 10 checkpoints and is judged on the next 5 is second-hand). A fit judged on its own checkpoints cannot show
it: of a path that turns steadily it explains nearly everything, and predicts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nextrl.trajectory.spectra import Spectrum

COMPONENTS = ("u", "v", "sigma", "rank1")
FIT, AHEAD = 10, 5


def linearity_ahead(spectrum: Spectrum, fit: int = FIT, ahead: int = AHEAD) -> dict[str, float]:
    """R^2 on the last `ahead` checkpoints of lines through the `fit` before them, for each part of the rank-1 triple.

    `u` and `v` are the leading vectors, signs aligned with the last checkpoint's pair; `sigma` the leading singular
    value; `rank1` the matrix sigma u v^T. R^2 is 1 - sum |y - line|^2 / sum |y - mean|^2 over the entries of all
    predicted checkpoints, the mean being that of the predicted ones: 0 is as good as knowing their mean.

    Args:
        spectrum: of the global deltas of one module.

    Returns:
        Component -> R^2, NaN where it never changes; empty where there are fewer than `fit + ahead` checkpoints.
    """
    if len(spectrum.steps) < fit + ahead:
        return {}
    last = slice(-(fit + ahead), None)
    u, v, sigma = spectrum.u[last].double(), spectrum.v[last].double(), spectrum.sigma[last, 0]
    sign = torch.where(u @ u[-1] + v @ v[-1] < 0, -1.0, 1.0).double()
    signs, left, right = sign.outer(sign), u @ u.mT, v @ v.mT
    grams = {
        "u": signs * left,
        "v": signs * right,
        "sigma": sigma.outer(sigma),
        "rank1": sigma.outer(sigma) * left * right,
    }
    steps = spectrum.steps[last]
    return {name: r2_ahead(gram, steps, fit) for name, gram in grams.items()}


def r2_ahead(gram: Tensor, steps: Sequence[int], fit: int) -> float:
    """R^2 of a line in the step number, fitted to the first `fit` points and judged on the others.

    Residuals are fixed combinations of the points, so that their inner products are all that is needed.

    Args:
        gram: (n, n) float64, inner products of the points, which may be vectors or matrices.
        steps: the n step numbers.
    """
    x = torch.tensor(steps, dtype=torch.float64, device="cpu")
    x = (x - x[:fit].mean()) / (x[fit - 1] - x[0])
    design = torch.stack([torch.ones_like(x), x], 1)
    weights = design[fit:] @ torch.linalg.pinv(design[:fit])
    ahead = len(steps) - fit
    residual = torch.cat([-weights, torch.eye(ahead, dtype=torch.float64, device="cpu")], 1)
    around = torch.zeros_like(residual)
    around[:, fit:] = torch.eye(ahead, dtype=torch.float64, device="cpu") - 1.0 / ahead
    missed, spread = (float(((rows @ gram) * rows).sum()) for rows in (residual, around))
    # What rounding leaves of a component that does not change is no spread.
    return 1.0 - missed / spread if spread > 1e-12 * float(gram.diagonal().sum()) else math.nan
