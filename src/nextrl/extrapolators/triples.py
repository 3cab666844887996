"""What the networks see: the leading singular triple of each module's displacements, signs fixed.

u and v of a singular pair are only defined up to a common sign, so every sequence of pairs is turned to agree with the
module's global direction at T at its end, and from there back along the run (`lowrank.align_signs`); without that a
network would be asked to learn coin flips.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nextrl.errors import InputError
from nextrl.trajectory.combinations import known_steps
from nextrl.trajectory.lowrank import LowRank, align_signs
from nextrl.trajectory.trajectory import Trajectory


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


@dataclass(frozen=True)
class Spans:
    """Leading triples of one module over P spans of steps; float32, sigma float64.

    Attributes:
        u: (P, m). v: (P, n). sigma: (P,) >= 0.
    """

    u: Tensor
    sigma: Tensor
    v: Tensor

    def aligned(self, like: Spans | None = None) -> Spans:
        """The same with signs that do not jump, the last pair agreeing with the last pair of `like`."""
        reference = None if like is None else (like.u[-1], like.v[-1])
        signs = align_signs(self.u, self.v, reference)[:, None]
        return Spans(self.u * signs, self.sigma, self.v * signs)


@dataclass(frozen=True)
class Features:
    """Everything the networks of `next` and `next-paper` learn from and are applied to.

    Attributes:
        name: of the method, for errors.
        plan: the training pairs.
        horizon: h in steps.
        far: module -> global triples (start, t) of the O origins, T last.
        local: module -> local triples (before, t) of the O origins, T last.
        ahead: module -> target triples (t, t + h) of the O - 1 training origins.
    """

    name: str
    plan: Schedule
    horizon: int
    far: dict[str, Spans]
    local: dict[str, Spans]
    ahead: dict[str, Spans]

    @property
    def modules(self) -> list[str]:
        """Modules that moved: those whose global direction at T exists."""
        return [m for m, spans in self.far.items() if float(spans.sigma[-1]) > 0]

    def lengths(self, side: str) -> dict[int, list[str]]:
        """Vector length d -> the moving modules whose `side` ("u" or "v") has it."""
        table: dict[int, list[str]] = {}
        for module in self.modules:
            table.setdefault(getattr(self.far[module], side).shape[1], []).append(module)
        return table

    def vectors(self, side: str, modules: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors of one side of modules of equal length d.

        Returns:
            x (N, 2, d): global and local at the training origins. y (N, d): the targets. last (M, 2, d):
            global and local at T, one per module. Rows whose span did not move are left out of x and y, so that
            there may be none (N = 0) of modules that moved too late.
        """
        rows, targets, last = [], [], []
        for module in modules:
            far, local, ahead = self.far[module], self.local[module], self.ahead[module]
            both = torch.stack([getattr(far, side), getattr(local, side)], 1)
            keep = self.moving(module)
            rows.append(both[:-1][keep])
            targets.append(getattr(ahead, side)[keep])
            last.append(both[-1])
        return torch.cat(rows), torch.cat(targets), torch.stack(last)

    def sizes(self, unit: int) -> tuple[Tensor, Tensor, Tensor]:
        """Singular values; the local one as what `unit` steps would have moved, the target's as what h would.

        Returns:
            x (N, 2), y (N,), last (M, 2), float32, rows as in `vectors`, M the moving modules.

        Raises:
            InputError: no row is left of any module.
        """
        origins, before, ahead_of = (
            torch.tensor(steps, device="cpu")
            for steps in (self.plan.origins, self.plan.before, self.plan.targets)
        )
        per_span = unit / (origins - before).float()
        per_target = self.horizon / (ahead_of - origins[:-1]).float()
        rows, targets, last = [], [], []
        for module in self.modules:
            far, local, ahead = self.far[module].sigma, self.local[module].sigma, self.ahead[module].sigma
            both = torch.stack([far, local * per_span], 1)
            keep = self.moving(module)
            rows.append(both[:-1][keep])
            targets.append((ahead * per_target)[keep])
            last.append(both[-1])
        if not sum(len(block) for block in rows):
            raise InputError(
                f"{self.name}: the run moved too late or too little for a network to learn from: at no step up to "
                f"{self.plan.targets[-1]} did the last span and the next {self.horizon} steps both move; train on, or "
                "take a method that learns nothing (secant, factors)"
            )
        return torch.cat(rows).float(), torch.cat(targets).float(), torch.stack(last).float()

    def moving(self, module: str) -> Tensor:
        """(O - 1,) bool: the training origins whose local and target span both moved."""
        return (self.local[module].sigma[:-1] > 0) & (self.ahead[module].sigma > 0)


def collect(traj: Trajectory, horizon: int, name: str, part: int = 0) -> Features:
    """Decompose every span that the networks need, module by module.

    Args:
        traj, horizon: the run, and h in steps.
        name: of the method, for errors.
        part: which singular triple of each span, 0 the leading one.

    Raises:
        InputError: no training pair at this horizon, or no module that moves. Later parts are another matter: they
            are of the modules that have one to learn from, and that may be none.
    """
    plan = schedule(traj, horizon, name)
    spans = [(plan.start, t) for t in plan.origins]
    spans += list(zip(plan.before, plan.origins, strict=True))
    spans += list(zip(plan.origins[:-1], plan.targets, strict=True))
    far, local, ahead, count = {}, {}, {}, len(plan.origins)
    for module in traj.modules:
        all_spans = span_triples(traj, module, spans, part)
        parts = [
            Spans(all_spans.u[at], all_spans.sigma[at], all_spans.v[at])
            for at in (slice(count), slice(count, 2 * count), slice(2 * count, None))
        ]
        far[module] = parts[0].aligned()
        local[module], ahead[module] = (part.aligned(far[module]) for part in parts[1:])
    features = Features(name, plan, horizon, far, local, ahead)
    if part:
        kept = [m for m in features.modules if bool(features.moving(m).any())]
        far, local, ahead = ({m: spans[m] for m in kept} for spans in (far, local, ahead))
        return Features(name, plan, horizon, far, local, ahead)
    if not features.modules:
        raise InputError(f"{name}: no module moved between steps {plan.start} and {plan.origins[-1]}")
    return features


def span_triples(traj: Trajectory, module: str, spans: Sequence[tuple[int, int]], part: int = 0) -> Spans:
    """The leading triple of `W_stop - W_start` for each span (start, stop), (P, ...), or the `part`-th after it.

    A span whose rank is `part` or less has sigma 0 there. Signs are arbitrary (`Spans.aligned` settles them). Spans
    whose factors have equally many columns are decomposed in one batched call.
    """
    deltas = [traj.delta(module, start, stop) for start, stop in spans]
    m, n = deltas[0].shape
    u, v = (torch.zeros(len(spans), d, dtype=torch.float32, device="cpu") for d in (m, n))
    sigma = torch.zeros(len(spans), dtype=torch.float64, device="cpu")
    for width in sorted({d.left.shape[-1] for d in deltas}):
        rows = [i for i, d in enumerate(deltas) if d.left.shape[-1] == width]
        left = torch.stack([deltas[i].left for i in rows])
        top = LowRank(left, torch.stack([deltas[i].right for i in rows])).top(part + 1)
        if top.sigma.shape[-1] > part:
            u[rows], v[rows] = top.u[..., part].float(), top.v[..., part].float()
            sigma[rows] = top.sigma[..., part]
    return Spans(u, sigma, v)
