"""Statistics of a path from its Gram matrices alone: persistence, linearity, predictability, drift and noise.

Every function takes `g`, the (T, T) float64 matrix <W_s - W_0, W_t - W_0>, of one module or summed over any
set of modules, and the T step numbers; where W_0 matters, also the step that it is of (`start`). Nothing here
reads a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def with_start(g: Tensor, steps: Sequence[int], start: int = 0) -> tuple[Tensor, list[int]]:
    """`g` with W_0, of step `start`, as its first row and column (zeros), unless it is there already."""
    if steps[0] == start:
        return g, list(steps)
    padded = torch.zeros(len(g) + 1, len(g) + 1, dtype=g.dtype, device=g.device)
    padded[1:, 1:] = g
    return padded, [start, *steps]


def window_cosine(g: Tensor, steps: Sequence[int], a: int, b: int, c: int, d: int) -> float:
    """cos(W_b - W_a, W_d - W_c); NaN where one of the two does not move. `steps` must hold all four."""
    place = {step: n for n, step in enumerate(steps)}
    i, j, k, m = place[a], place[b], place[c], place[d]
    dot = g[j, m] - g[j, k] - g[i, m] + g[i, k]
    first, second = g[j, j] - 2 * g[i, j] + g[i, i], g[m, m] - 2 * g[k, m] + g[k, k]
    return float(dot / (first * second).sqrt()) if first > 0 and second > 0 else math.nan


def persistence_table(
    g: Tensor, steps: Sequence[int], windows: Sequence[int], start: int = 0
) -> dict[int, dict[int, float]]:
    """window -> {t: cos(W_t - W_{t-w}, W_{t-w} - W_{t-2w})} for every t where all three checkpoints exist."""
    g, known = with_start(g, steps, start)
    have = set(known)
    table: dict[int, dict[int, float]] = {}
    for w in windows:
        ends = [t for t in known if {t - w, t - 2 * w} <= have]
        table[w] = {t: window_cosine(g, known, t - w, t, t - 2 * w, t - w) for t in ends}
    return table


def predictability(g: Tensor, steps: Sequence[int], start: int = 0) -> dict[int, float]:
    """t -> cos(W_t - W_0, W_2t - W_t), 2t counted from `start`: does the first half of a run say where the second
    goes?"""
    g, known = with_start(g, steps, start)
    ends = {t: 2 * t - start for t in known if t > start}
    return {t: window_cosine(g, known, start, t, t, end) for t, end in ends.items() if end in known}


class Line(NamedTuple):
    """The coefficient along the path's first direction, and how straight it is in time.

    Attributes:
        coefficient: (T) <W_t - W_0, v>, v the unit first right singular direction of the path; grows with t.
        r2: R^2 of its least-squares line in t.
        share: share of sum |W_t - W_0|^2 that lies along v.
    """

    coefficient: list[float]
    r2: float
    share: float


def line(g: Tensor, steps: Sequence[int]) -> Line:
    """Project the path on its first direction (top eigenvector of `g`, as RELEX does) and fit a line."""
    values, vectors = torch.linalg.eigh(g)
    total = float(values.clamp_min(0).sum())
    coefficient = vectors[:, -1] * values[-1].clamp_min(0).sqrt()
    if float(coefficient.sum()) < 0:
        coefficient = -coefficient
    t = torch.tensor(steps, dtype=torch.float64, device="cpu")
    time, deviation = t - t.mean(), coefficient - coefficient.mean()
    spread = float((time @ time) * (deviation @ deviation))
    r2 = float((time @ deviation).square()) / spread if spread > 0 else math.nan
    return Line([float(c) for c in coefficient], r2, float(values[-1]) / total if total > 0 else math.nan)


class DriftNoise(NamedTuple):
    """|W_{t+h} - W_t|^2 = h^2 mu2 + h s2: straight drift and a random walk.

    Attributes:
        mu2: squared drift per step; s2: squared diffusion per step; both >= 0.
        crossing: the window h = s2 / mu2 beyond which drift dominates (inf without drift, 0 without noise).
        windows, squares: the means the fit was made to.
    """

    mu2: float
    s2: float
    crossing: float
    windows: list[int]
    squares: list[float]

    @property
    def in_words(self) -> str:
        """Which of the two is larger, and where, within the windows that were looked at."""
        shortest, longest = self.windows[0], self.windows[-1]
        if self.crossing <= shortest:
            return f"drift exceeds noise at every window looked at ({shortest} to {longest} steps)"
        if self.crossing >= longest:
            return f"noise exceeds drift at every window looked at ({shortest} to {longest} steps)"
        return f"drift overtakes noise at windows of about {self.crossing:.0f} steps"


def drift_and_noise(g: Tensor, steps: Sequence[int], start: int = 0) -> DriftNoise | None:
    """Fit both terms by least squares on relative errors, neither below zero; None for fewer than two windows."""
    g, known = with_start(g, steps, start)
    square = g.diagonal()[:, None] + g.diagonal()[None, :] - 2 * g
    found: dict[int, list[float]] = {}
    for i, early in enumerate(known):
        for j in range(i + 1, len(known)):
            found.setdefault(known[j] - early, []).append(float(square[i, j]))
    # Windows longer than half the run have one or two samples that share almost all steps.
    longest = (known[-1] - known[0]) / 2
    means = {h: sum(x) / len(x) for h, x in sorted(found.items()) if h <= longest and sum(x) > 0}
    if len(means) < 2:
        return None
    h = torch.tensor(list(means), dtype=torch.float64, device="cpu")
    d = torch.tensor(list(means.values()), dtype=torch.float64, device="cpu")
    mu2, s2 = _two_terms(h.square() / d, h / d)
    crossing = s2 / mu2 if mu2 > 0 else math.inf
    return DriftNoise(mu2, s2, crossing, list(means), list(means.values()))


def _two_terms(x: Tensor, y: Tensor) -> tuple[float, float]:
    """The p, q >= 0 that minimise |p x + q y - 1|^2."""
    design = torch.stack([x, y], 1)
    ones = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
    p, q = (float(value) for value in torch.linalg.lstsq(design, ones).solution)
    if p < 0:
        return 0.0, float(y.sum() / (y @ y))
    if q < 0:
        return float(x.sum() / (x @ x)), 0.0
    return p, q
