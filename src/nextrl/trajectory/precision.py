"""What storing factors in 16 bits does to small deltas: the rounding noise of a checkpoint, as a singular value.

A stored value x = 2^e f carries an error that is uniform within half a unit in the last place. Its variance is ulp^2
/ 12, where ulp = 2^(e - p) (p = 7 for bfloat16, 10 for float16, 23 for float32). The error dB A + B dA of s B A then
has the expected squared spectral scale s^2 (var_B m |A|_2^2 + var_A n |B|_2^2), and a delta carries two such errors.
"""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from nextrl.trajectory.trajectory import Trajectory

_FRACTION_BITS = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23, torch.float64: 52}
_NARROW = {torch.bfloat16, torch.float16}
WARN_ABOVE = 0.1


def rounding_variance(t: Tensor) -> float:
    """Mean variance of the storage error of a tensor's entries, ulp^2 / 12; zeros count as exact."""
    wide = t.double()
    exponent = torch.frexp(wide)[1] - 1
    ulp = torch.where(wide == 0, 0.0, torch.exp2((exponent - _FRACTION_BITS[t.dtype]).double()))
    return float(ulp.square().mean()) / 12.0


def noise_floor(traj: Trajectory, step: int, module: str) -> float:
    """Singular value that storage rounding alone gives a delta of this module between two checkpoints near `step`.

    Returns:
        sqrt(2) s sqrt(var_B m |A|_2^2 + var_A n |B|_2^2): compare it with sigma_1 of the local delta.
    """
    a, b = traj.factors(step, module)
    m, n, _ = traj.shape(module)
    a2 = float(torch.linalg.eigvalsh(a.double() @ a.double().mT)[-1])
    b2 = float(torch.linalg.eigvalsh(b.double().mT @ b.double())[-1])
    energy = rounding_variance(b) * m * a2 + rounding_variance(a) * n * b2
    return float(traj.scaling(module) * (2.0 * energy) ** 0.5)


def noise_share(traj: Trajectory, module: str, sigma: float) -> float:
    """Noise floor at the last step over `sigma`, sigma_1 of the last local delta; 0 where neither moves."""
    floor = noise_floor(traj, traj.steps[-1], module)
    if sigma == 0:
        return float("inf") if floor > 0 else 0.0
    return floor / sigma


def window_noise(traj: Trajectory, since: int) -> float:
    """Noise floor over sigma_1 of the delta from step `since` to the last one, the median over modules that moved.

    0.0 where nothing is stored in 16 bits: the rounding of wider numbers is far below any window.
    """
    last, shares = traj.steps[-1], []
    for module in traj.modules:
        if not _NARROW.intersection(traj.dtypes(last, module)):
            continue
        sigma = float(traj.delta(module, since, last).singular_values()[0])
        if sigma > 0:
            shares.append(noise_share(traj, module, sigma))
    return statistics.median(shares) if shares else 0.0
