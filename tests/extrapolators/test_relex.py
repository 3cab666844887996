"""`relex` against RELEX's own code, and `relex-pinned` against a plain singular value decomposition.

The numbers are what `compute_svd` (rank 1) and `fit_linear` of `scripts/svd_extrapolation.py` in
github.com/weizhepei/RELEX at e4548ba gave in float64 for the rows `W_t - W_0`, t = 1 to 8, of `run`, at step 12: one
checkpoint for each step, as that code takes them.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nextrl.extrapolators import get
from nextrl.trajectory.trajectory import Trajectory

Matrix = NDArray[np.float64]
STEPS, AHEAD = range(1, 9), 4
PHASES = {"a": 0.0, "b": 1.0}
RELEX_AT_12 = {
    "a": [
        [1.5266447808609434, 1.6289879081939456, -0.06851995089873496, -1.006457825806781, -0.32171312954052284],
        [-1.5118084824168012, -0.7741077738296224, 0.9230141385448721, 1.116533658541261, -0.33578314756709227],
        [1.6561686230686647, -2.6380747275570613, -3.447183578539656, 0.19172449887576645, 3.32009446779236],
        [0.44642382850710927, -0.15397085101284605, -0.04955704740519794, 0.7693931209298764, 0.697243574490351],
        [-3.4041494787270983, -0.024323877278920034, 3.3314009702335334, 1.9373602435865775, -2.148430852422667],
        [-0.5007073654187993, -2.8905587102692665, -1.6163322378620242, 1.33816621839167, 2.1660371246607157],
    ],
    "b": [
        [-1.67484513049771, 0.15663076548384477, 1.9926064154612355, 1.3238081822131935, -1.0922834529653507],
        [1.336301765535758, -1.5472288940316288, -2.491192951964747, -0.3712627992265378, 2.0117802128703337],
        [3.518991543386439, 2.1338468832530784, -2.148615996938083, -3.1888175466329485, 0.3569399136421376],
        [-2.1845885307771513, -1.1451731411687696, 1.7903829757473348, 2.653999257951441, -0.007339381147284364],
        [-0.7204992863091653, -3.2186929377624334, -1.466290857246485, 1.9281127967841891, 2.4252110771258635],
        [2.0733886826458963, 0.9146062448426738, -1.596777260100801, -1.8985583802510373, 0.4775922151489922],
    ],
}  # fmt: skip


def factors(module: str, step: int) -> tuple[Matrix, Matrix]:
    """A (3, 5) and B (6, 3), from sines: a drift, and enough besides it that rank 1 leaves more than half out."""
    i, j, k, phase = np.arange(6.0), np.arange(5.0), np.arange(3.0), PHASES[module]
    a = np.cos(k[:, None] + 5 * j + phase) + 0.1 * np.sin(step + 2 * k[:, None] + j)
    b = step * np.cos(2 * i[:, None] + 3 * k + phase) + np.sin(step * (1 + i[:, None] + 2 * k) + phase)
    return a, b


def run() -> Trajectory:
    states = [{m: factors(m, step) for m in PHASES} for step in STEPS]
    return Trajectory.from_factors(
        list(STEPS),
        [{m: (torch.from_numpy(a), torch.from_numpy(b)) for m, (a, b) in state.items()} for state in states],
    )


def weight(module: str, step: int) -> Matrix:
    a, b = factors(module, step)
    return b @ a


@pytest.mark.parametrize("module", list(PHASES))
def test_relex_is_what_its_own_code_says(module: str) -> None:
    moved = get("relex").fit(run(), AHEAD).delta(module).dense().numpy()
    reached = weight(module, STEPS[-1]) + moved
    np.testing.assert_allclose(reached, np.array(RELEX_AT_12[module]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("module", list(PHASES))
@pytest.mark.parametrize("alpha", [1.0, 2.5, -0.5])
def test_relex_and_its_pinned_form_are_a_line_along_the_first_singular_vector(
    module: str, alpha: float
) -> None:
    rows = np.stack([weight(module, step).ravel() for step in STEPS])
    u, sigma, vh = np.linalg.svd(rows, full_matrices=False)
    slope, intercept = np.polyfit(list(STEPS), u[:, 0] * sigma[0], 1)
    there = (slope * (STEPS[-1] + alpha * AHEAD) + intercept) * vh[0]
    step = slope * alpha * AHEAD * vh[0]
    for name, expected in (("relex", there - rows[-1]), ("relex-pinned", step)):
        moved = get(name).fit(run(), AHEAD).delta(module, alpha).dense().numpy()
        np.testing.assert_allclose(moved.ravel(), expected, rtol=0, atol=1e-11)
