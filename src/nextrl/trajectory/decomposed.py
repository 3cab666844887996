"""Were a run's adapters trained, or taken out of whole models one by one? Then their factors have no path.

What takes an adapter out of a model (mergekit-extract-lora; PEFT's and others' tools do the same) decomposes
`W_t - W_base = U S V^T` and hands the singular values to A, to B or to both, so that the rows of A are orthogonal, and
the columns of B. From one checkpoint to the next a pair of singular vectors may change its sign or its place, and
`A_t - A_{t-k}` then says nothing. Training leaves no adapter so, not even one that began as a decomposition (PiSSA):
where rows are orthogonal still (PEFT's start of that name, under a low rate), they have hardly moved, and never jump.
"""

from __future__ import annotations

import itertools
import math

from torch import Tensor

from nextrl.trajectory.trajectory import Trajectory

_LOOKED_AT = 4
"""Modules of a checkpoint that are read: the smallest ones of rank 2 or more, since one row is orthogonal to none."""

_ROUNDED = 2.0**-6
"""Cosine of two orthogonal rows of length n once bfloat16 has rounded them, times the root of n: some seven standard
errors. Of two random rows it is 1."""

_JUMP = 0.1
"""Change of a factor from one checkpoint to the next, as a share of it, that nothing trained makes with its rows left
orthogonal, and that a single pair which changed its sign exceeds."""

_SHORT = 1e-2
"""Rows shorter than this share of the longest one are passed over: rounding may be most of them."""


def decomposed(traj: Trajectory) -> bool:
    """Whether each adapter of a run is a decomposition by itself, so that its factors jump; as a few matrices tell."""
    modules = sorted((m for m in traj.modules if traj.shape(m)[2] > 1), key=traj.shape)[:_LOOKED_AT]
    pairs = (traj.factors(step, module) for step in traj.steps[-2:] for module in modules)
    orthogonal = bool(modules) and all(_orthogonal_rows(a) and _orthogonal_rows(b.mT) for a, b in pairs)
    return orthogonal and any(_jumps(traj, module) for module in modules)


def _jumps(traj: Trajectory, module: str) -> bool:
    """Whether A or B is another from one checkpoint to the next."""
    for before, after in itertools.pairwise(traj.factors(step, module) for step in traj.steps):
        for old, new in zip(before, after, strict=True):
            if old.shape != new.shape or (new - old).norm() > _JUMP * new.norm():
                return True
    return False


def _orthogonal_rows(rows: Tensor) -> bool:
    """Whether the rows of a matrix (r, n) are orthogonal up to rounding; False where fewer than two are there."""
    wide = rows.double()
    lengths = wide.norm(dim=1)
    long = lengths > _SHORT * lengths.max()
    units = wide[long] / lengths[long, None]
    if len(units) < 2:
        return False
    cosines = (units @ units.mT).tril(-1).abs()
    count = len(units) * (len(units) - 1) // 2
    # Half of them: a single pair of a trained adapter may be orthogonal by chance, one of rounded rows further from it.
    middle = cosines.flatten().sort(descending=True).values[count // 2]
    return float(middle) <= _ROUNDED / math.sqrt(rows.shape[1])
