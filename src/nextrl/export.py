"""From a leap to files: rank-r adapters in the old gauge, wider adapters, merged models."""

from __future__ import annotations

import torch
from torch import Tensor

from nextrl.lowrank import LowRank, Triples

CONDITION_LIMIT = 1e4  # beyond this, B = U S (A_old V)^-1 would be large numbers that cancel


def fit_to_rank(
    target: LowRank, a_old: Tensor, b_old: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Factors (A, B) of rank r whose s B A is the best rank-r approximation of `target`, near the old ones.

    The product is Eckart-Young's U S V^T whatever the gauge; the gauge is chosen so that each row of A (column
    of B) keeps the meaning that Adam's moments have for it: A = A_old V V^T (the old rows, projected on the new
    row space) and B = U S (A_old V)^-1 / s. Where A_old V is ill-conditioned, balanced factors sqrt(S) are
    rotated onto the old ones instead (orthogonal Procrustes).

    Args:
        target: (m, n) the new W - W_base (scaling included).
        a_old: (r, n) the adapter's A at T.
        b_old: (m, r) its B.
        scaling: s.

    Returns:
        A (r, n), B (m, r) in a_old's dtype (float32 for half-precision adapters, so that the leap is not rounded
        away) and the share of the target's squared norm that rank r cannot hold, a float64 scalar.
    """
    rank = a_old.shape[0]
    dtype = torch.promote_types(a_old.dtype, torch.float32)
    a_old, b_old = a_old.double(), b_old.double()
    best, discarded = target.recompress(min(rank, target.rank))
    triples = _nonzero(best)
    if triples.sigma.numel() == 0:
        return a_old.to(dtype), torch.zeros_like(b_old).to(dtype), discarded
    u, sigma, v = triples
    missing = rank - sigma.numel()
    if missing:  # complete the row space with what the old A spans beside it; B is zero there
        u = torch.cat([u, u.new_zeros(u.shape[0], missing)], 1)
        sigma = torch.cat([sigma, sigma.new_zeros(missing)])
        v = torch.cat([v, _rest_of_row_space(a_old, v, missing)], 1)
    mixing = a_old @ v
    if bool(torch.linalg.cond(mixing) < CONDITION_LIMIT):
        a, b = mixing @ v.mT, torch.linalg.solve(mixing, u * sigma, left=False) / scaling
    else:
        root = sigma.sqrt()
        p, _, q = torch.linalg.svd((a_old @ v) * root + b_old.mT @ (u * root) / scaling)
        rotation = p @ q
        a, b = rotation @ (v * root).mT, (u * root) @ rotation.mT / scaling
    return a.to(dtype), b.to(dtype), discarded


def _nonzero(best: LowRank) -> Triples:
    """The triples of a recompressed matrix whose sigma is not rounding."""
    roots = best.left.norm(dim=0)
    keep = roots > 1e-7 * roots.max().clamp_min(torch.finfo(torch.float64).tiny)  # sigma > 1e-14 sigma_1
    left, right = best.left[:, keep], best.right[:, keep]
    return Triples(left / roots[keep], roots[keep].square(), right / right.norm(dim=0))


def _rest_of_row_space(a_old: Tensor, v: Tensor, count: int) -> Tensor:
    """(n, count) orthonormal directions that A_old's rows span most, orthogonal to v."""
    outside = a_old - (a_old @ v) @ v.mT
    return torch.linalg.svd(outside, full_matrices=False)[2][:count].mT
