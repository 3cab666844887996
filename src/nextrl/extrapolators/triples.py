"""What the networks see: the leading singular triple of each module's displacements, signs fixed.

u and v of a singular pair are only defined up to a common sign, so every pair is turned to agree with the
module's global direction at T (`lowrank.align_signs`); without that a network would be asked to learn coin
flips.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nextrl.errors import InputError
from nextrl.extrapolators.base import known_steps
from nextrl.lowrank import LowRank, Triples, align_signs
from nextrl.trajectory import Trajectory


@dataclass(frozen=True)
class TriplesOfModule:
    """Leading triples of one module over P spans of steps, float32 (sigma float64).

    Attributes:
        u: (P, m). v: (P, n). sigma: (P,) >= 0.
    """

    u: Tensor
    sigma: Tensor
    v: Tensor


@dataclass(frozen=True)
class Schedule:
    """Which checkpoints a network learns from, in steps and not in indices, so that spacing may be uneven.

    Attributes:
        origins: training steps t, then T itself last.
        before: for each origin the checkpoint before it (the start counts), the local span being (before, t).
        targets: for each training origin (all but the last) the checkpoint nearest to t + h.
        start: the first known step (0 where the start is known).
    """

    start: int
    origins: tuple[int, ...]
    before: tuple[int, ...]
    targets: tuple[int, ...]


def schedule(traj: Trajectory, horizon: int, name: str) -> Schedule:
    """The training pairs (t, t + h) with t + h <= T that the checkpoints allow.

    A target counts if it lies within half a spacing of t + h.

    Raises:
        InputError: there is no pair at all.
    """
    known, end, slack = known_steps(traj), traj.steps[-1], traj.spacing / 2
    origins, before, targets = [], [], []
    for previous, t in itertools.pairwise(known):
        ahead = min((s for s in known if s > t), key=lambda s: abs(s - (t + horizon)), default=None)
        if ahead is not None and abs(ahead - (t + horizon)) <= slack:
            origins.append(t)
            before.append(previous)
            targets.append(ahead)
    if not origins:
        raise InputError(
            f"{name}: no two checkpoints of this run lie about {horizon} steps apart (steps "
            f"{', '.join(map(str, known[:8]))}{' ...' if len(known) > 8 else ''}); choose another horizon"
        )
    return Schedule(known[0], (*origins, end), (*before, known[-2]), tuple(targets))


def leading(
    traj: Trajectory, module: str, spans: Sequence[tuple[int, int]], reference: LowRank
) -> TriplesOfModule:
    """The leading triple of `W_stop - W_start` for each span (start, stop), signs agreeing with `reference`.

    Spans whose two ends need equally many columns are decomposed in one batched call.
    """
    deltas = [traj.delta(module, start, stop) for start, stop in spans]
    m, n = reference.shape
    u, v = torch.zeros(len(spans), m), torch.zeros(len(spans), n)
    sigma = torch.zeros(len(spans), dtype=torch.float64)
    for width in {d.left.shape[-1] for d in deltas}:
        rows = [i for i, d in enumerate(deltas) if d.left.shape[-1] == width]
        batch = LowRank(
            torch.stack([deltas[i].left for i in rows]), torch.stack([deltas[i].right for i in rows])
        )
        top: Triples = align_signs(batch.top(1), reference)
        u[rows], v[rows], sigma[rows] = top.u[..., 0].float(), top.v[..., 0].float(), top.sigma[..., 0]
    return TriplesOfModule(u, sigma, v)
