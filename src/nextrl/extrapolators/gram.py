"""What the combinations share: the run as a curve of T points of which only inner products are known.

Everything is float64 and at most T x T; no weight is touched beyond `Trajectory.gram`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextrl.extrapolators.base import known_steps
from nextrl.trajectory import Trajectory


def step_numbers(traj: Trajectory) -> Tensor:
    """(T,) float64: the step of each checkpoint on disk."""
    return torch.tensor(traj.steps, dtype=torch.float64)


def unit(traj: Trajectory, step: int) -> Tensor:
    """(T,) float64: one at `step`; all zero for step 0, where `W_0 - W_0 = 0`."""
    c = torch.zeros(len(traj.steps), dtype=torch.float64)
    if step in traj.steps:
        c[traj.steps.index(step)] = 1.0
    return c


def pooled_gram(traj: Trajectory) -> Tensor:
    """(T, T) float64: `sum over modules of <W_s - W_0, W_t - W_0>`, the run as one long vector."""
    total = torch.zeros(len(traj.steps), len(traj.steps), dtype=torch.float64)
    for module in traj.modules:
        total += traj.gram(module)
    return total


def even_grid(traj: Trajectory) -> Tensor:
    """(G, T) float64: the run resampled at T, T - k, T - 2k, ... (oldest first) by linear interpolation in
    steps.

    Row g holds the coefficients over `W_t - W_0` of grid point g. Methods that need even spacing (Koopman,
    Anderson) work on the rows; on a run that is evenly spaced each row is a unit vector.
    """
    known, k = known_steps(traj), traj.spacing
    rows = []
    for target in range(known[-1], known[0] - 1, -k):
        after = next(s for s in known if s >= target)
        if after == target:
            rows.append(unit(traj, target))
            continue
        before = max(s for s in known if s < target)
        share = (target - before) / (after - before)
        rows.append((1 - share) * unit(traj, before) + share * unit(traj, after))
    return torch.stack(rows[::-1])


def slope_weights(steps: Tensor) -> Tensor:
    """(T,) weights w with `sum w y` = least-squares slope of y on `steps` (with intercept)."""
    centred = steps - steps.mean()
    return centred / centred.square().sum()
