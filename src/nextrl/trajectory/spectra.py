"""Singular values and leading vectors of all three deltas of all checkpoints at once, about as fast as they are read.

The r x r products of neighbouring checkpoints (B_s^T B_t, A_s A_t^T) are computed once per pair and shared by the
global, local and target deltas; everything after that is q x q algebra, batched over checkpoints. Modules are handled
one at a time on each of `workers` threads, so memory does not grow with depth.

The results are as exact as those of `lowrank` from Gram matrices: products are float64, and where cancellation could
cost more than 1e-8 of sigma_1 (GRAM_FLOOR) the delta is computed again by QR.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from nextrl.errors import InputError
from nextrl.trajectory.blocks import pair_products, weighted_sums
from nextrl.trajectory.lowrank import GRAM_FLOOR, LowRank
from nextrl.trajectory.trajectory import Trajectory

T = TypeVar("T")
SHIFT = 1e-12
KINDS = ("global", "local", "target")


@dataclass(frozen=True)
class Spectrum:
    """One kind of delta of one module, at every step where it is defined.

    Attributes:
        steps: (P) the step t of each delta (the target delta of t runs from t to t + h).
        sigma: (P, q) float64, descending; q = r for global deltas from B_0 = 0, else 2r. Only sigma_1 is
            accurate to 1e-8; values below 1e-8 sigma_1 are rounding.
        u: (P, m) float32, left vector of sigma_1, unit length; v: (P, n) the right one. Signs are defined
            together, and arbitrary. Both are zero where the delta is, which has no direction.
    """

    steps: tuple[int, ...]
    sigma: Tensor
    u: Tensor
    v: Tensor

    def share(self, k: int = 1) -> Tensor:
        """(P) float64: energy in the k leading singular values, as a share; NaN for a zero delta."""
        energy = self.sigma.square()
        return energy[:, :k].sum(1) / energy.sum(1)

    def nuclear_share(self) -> Tensor:
        """(P) float64: sigma_1 over the sum of all singular values, the paper's E1 (second-hand); NaN for a zero delta.

        Of a full-weight delta only the singular values that were kept of it are known, so that it comes out too large.
        """
        return self.sigma[:, 0] / self.sigma.sum(1)


def iter_spectra(
    traj: Trajectory, horizon: int | None = None, *, workers: int | None = None
) -> Iterator[tuple[str, dict[str, Spectrum]]]:
    """Yield (module, {"global": ..., "local": ..., "target": ...}) in the trajectory's order.

    Args:
        traj: the run; W_0 must be known (B_0 A_0 = 0 or its checkpoint there).
        horizon: h of the target deltas in steps; five spacings by default.
        workers: threads, each on one module; all cores by default.

    Raises:
        InputError: NaN or Inf in a checkpoint, or W_0 unknown.
    """
    h = 5 * traj.spacing if horizon is None else horizon
    return map_modules(traj, lambda module: module_spectra(traj, module, h), workers)


def _cores() -> int:
    """The cores that this process may use; where a system does not tell (macOS, Windows), all there are."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def map_modules(
    traj: Trajectory, work: Callable[[str], T], workers: int | None = None
) -> Iterator[tuple[str, T]]:
    """(module, work(module)) in the trajectory's order, on `workers` threads (all cores by default).

    At most three results per thread are held at once, so memory does not grow with depth.
    """
    count = workers or _cores()
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
    ends = _ends(traj.steps, horizon, traj.base_index(module))
    pairs = sorted(
        {p for found in ends.values() for i, j in found for p in ((i, i), (j, j), (i, j)) if -1 not in p}
    )
    place = {pair: n for n, pair in enumerate(pairs)}
    stack_a, stack_b = traj.stacks(module, check=False)  # the products below show a NaN or Inf
    left, right = pair_products(stack_b.mT, pairs), pair_products(stack_a, pairs)
    if not bool(torch.isfinite(left.sum() + right.sum())):
        _refuse(traj, module)
    stack_a, stack_b = _near_one(stack_a, right), _near_one(stack_b, left)
    left *= traj.scaling(module) ** 2
    cores = {
        kind: _leading(_gram(left, found, place, -1.0), _gram(right, found, place, 1.0))
        for kind, found in ends.items()
        if found
    }
    u = _vectors(stack_b.mT, ends, {kind: core.toward_u for kind, core in cores.items()}, -1.0)
    v = _vectors(stack_a, ends, {kind: core.toward_v for kind, core in cores.items()}, 1.0)
    result = {}
    for kind, found in ends.items():
        steps = tuple(traj.steps[j if kind == "target" else i] for i, j in found)
        sigma = (
            cores[kind].sigma
            if found
            else torch.zeros(0, stack_a.shape[1], dtype=torch.float64, device="cpu")
        )
        result[kind] = Spectrum(steps, sigma, u[kind], v[kind])
        for p in (~cores[kind].trusted).nonzero().flatten().tolist() if found else ():
            i, j = found[p]
            _replace(
                result[kind], p, traj.delta(module, traj.start if j == -1 else traj.steps[j], traj.steps[i])
            )
    return result


def _replace(spectrum: Spectrum, p: int, delta: LowRank) -> None:
    """Put the triples by QR in place of those that the Gram matrices could not give."""
    exact = delta.top(spectrum.sigma.shape[1])
    spectrum.sigma[p] = 0.0
    spectrum.sigma[p, : exact.sigma.numel()] = exact.sigma
    spectrum.u[p], spectrum.v[p] = exact.u[:, 0].float(), exact.v[:, 0].float()


def _refuse(traj: Trajectory, module: str) -> NoReturn:
    """Say which checkpoint holds the NaN or Inf that spoiled the products."""
    for step in traj.steps:
        traj.factors(step, module)  # refuses what is broken, and names it
    raise InputError(f"the values of {module} are too large: their squares overflow float64")


def _vectors(
    stack: Tensor, ends: dict[str, list[tuple[int, int]]], toward: dict[str, Tensor], sign: float
) -> dict[str, Tensor]:
    """For each kind (P, n) float32, unit rows: `toward` (P, q) applied to [X_i, sign X_j].

    The sums are float32, so both sides have to come to them near 1, whatever the run's scale is.
    """
    count, rank = stack.shape[:2]
    uses: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for row, (i, j) in enumerate(pair for found in ends.values() for pair in found):
        uses[i].append((row, 0))
        if j != -1:
            uses[j].append((row, 1))
    most = max(len(used) for used in uses)
    # Checkpoints that few deltas use are filled up with row -1, which is zero.
    table = torch.tensor([used + [(-1, 0)] * (most - len(used)) for used in uses], device="cpu")
    parts = [pad(t, (0, 2 * rank - t.shape[1])) for t in toward.values()]
    coefficients = torch.cat([*parts, torch.zeros(1, 2 * rank, dtype=torch.float64, device="cpu")]).view(
        -1, 2, rank
    )
    coefficients[:, 1] *= sign
    coefficients *= _power_of_two(coefficients.abs().amax((1, 2), keepdim=True))
    rows = len(coefficients) - 1
    weights = coefficients[table[..., 0], table[..., 1]]
    flat = weighted_sums(stack, weights, table[..., 0] % (rows + 1), rows + 1)[:rows]
    pieces = torch.split(_unit(flat), [len(found) for found in ends.values()])
    return dict(zip(ends, pieces, strict=True))


def _near_one(stack: Tensor, products: Tensor) -> Tensor:
    """The factors as they are, or divided by their size where float32's squares would under- or overflow.

    Args:
        products: of the same factors, whose diagonals hold their squares.
    """
    size = float(products.diagonal(dim1=1, dim2=2).max()) ** 0.5
    if size == 0 or 1e-9 < size < 1e9:
        return stack
    scaled: Tensor = (stack.double() / size).float()
    return scaled


def _power_of_two(size: Tensor) -> Tensor:
    """The power of two that brings each size near 1: such a factor rounds nothing. 1 for 0, and for what is NaN."""
    power: Tensor = torch.frexp(size).mantissa / size
    usable: Tensor = torch.where(power.isfinite() & (power > 0), power, 1.0)
    return usable


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1, however short or long they were; NaN for a row of zeros."""
    unit: Tensor = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return unit


def _ends(steps: Sequence[int], horizon: int, base: int) -> dict[str, list[tuple[int, int]]]:
    """For each kind, (index of the later checkpoint, index of the earlier or -1 for W_0 = W_base)."""
    place = {step: n for n, step in enumerate(steps)}
    first = 1 if base == 0 else 0
    return {
        "global": [(n, base) for n in range(first, len(steps))],
        "local": [(n, n - 1) for n in range(first, len(steps))],
        "target": [(place[s + horizon], n) for n, s in enumerate(steps) if s + horizon in place],
    }


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


class _Core(NamedTuple):
    """Solved cores of one kind: sigma (P, q), coefficients (P, q) of u1 in L and of v1 in R, and where they hold."""

    sigma: Tensor
    toward_u: Tensor
    toward_v: Tensor
    trusted: Tensor


def _leading(left: Tensor, right: Tensor) -> _Core:
    """Singular values (P, q) of L R^T from the Grams of L and R, coefficients (P, q) of u1 in L and of v1 in R.

    With L^T L = C C^T the squares are the eigenvalues of K = C^T (R^T R) C; for K's eigenvector y, v is along
    R C y and u along L (R^T R) C y. The last result tells where that is exact enough.
    """
    root, failed = torch.linalg.cholesky_ex(left)
    if bool(failed.any()):  # a rank-deficient L, the rule where B_j = 0
        values, vectors = torch.linalg.eigh(left[failed > 0])
        root[failed > 0] = vectors * values.clamp_min(0).sqrt()[:, None, :]
    squares, leading = _first_eigenvector(root.mT @ right @ root)
    sigma = squares.clamp_min(0).sqrt().flip(1)
    toward_v = (root @ leading).squeeze(2)
    toward_u = (right @ toward_v[:, :, None]).squeeze(2)
    scale = (left.diagonal(dim1=1, dim2=2).sum(1) * right.diagonal(dim1=1, dim2=2).sum(1)).sqrt()
    trusted = sigma[:, 0] > GRAM_FLOOR * scale
    return _Core(sigma, toward_u, toward_v, trusted)


def _first_eigenvector(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """All eigenvalues (P, q), ascending, and the last one's eigenvector (P, q, 1) of symmetric (P, q, q).

    The vector is found by inverse iteration just above the last eigenvalue, since all values and one vector take two
    thirds of the time of all vectors. Two rounds shrink what lies off it by (SHIFT / relative gap) squared. The vector
    is NaN where the matrix is zero.
    """
    values = torch.linalg.eigvalsh(matrices)
    shifted = -matrices
    shifted.diagonal(dim1=1, dim2=2).add_(values[:, -1:] * (1 + SHIFT))
    factor, pivots, _ = torch.linalg.lu_factor_ex(shifted)
    vector = torch.ones(*matrices.shape[:2], 1, dtype=matrices.dtype, device=matrices.device)
    vector[:, ::2] *= 0.5  # no direction of symmetry, to which the sought vector might be orthogonal
    for _ in range(2):
        vector = _unit(torch.linalg.lu_solve(factor, pivots, vector))
    return values, vector
