"""From a leap of any rank to factors of the adapter's own rank, to which Adam's moments still belong.

Many pairs (A, B) have the same product. A choice among them is called a gauge here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nextrl.trajectory.lowrank import LowRank, Triples

CONDITION_LIMIT = 1e4  # of A_old: beyond this it has no row space to keep
SIGMA_FLOOR = 1e-12  # sigma below this times sigma_1 is rounding: the target does not have that direction


class RankFit(NamedTuple):
    """One module of a leap at the adapter's rank.

    Attributes:
        a, b: A (r, n) and B (m, r), in the stored dtype of A or wider (float32 for half-precision adapters,
            so that the leap is not rounded away).
        lost: share of the target's squared norm that rank r cannot hold, in [0, 1].
        energy: the target's squared norm; 0 for a leap inside the factors, which can lose nothing.
    """

    a: Tensor
    b: Tensor
    lost: float
    energy: float


def fit_to_rank(target: LowRank, a_old: Tensor, b_old: Tensor, scaling: float) -> RankFit:
    """Factors (A, B) of rank r whose s B A is the best rank-r approximation of `target`, near the old ones.

    The product is Eckart-Young's U S V^T in every gauge. The gauge is chosen so that each row of A and each column of B
    stays the one that Adam's moments were gathered for: A = G V^T and B = U S G^-1 / s with G = A_old V, the old rows
    projected on the new row space. A direction that the old rows hardly have would make a row of A tiny and a column of
    B huge, and one step of Adam, which moves every entry by about the learning rate, would then move the product by a
    hundred times what it did before: such a run is lost within five steps. So no singular value of G is below the
    smallest of A_old. Where A_old itself is ill-conditioned, balanced factors sqrt(S) are rotated onto the old ones
    instead (orthogonal Procrustes).

    Args:
        target: (m, n) the new W - W_base (scaling included).
        a_old: (r, n) the adapter's A at T.
        b_old: (m, r) the adapter's B at T.
        scaling: s.
    """
    rank = a_old.shape[0]
    dtype = torch.promote_types(a_old.dtype, torch.float32)
    a_old, b_old = a_old.double(), b_old.double()
    best, lost, energy = _best(target, rank)
    u, sigma, v = _nonzero(best)
    if sigma.numel() == 0:
        return RankFit(a_old.to(dtype), torch.zeros_like(b_old).to(dtype), lost, energy)
    missing = min(rank, a_old.shape[1]) - sigma.numel()
    if missing > 0:  # complete the row space with what the old A spans beside it; B is zero there
        u = torch.cat([u, u.new_zeros(u.shape[0], missing)], 1)
        sigma = torch.cat([sigma, sigma.new_zeros(missing)])
        v = torch.cat([v, _rest_of_row_space(a_old, v, missing)], 1)
    mixing, old = a_old @ v, torch.linalg.svdvals(a_old)
    if mixing.shape[0] == mixing.shape[1] and float(old[-1]) * CONDITION_LIMIT > float(old[0]):
        p, g, qh = torch.linalg.svd(mixing)
        g = g.clamp_min(old[-1])
        a, b = (p * g) @ qh @ v.mT, (u * sigma) @ (qh.mT / g) @ p.mT / scaling
    else:
        root = sigma.sqrt()
        p, _, q = torch.linalg.svd((a_old @ v) * root + b_old.mT @ (u * root) / scaling, full_matrices=False)
        rotation = p @ q
        a, b = rotation @ (v * root).mT, (u * root) @ rotation.mT / scaling
    return RankFit(a.to(dtype), b.to(dtype), lost, energy)


def fit_to_frozen(delta: LowRank, a_old: Tensor, b_old: Tensor, scaling: float, frozen: str) -> RankFit:
    """Factors of which those that are frozen stay, the product as near to the leap's as the other one can bring it.

    LoRA-FA (2308.03303) trains B alone: its A is a parameter that no step moves, and no leap may. With A kept the best
    B is B_old + D A^+ / s. Directions that A's rows hardly have are left out, as in `fit_to_rank`: they would take a
    huge B.

    Args:
        delta: (m, n) the leap, D: the new W less the present one (scaling included).
        a_old: (r, n) the adapter's A at T.
        b_old: (m, r) the adapter's B at T.
        scaling: s.
        frozen: "A", "B" or "AB".
    """
    if frozen == "B":
        a, b, lost, energy = fit_to_frozen(LowRank(delta.right, delta.left), b_old.mT, a_old.mT, scaling, "A")
        return RankFit(b.mT, a.mT, lost, energy)
    dtype = torch.promote_types(a_old.dtype, torch.float32)
    rows, step = a_old.double(), torch.zeros_like(b_old).double()
    if frozen == "A":
        inverse = torch.linalg.pinv(rows, rtol=1.0 / CONDITION_LIMIT)
        step = delta.left.double() @ (delta.right.double().mT @ inverse)
    missed = float((delta - LowRank(step, rows.mT)).square)
    energy = float((LowRank(b_old.double() * scaling, rows.mT) + delta).square)
    b = b_old.double() + step / scaling
    return RankFit(a_old.to(dtype), b.to(dtype), min(1.0, missed / energy) if energy > 0.0 else 0.0, energy)


def _best(target: LowRank, rank: int) -> tuple[LowRank, float, float]:
    """The best matrix of at most that rank, the share of the squared norm that it leaves out, and that norm."""
    best, discarded = target.recompress(min(rank, target.rank))
    # The columns of the balanced left factor have length sqrt(sigma).
    kept, lost = float(best.left.square().sum(0).square().sum()), float(discarded)
    return best, lost, kept / (1.0 - lost) if kept > 0 else 0.0


def _nonzero(best: LowRank) -> Triples:
    """The triples of a recompressed matrix whose sigma is not rounding."""
    roots = best.left.norm(dim=0)
    keep = (roots.square() > SIGMA_FLOOR * roots.max().square()) & (roots > 0)
    left, right = best.left[:, keep], best.right[:, keep]
    return Triples(left / roots[keep], roots[keep].square(), right / right.norm(dim=0))


def _rest_of_row_space(a_old: Tensor, v: Tensor, count: int) -> Tensor:
    """(n, count) orthonormal directions that A_old's rows span most, orthogonal to v."""
    outside = a_old - (a_old @ v) @ v.mT
    rows: Tensor = torch.linalg.svd(outside, full_matrices=False)[2][:count]
    return rows.mT
