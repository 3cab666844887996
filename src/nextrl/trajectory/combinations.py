"""Combinations of a run's checkpoints: which steps are known, coefficients over them, and what they add up to.

A combination is a vector of coefficients c, (T,) float64 over `traj.steps`, and stands for `sum_t c_t (W_t - W_0)`.
Extrapolators compute such vectors from the step numbers and from the (T, T) inner products of the run, without
touching a weight; `weighted_displacement` alone turns one into factors.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from nextrl.errors import InputError, TooShort
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.trajectory import Trajectory

MAX_GRID = 4000
"""Points of an even grid over a run, beyond four for each checkpoint; what is computed on it is of their square."""


def known_steps(traj: Trajectory) -> tuple[int, ...]:
    """The steps whose weights are known: those on disk, and step 0 where the adapter is known to start at zero."""
    if traj.start not in traj.steps and traj.knows_start:
        return (traj.start, *traj.steps)
    return traj.steps


def nearest_step(traj: Trajectory, target: float) -> int:
    """The known step before T that is nearest to `target` (the later one on a tie).

    Uneven spacing is met here: a method that wants `W_{T-h}` takes the nearest checkpoint s and rescales its
    displacement by h / (T - s).
    """
    return nearest_of(known_steps(traj)[:-1], target)


def nearest_of(steps: Sequence[int], target: float) -> int:
    """Which of the steps is nearest to `target` (the later one on a tie)."""
    return max(steps, key=lambda step: (-abs(step - target), step))


def distinct_steps(traj: Trajectory, targets: Sequence[float]) -> tuple[int, ...]:
    """The known steps before T that are nearest to several targets, no two of them the same.

    Across a gap T - h and T - 2h may have one nearest checkpoint, and what divides by the distance of its points would
    divide by zero. So each point lies before the one found for the target before it, and leaves as many known steps
    behind it as there are targets to come.

    Args:
        traj: the run.
        targets: steps, from T backwards: `(T - h, T - 2 h)`.

    Returns:
        A known step for each target, descending, all of them before T.

    Raises:
        TooShort: there are fewer known steps before T than targets.
    """
    *before, end = known_steps(traj)
    if len(before) < len(targets):
        raise TooShort(
            f"{len(targets)} checkpoints before step {end} are needed, and there are {len(before)}: "
            f"{', '.join(map(str, before)) or 'none'}"
        )
    found: list[int] = []
    for to_come, target in zip(reversed(range(len(targets))), targets, strict=True):
        found.append(nearest_of(before[to_come:], target))
        before = before[: before.index(found[-1])]
    return tuple(found)


def weighted_displacement(traj: Trajectory, module: str, coefficients: Tensor) -> LowRank:
    """`sum_t c_t (W_t - W_0)` of one module, (m, n), from coefficients (T,) over `traj.steps`.

    Raises:
        InputError: W_0 is not known, and the coefficients do not sum to zero.
    """
    from_start = counts_from_start(coefficients)
    terms = []
    for step, c in zip(traj.steps, coefficients.tolist(), strict=True):
        if c == 0.0 or (from_start and step == traj.start):
            continue
        terms.append((traj.delta(module, traj.start, step) if from_start else traj.weight(step, module)) * c)
    if not terms:
        a, b = traj.factors(traj.steps[-1], module)
        return LowRank.zeros(b.shape[0], a.shape[1])
    return LowRank(torch.cat([t.left for t in terms], -1), torch.cat([t.right for t in terms], -1))


def counts_from_start(coefficients: Tensor) -> bool:
    """Whether W_0 takes part in a combination: where its coefficients cancel it drops out, and need not be known."""
    return abs(float(coefficients.sum())) > 1e-9 * float(coefficients.abs().sum())


def wide(factor: Tensor) -> Tensor:
    """A stored factor in float32 or wider: a difference of bfloat16 numbers would keep two digits only."""
    return factor if factor.dtype in (torch.float32, torch.float64) else factor.float()


def moves(traj: Trajectory) -> bool:
    """Whether any module's weights differ between the last two known checkpoints; NaN differs from everything."""
    start, end = known_steps(traj)[-2:]
    return any(float(traj.delta(module, start, end).norm()) != 0.0 for module in traj.modules)


def step_numbers(traj: Trajectory) -> Tensor:
    """(T,) float64: the step of each checkpoint on disk."""
    return torch.tensor(traj.steps, dtype=torch.float64, device="cpu")


def unit(traj: Trajectory, step: int) -> Tensor:
    """(T,) float64: the combination that is `W_step - W_0`, one at `step`; all zero for a W_0 without a checkpoint."""
    c = torch.zeros(len(traj.steps), dtype=torch.float64, device="cpu")
    if step in traj.steps:
        c[traj.steps.index(step)] = 1.0
    return c


def pooled_gram(traj: Trajectory) -> Tensor:
    """(T, T) float64: `<W_s - W_0, W_t - W_0>` summed over modules, as if all weights were one long vector."""
    total = torch.zeros(len(traj.steps), len(traj.steps), dtype=torch.float64, device="cpu")
    for module in traj.modules:
        total += traj.gram(module)
    return total


def check_grid(traj: Trajectory) -> None:
    """Whether a loop over the run in steps of its spacing ends.

    Raises:
        InputError: one checkpoint's step is so far from the others' that it does not; steps come from folders' names.
    """
    known, k = known_steps(traj), traj.spacing
    if (known[-1] - known[0]) // k > MAX_GRID + 4 * len(known):
        far = max(itertools.pairwise(known), key=lambda pair: pair[1] - pair[0])
        raise InputError(
            f"between the checkpoints at steps {far[0]} and {far[1]} lie {(far[1] - far[0]) // k:,} times the run's "
            f"spacing of {k}: is a folder's name wrong? Leave out what does not belong to the run"
        )


def even_points(traj: Trajectory, least: int) -> tuple[Tensor, int]:
    """The latest evenly spaced points of the run, at its spacing k, and how many steps T lies beyond the last of them.

    They are the latest known steps of which at least `least` follow each other at k: a gap before them, or a last
    checkpoint out of step, is left out. Where there are not so many anywhere, they are all points T, T - k, ... of
    `even_grid`, some of them interpolated.

    Args:
        traj: the run.
        least: points that the caller needs.

    Returns:
        (G, T) float64, oldest first: row g holds the coefficients over `W_t - W_0` of point g; and steps, 0 or more.

    Raises:
        InputError: as `check_grid`.
    """
    check_grid(traj)
    known, k = known_steps(traj), traj.spacing
    for end in range(len(known) - 1, least - 2, -1):
        start = end
        while start > 0 and known[start] - known[start - 1] == k:
            start -= 1
        if end - start + 1 >= least:
            rows = torch.stack([unit(traj, step) for step in known[start : end + 1]])
            return rows, known[-1] - known[end]
    return even_grid(traj), 0


def even_grid(traj: Trajectory) -> Tensor:
    """(G, T) float64: the run resampled at T, T - k, T - 2k, ... (oldest first) by linear interpolation in steps.

    Row g holds the coefficients over `W_t - W_0` of grid point g. Two points between the same checkpoints make
    identical differences: take `even_points` where real ones do, and no cosine from these.

    Raises:
        InputError: as `check_grid`.
    """
    check_grid(traj)
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
    """(T,) weights w with `sum_t w_t y_t` = the slope of the least-squares line (with intercept) of y on `steps`."""
    centred = steps - steps.mean()
    return centred / centred.square().sum()
