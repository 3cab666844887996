"""Matrices kept as two thin factors, `left @ right.T`, and exact algebra on them.

Every update that a LoRA run makes is such a matrix, so nothing here ever forms an (m, n) product (`dense` is
there for tests and tiny models). The work is O((m + n) q^2) against O(m n min(m, n)) for a dense SVD.
Leading dimensions are batch dimensions: modules of equal shape are handled in one call.
This file knows nothing of checkpoints, steps or adapters.

Exactness. The q x q core is always float64. It comes from the factors' Gram matrices where that is exact
enough and from QR where it is not: squaring costs a relative error of about eps * (|L||R| / sigma_k)^2 in
sigma_k, so the Gram route is kept only while sigma_k > GRAM_FLOOR * |L||R| (an error below 1e-8).

Equal singular values. When sigma_1 = sigma_2 (or nearly) only the plane they span is defined, not the two
triples: `top` then returns one orthonormal choice, the same one for the same input; sigma, `norm`, `inner`
and a `recompress` that keeps the whole plane are not affected. Where sigma = 0 the direction is not defined
at all and u and v are returned as zero vectors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

GRAM_FLOOR = 1e-4
TIE = 1e-6  # an agreement of two unit pairs below this may be float32's rounding
ZERO = 1e-14  # sigma below ZERO * |L||R| is rounding: about what float64 QR leaves behind


class Triples(NamedTuple):
    """The k leading singular triples, largest first, float64.

    Attributes:
        u: (..., m, k) left vectors, unit length (zero where sigma is zero).
        sigma: (..., k), descending, >= 0.
        v: (..., n, k) right vectors. Signs of u and v are only defined together, see `align_signs`.
    """

    u: Tensor
    sigma: Tensor
    v: Tensor


@dataclass(frozen=True, repr=False, eq=False)
class LowRank:
    """The matrix `left @ right.mT`, with any leading batch dimensions.

    Attributes:
        left: (..., m, q) floating tensor.
        right: (..., n, q) floating tensor with the same leading dimensions.

    Raises:
        ValueError: if the two factors do not fit together; the message quotes both shapes.
    """

    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        lead, width = self.left.shape[:-2], self.left.shape[-1:]
        if self.left.dim() < 2 or lead != self.right.shape[:-2] or width != self.right.shape[-1:]:
            raise ValueError(
                "LowRank needs left (..., m, q) and right (..., n, q), "
                f"got {tuple(self.left.shape)} and {tuple(self.right.shape)}"
            )

    def __repr__(self) -> str:
        return f"LowRank({' x '.join(map(str, self.shape))}, rank {self.rank}, {self.left.dtype})"

    @classmethod
    def zeros(cls, rows: int, columns: int, batch: tuple[int, ...] = ()) -> LowRank:
        """The zero matrix (*batch, rows, columns), float64, stored with one column."""
        left, right = (
            torch.zeros(*batch, extent, 1, dtype=torch.float64, device="cpu") for extent in (rows, columns)
        )
        return cls(left, right)

    @property
    def shape(self) -> torch.Size:
        """(..., m, n), the shape of the dense matrix."""
        return torch.Size((*self.left.shape[:-1], self.right.shape[-2]))

    @property
    def rank(self) -> int:
        """min(m, n, q): an upper bound of the true rank."""
        return min(self.left.shape[-2], self.right.shape[-2], self.left.shape[-1])

    def dense(self) -> Tensor:
        """(..., m, n) in the factors' dtype. For tests and small matrices: this is what the rest avoids."""
        product: Tensor = self.left @ self.right.mT
        return product

    def top(self, k: int = 1) -> Triples:
        """The min(k, rank) leading singular triples, float64.

        Sign: the entry of u that is largest in magnitude is positive. Along a run that entry changes, and the
        sign jumps: `align_signs` settles it for pairs that are to be compared or learnt from.

        Raises:
            ValueError: if k < 1.
        """
        if k < 1:
            raise ValueError(f"top needs k >= 1, got {k}")
        k = min(k, self.rank)
        left, right = self.left.double(), self.right.double()
        triples, trusted = _top_gram(left, right, k)
        if not bool(trusted.all()):
            exact = _top_qr(left, right, k)
            pick = trusted[..., None]
            triples = Triples(
                torch.where(pick[..., None], triples.u, exact.u),
                torch.where(pick, triples.sigma, exact.sigma),
                torch.where(pick[..., None], triples.v, exact.v),
            )
        return _largest_entry_positive(triples)

    def singular_values(self) -> Tensor:
        """(..., rank) float64, descending; by QR, so that the small ones are right too."""
        values: Tensor = torch.linalg.svdvals(_qr_core(self.left.double(), self.right.double())[1])
        return values[..., : self.rank]

    def inner(self, other: LowRank) -> Tensor:
        """Frobenius inner product `sum(self * other)`, (...,) float64, as sum((L1^T L2) * (R1^T R2))."""
        if self.shape[-2:] != other.shape[-2:]:
            raise ValueError(f"inner needs equal shapes, got {tuple(self.shape)} and {tuple(other.shape)}")
        left = self.left.double().mT @ other.left.double()
        right = self.right.double().mT @ other.right.double()
        return (left * right).sum((-2, -1))

    @cached_property
    def square(self) -> Tensor:
        """Squared Frobenius norm, (...,) float64: `inner` with itself, computed once."""
        return self.inner(self)

    def norm(self) -> Tensor:
        """Frobenius norm, (...,) float64; NaN where an entry is NaN or Inf.

        Sums that cancel are measured by QR, so that W - W is 0, not 1e-8.
        """
        left, right = self.left.double(), self.right.double()
        square = self.square.clamp_min(0)
        scale = (left.square().sum((-2, -1)) * right.square().sum((-2, -1))).sqrt()
        if bool((square > (GRAM_FLOOR * scale) ** 2).all()):
            return square.sqrt()
        exact: Tensor = torch.linalg.matrix_norm(_qr_core(left, right)[1])
        # Asked this way round, since NaN is not rounding: it must not come out as a matrix that is zero.
        return torch.where(exact <= ZERO * scale, torch.zeros_like(exact), exact)

    def __add__(self, other: LowRank) -> LowRank:
        if self.shape[-2:] != other.shape[-2:]:
            raise ValueError(f"cannot add {tuple(self.shape)} and {tuple(other.shape)}")
        return LowRank(
            torch.cat([self.left, other.left.to(self.left.dtype)], -1),
            torch.cat([self.right, other.right.to(self.right.dtype)], -1),
        )

    def __sub__(self, other: LowRank) -> LowRank:
        return self + (-other)

    def __neg__(self) -> LowRank:
        return LowRank(-self.left, self.right)

    def __mul__(self, scalar: float | Tensor) -> LowRank:
        """Times a number, or times one number per matrix: a tensor of the batch shape (...,)."""
        if isinstance(scalar, Tensor) and scalar.dim() > 0:
            scalar = scalar.to(self.left.dtype)[..., None, None]
        return LowRank(self.left * scalar, self.right)

    __rmul__ = __mul__

    def recompress(self, rank: int) -> tuple[LowRank, Tensor]:
        """The best matrix of rank <= `rank` in the Frobenius norm (Eckart-Young), exactly.

        Returns:
            The LowRank with q = min(rank, self.rank), its factors balanced (u sqrt(sigma), v sqrt(sigma)),
            and the share of the squared norm that was left out, (...,) float64 in [0, 1].
        """
        if rank < 1:
            raise ValueError(f"recompress needs rank >= 1, got {rank}")
        full = _top_qr(self.left.double(), self.right.double(), self.rank)
        energy = full.sigma.square()
        total = energy.sum(-1)
        discarded = energy[..., rank:].sum(-1) / total.clamp_min(torch.finfo(torch.float64).tiny)
        kept = _largest_entry_positive(
            Triples(full.u[..., :rank], full.sigma[..., :rank], full.v[..., :rank])
        )
        root = kept.sigma.sqrt()[..., None, :]
        return LowRank(kept.u * root, kept.v * root), discarded


def align_signs(u: Tensor, v: Tensor, reference: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Signs for the leading pairs of one matrix along a run, so that none of them jumps.

    `u v^T` is the same when both change sign, so only the vectors themselves can tell: two pairs agree where
    `u_1 . u_2 + v_1 . v_2 >= 0`. The last pair is turned to agree with `reference`, by convention the pair of the
    global delta at T, and each one before it with the one after it. So a pair that turns far between the first
    checkpoint and T turns step by step; compared with T alone it would flip on the way.

    Args:
        u: (P, m) unit vectors in the order of the run; zero where nothing moved, and then passed over.
        v: (P, n) likewise.
        reference: (m,) and (n,); without one the last pair's largest entry of u becomes positive.

    Returns:
        (P,) of -1 and 1, to multiply u and v with.
    """
    # From one choice of signs that is always the same: what came in must not show where two pairs are orthogonal.
    own = _sign_of_largest(u.mT)[0]
    moved = (u.square().sum(1) > 0).nonzero()[:, 0]
    if not len(moved):
        return own
    u, v = u[moved] * own[moved, None], v[moved] * own[moved, None]
    agreement = torch.ones_like(own[moved])
    agreement[:-1] = (u[:-1] * u[1:]).sum(1) + (v[:-1] * v[1:]).sum(1)
    if reference is not None:
        agreement[-1] = u[-1] @ reference[0] + v[-1] @ reference[1]
    # An agreement that is rounding only must not decide: it would differ from machine to machine.
    turns = torch.where(agreement < -TIE, -1.0, 1.0).to(own.dtype)
    signs = own.clone()
    signs[moved] *= turns.flip(0).cumprod(0).flip(0)
    return signs


def _top_gram(left: Tensor, right: Tensor, k: int) -> tuple[Triples, Tensor]:
    """Triples through both Gram matrices, and a (...,) mask of the matrices where that is exact enough."""
    values_l, vectors_l = torch.linalg.eigh(left.mT @ left)
    values_r, vectors_r = torch.linalg.eigh(right.mT @ right)
    root_l, root_r = values_l.clamp_min(0).sqrt(), values_r.clamp_min(0).sqrt()
    core = root_l[..., :, None] * (vectors_l.mT @ vectors_r) * root_r[..., None, :]
    p, sigma, q = torch.linalg.svd(core, full_matrices=False)
    p, sigma, q = p[..., :k], sigma[..., :k], q.mT[..., :k]
    # u = L (R^T v) / sigma with R^T v = V_r sqrt(w_r) q: no division by small eigenvalues of a Gram matrix.
    u = left @ (vectors_r @ (root_r[..., :, None] * q))
    v = right @ (vectors_l @ (root_l[..., :, None] * p))
    trusted = sigma[..., -1] > GRAM_FLOOR * root_l[..., -1] * root_r[..., -1]
    return Triples(_unit(u), sigma, _unit(v)), trusted


def _qr_core(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(Q_l, core, Q_r) with L R^T = Q_l core Q_r^T."""
    q_l, r_l = torch.linalg.qr(left)
    q_r, r_r = torch.linalg.qr(right)
    return q_l, r_l @ r_r.mT, q_r


def _top_qr(left: Tensor, right: Tensor, k: int) -> Triples:
    """Triples through QR of both factors: backward stable, whatever the spread of the singular values."""
    q_l, core, q_r = _qr_core(left, right)
    p, sigma, q = torch.linalg.svd(core, full_matrices=False)
    scale = torch.linalg.matrix_norm(left) * torch.linalg.matrix_norm(right)
    real = (sigma > ZERO * scale[..., None])[..., None, :k]
    u, v = q_l @ p[..., :k], q_r @ q.mT[..., :k]
    return Triples(u * real, sigma[..., :k] * real[..., 0, :], v * real)


def _unit(columns: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(columns, dim=-2, keepdim=True)
    return columns / length.clamp_min(torch.finfo(columns.dtype).tiny)


def _largest_entry_positive(t: Triples) -> Triples:
    sign = _sign_of_largest(t.u)
    return Triples(t.u * sign, t.sigma, t.v * sign)


def _sign_of_largest(columns: Tensor) -> Tensor:
    """(..., 1, k) of -1 and 1: the sign of the entry of each column (..., m, k) that is largest in magnitude."""
    place = columns.abs().argmax(-2, keepdim=True)
    return torch.where(columns.gather(-2, place) < 0, -1.0, 1.0).to(columns.dtype)


def cosine(first: Iterable[LowRank], second: Iterable[LowRank]) -> float:
    """Cosine between two displacements over all modules; 0.0 where either did not move, NaN where either is NaN."""
    inner = early = late = 0.0
    for before, after in zip(first, second, strict=True):
        inner += float(before.inner(after))
        early += float(before.square)
        late += float(after.square)
    product = early * late
    return 0.0 if product <= 0.0 else inner / product**0.5
