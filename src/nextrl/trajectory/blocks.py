"""Stacks of thin factors, one per checkpoint: r x r products in float64 and weighted sums in float32.

A stack is (T, r, n): T factors with n the long side, in the dtype of the file and with either memory layout (A as
stored, or B transposed without a copy). It is widened in pieces that stay in a core's cache. This file knows nothing of
steps, files or deltas.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

PIECE = 1 << 17  # numbers of a stack widened at a time: 1 MB in float64, half a core's second-level cache


def pair_products(stack: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """(P, r, r) float64: stack[i] @ stack[j].T for each pair (i, j); a NaN or Inf in stack[i] shows in (i, i).

    Args:
        stack: (T, r, n) floating.
        pairs: distinct pairs of indices; pairs of equal j - i with neighbouring i share one batched product.
    """
    rank = stack.shape[1]
    order = sorted(range(len(pairs)), key=lambda p: (pairs[p][1] - pairs[p][0], pairs[p][0]))
    runs = _runs([pairs[p] for p in order])
    total = torch.zeros(len(pairs), rank, rank, dtype=torch.float64, device=stack.device)
    pieces = torch.split(total, [length for _, _, length in runs])
    for _, wide in _widened(stack, torch.float64):
        tall = wide.mT
        for piece, (i, j, length) in zip(pieces, runs, strict=True):
            piece.baddbmm_(wide[i : i + length], tall[j : j + length])
    result = torch.empty_like(total)
    result[order] = total
    return result


def weighted_sums(stack: Tensor, weights: Tensor, rows: Tensor, count: int) -> Tensor:
    """(count, n) float32: weights[t, k] @ stack[t], added up over all (t, k) with the same rows[t, k].

    Args:
        stack: (T, r, n) floating.
        weights: (T, K, r), widened or rounded to float32.
        rows: (T, K) integers in [0, count).
    """
    weights = weights.float()
    total = torch.zeros(count, stack.shape[2], dtype=torch.float32, device=stack.device)
    for start, wide in _widened(stack, torch.float32):
        terms = torch.bmm(weights, wide).flatten(0, 1)
        total[:, start : start + wide.shape[2]].index_add_(0, rows.flatten(), terms)
    return total


def _widened(stack: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    """(start, stack[:, :, start:stop] in `dtype`) along the long side; the same storage is used again."""
    count, rank, length = stack.shape
    step = max(PIECE // (count * rank), 64)
    flat = stack.stride(2) != 1
    shape = (count, step, rank) if flat else (count, rank, step)
    space = torch.empty(shape, dtype=dtype, device=stack.device)
    for start in range(0, length, step):
        width = min(step, length - start)
        wide = space[:, :width].mT if flat else space[:, :, :width]
        yield start, wide.copy_(stack[:, :, start : start + width])


def _runs(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(i, j, length) of stretches (i, j), (i + 1, j + 1), ... in the order given."""
    runs: list[tuple[int, int, int]] = []
    for i, j in pairs:
        if runs and (i, j) == (runs[-1][0] + runs[-1][2], runs[-1][1] + runs[-1][2]):
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
        else:
            runs.append((i, j, 1))
    return runs
