"""All three deltas of all checkpoints of each module at once: singular values and leading vectors, at
reading speed.

The r x r products of neighbouring checkpoints (B_s^T B_t, A_s A_t^T) are computed once per pair and shared
by the global, local and target deltas; everything after that is q x q algebra, batched over checkpoints.
Modules are handled one at a time on each of `workers` threads, so memory does not grow with depth.

Exactness is that of `lowrank`'s Gram route: float64 products, and where cancellation could cost more than
1e-8 of sigma_1 (GRAM_FLOOR) the delta is done again by QR.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nextrl.lowrank import GRAM_FLOOR
from nextrl.trajectory import Trajectory

T = TypeVar("T")
KINDS = ("global", "local", "target")
CHUNK = 2048  # columns widened to float64 at a time: 15 checkpoints of rank 32 then take 8 MB


@dataclass(frozen=True)
class Spectrum:
    """One kind of delta of one module, at every step where it is defined.

    Attributes:
        steps: (P) the step t of each delta (the target delta of t runs from t to t + h).
        sigma: (P, q) float64, descending; q = r for global deltas from B_0 = 0, else 2r. Only sigma_1 is
            accurate to 1e-8; values below 1e-8 sigma_1 are rounding.
        u: (P, m) float32, left vector of sigma_1, unit length; v: (P, n) the right one. Signs are defined
            together, and arbitrary.
    """

    steps: tuple[int, ...]
    sigma: Tensor
    u: Tensor
    v: Tensor

    def share(self, k: int = 1) -> Tensor:
        """(P) float64: energy in the k leading singular values, as a share; NaN for a zero delta."""
        energy = self.sigma.square()
        return energy[:, :k].sum(1) / energy.sum(1)


def iter_spectra(
    traj: Trajectory, horizon: int | None = None, *, workers: int | None = None
) -> Iterator[tuple[str, dict[str, Spectrum]]]:
    """Yield (module, {"global": ..., "local": ..., "target": ...}) in the trajectory's order.

    Args:
        traj: the run; W_0 must be known (B_0 A_0 = 0 or step 0 on disk).
        horizon: h of the target deltas in steps; five spacings by default.
        workers: threads, each on one module; all cores by default.

    Raises:
        InputError: NaN or Inf in a checkpoint, or W_0 unknown.
    """
    h = 5 * traj.spacing if horizon is None else horizon
    return map_modules(traj, lambda module: module_spectra(traj, module, h), workers)


def map_modules(
    traj: Trajectory, work: Callable[[str], T], workers: int | None = None
) -> Iterator[tuple[str, T]]:
    """(module, work(module)) in the trajectory's order, on `workers` threads (all cores by default).

    At most three results a thread are held at once, so memory does not grow with depth.
    """
    count = workers or len(os.sched_getaffinity(0))
    if count == 1:
        for module in traj.modules:
            yield module, work(module)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # parallel over modules; threads inside each product would only contend
    pending: list[tuple[str, Future[T]]] = []
    try:
        with ThreadPoolExecutor(count) as pool:
            for module in traj.modules:
                pending.append((module, pool.submit(work, module)))
                if len(pending) > 2 * count:
                    name, ready = pending.pop(0)
                    yield name, ready.result()
            for name, ready in pending:
                yield name, ready.result()
    finally:
        for _, waiting in pending:
            waiting.cancel()
        torch.set_num_threads(threads)


def module_spectra(traj: Trajectory, module: str, horizon: int) -> dict[str, Spectrum]:
    """The three kinds of one module; see `iter_spectra`."""
    steps = traj.steps
    base = traj.base_index(module)
    tensors = [traj.factors(step, module) for step in steps]
    ends = _ends(steps, horizon, base)
    both = [pair for found in ends.values() for pair in found]
    pairs = sorted({p for i, j in both for p in ((i, i), (j, j), (i, j)) if -1 not in p})
    left = _products([b.mT for _, b in tensors], pairs) * traj.scaling(module) ** 2
    right = _products([a for a, _ in tensors], pairs)
    place = {pair: n for n, pair in enumerate(pairs)}
    return {kind: _spectrum(traj, module, tensors, kind, ends[kind], place, left, right) for kind in KINDS}


def _ends(steps: Sequence[int], horizon: int, base: int) -> dict[str, list[tuple[int, int]]]:
    """For each kind, (index of the later checkpoint, index of the earlier or -1 for W_0 = W_base)."""
    place = {step: n for n, step in enumerate(steps)}
    first = 1 if base == 0 else 0
    return {
        "global": [(n, base) for n in range(first, len(steps))],
        "local": [(n, n - 1) for n in range(first, len(steps))],
        "target": [(place[s + horizon], n) for n, s in enumerate(steps) if s + horizon in place],
    }


def _products(blocks: Sequence[Tensor], pairs: Sequence[tuple[int, int]]) -> Tensor:
    """(P, r, r) float64: blocks[i] @ blocks[j].T for each pair; blocks are (r, n) in any dtype."""
    rank, columns = blocks[0].shape
    runs = _runs(pairs)
    sums = [torch.zeros(rank, (last - first) * rank, dtype=torch.float64) for _, first, last in runs]
    wide = torch.empty(len(blocks), rank, CHUNK, dtype=torch.float64)
    for start in range(0, columns, CHUNK):
        width = min(CHUNK, columns - start)
        for n, block in enumerate(blocks):
            wide[n, :, :width].copy_(block[:, start : start + width])
        rows = wide.view(-1, CHUNK)[:, :width]
        for total, (i, first, last) in zip(sums, runs, strict=True):
            total.addmm_(rows[i * rank : (i + 1) * rank], rows[first * rank : last * rank].mT)
    return torch.cat([total.view(rank, -1, rank).transpose(0, 1) for total in sums])


def _runs(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(i, first j, last j + 1) of stretches (i, j), (i, j + 1), ...: one product each, without copies."""
    runs: list[tuple[int, int, int]] = []
    for i, j in pairs:
        if runs and (i, j) == (runs[-1][0], runs[-1][2]):
            runs[-1] = (i, runs[-1][1], j + 1)
        else:
            runs.append((i, j, j + 1))
    return runs


def _spectrum(
    traj: Trajectory,
    module: str,
    tensors: Sequence[tuple[Tensor, Tensor]],
    kind: str,
    ends: Sequence[tuple[int, int]],
    place: dict[tuple[int, int], int],
    left: Tensor,
    right: Tensor,
) -> Spectrum:
    m, n, rank = traj.shape(module)
    steps = tuple(traj.steps[j if kind == "target" else i] for i, j in ends)
    if not ends:
        return Spectrum((), torch.zeros(0, rank), torch.zeros(0, m), torch.zeros(0, n))
    alone = all(j == -1 for _, j in ends)
    sides = [_gram(g, ends, place, sign) for g, sign in ((left, -1.0), (right, 1.0))]
    sigma, toward_u, toward_v, trusted = _leading(*sides)
    u, v = torch.empty(len(ends), m), torch.empty(len(ends), n)
    for p, (i, j) in enumerate(ends):
        if not trusted[p]:
            start = 0 if j == -1 else traj.steps[j]
            exact = traj.delta(module, start, traj.steps[i]).top(sigma.shape[1])
            sigma[p] = 0.0
            sigma[p, : exact.sigma.numel()] = exact.sigma
            u[p], v[p] = exact.u[:, 0].float(), exact.v[:, 0].float()
            continue
        (a, b), cu, cv = tensors[i], toward_u[p].float(), toward_v[p].float()
        u[p], v[p] = b.float() @ cu[:rank], cv[:rank] @ a.float()
        if not alone and j != -1:
            u[p] -= tensors[j][1].float() @ cu[rank:]
            v[p] += cv[rank:] @ tensors[j][0].float()
    return Spectrum(steps, sigma, normalize(u, dim=1), normalize(v, dim=1))


def _gram(
    products: Tensor, ends: Sequence[tuple[int, int]], place: dict[tuple[int, int], int], sign: float
) -> Tensor:
    """(P, q, q) Gram matrices of [X_i, sign X_j] from the stored products; q = r where all j are -1."""
    same = products[[place[i, i] for i, _ in ends]]
    if all(j == -1 for _, j in ends):
        return same
    zero = torch.zeros_like(products[0])
    cross = torch.stack([products[place[i, j]] if j != -1 else zero for i, j in ends]) * sign
    other = torch.stack([products[place[j, j]] if j != -1 else zero for _, j in ends])
    return torch.cat([torch.cat([same, cross], 2), torch.cat([cross.mT, other], 2)], 1)


def _leading(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Singular values (P, q) of L R^T from the Grams of L and R, coefficients (P, q) of u1 in L and of v1 in
    R.

    With L^T L = C C^T the squares are the eigenvalues of K = C^T (R^T R) C; for K's eigenvector y, v is along
    R C y and u along L (R^T R) C y. The last result tells where that is exact enough.
    """
    root, failed = torch.linalg.cholesky_ex(left)
    if bool(failed.any()):  # a rank-deficient L, the rule where B_j = 0
        values, vectors = torch.linalg.eigh(left[failed > 0])
        root[failed > 0] = vectors * values.clamp_min(0).sqrt()[:, None, :]
    squares, vectors = torch.linalg.eigh(root.mT @ right @ root)
    sigma = squares.clamp_min(0).sqrt().flip(1)
    toward_v = (root @ vectors[:, :, -1:]).squeeze(2)
    toward_u = (right @ toward_v[:, :, None]).squeeze(2)
    scale = (left.diagonal(dim1=1, dim2=2).sum(1) * right.diagonal(dim1=1, dim2=2).sum(1)).sqrt()
    trusted = sigma[:, 0] > GRAM_FLOOR * scale
    return sigma, toward_u, toward_v, trusted
