"""What storing in 16 bits does to small deltas: the rounding noise of a checkpoint, as a singular value.

With the variances of `rounding`, the error dB A + B dA of s B A has the expected squared spectral scale
s^2 (var_B m |A|_2^2 + var_A n |B|_2^2). That of a stored matrix W itself, (m, n), has sqrt(var_W) (sqrt(m) + sqrt(n)),
the edge of the singular values of independent entries. A delta carries two such errors.
"""

from __future__ import annotations

import math
import statistics

import torch

from nextrl.trajectory.full_weights import FullCheckpoint
from nextrl.trajectory.rounding import rounding_variance
from nextrl.trajectory.trajectory import Trajectory

_NARROW = {torch.bfloat16, torch.float16}
WARN_ABOVE = 0.1


def noise_floor(traj: Trajectory, step: int, module: str) -> float:
    """Singular value that storage rounding alone gives a delta of this module between two checkpoints near `step`.

    Returns:
        sqrt(2) s sqrt(var_B m |A|_2^2 + var_A n |B|_2^2), of full weights sqrt(2 var_W) (sqrt(m) + sqrt(n)): compare
        it with sigma_1 of the local delta.
    """
    m, n, _ = traj.shape(module)
    stored = next((c for c in traj.checkpoints if c.step == step), None)
    # Its factors are wide, and what they were computed from need not be.
    if isinstance(stored, FullCheckpoint):
        return math.sqrt(2.0 * stored.rounding[module]) * (math.sqrt(m) + math.sqrt(n))
    a, b = traj.factors(step, module)
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
