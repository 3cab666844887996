"""What an excess persistence means: how it is measured at the end of a run, and the name it gives the run.

`nextrl advise`, the verdicts of `nextrl demo` and `nextrl run`, and the report page all name a run by `regime_of`.
The first three measure a run that did not leap by `recent_windows`, so they cannot call one run by two names.

The excess is (c - c0) / (1 - c0): the cosine c of two successive windows of the run, above the cosine c0 that Adam's
momentum alone would give (`nextrl.trajectory.persistence`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nextrl.trajectory.combinations import even_grid, pooled_gram
from nextrl.trajectory.persistence import adam_persistence, excess
from nextrl.trajectory.trajectory import Trajectory

Regime = Literal["signal", "mixed", "noise"]

SIGNAL = 0.75
MIXED = 0.25
"""A mean excess above `SIGNAL` is a signal, one above `MIXED` is mixed, anything lower is noise.

They belong to the rule of docs/advice.md, which was right in 93 % of 96 held-out cases. The search for that rule's
thresholds did not touch these two: they only choose between advising a leap and a higher rate, and name the regime.
"""

OSCILLATES = -0.35
"""Below this mean excess successive windows undo each other (calibrated in studies/advice, see docs/advice.md)."""

SCATTER = 0.2
"""Standard deviation of a single excess of one window length, as seen on runs of 430k parameters."""

DEFAULT_WINDOW = 10
"""Steps per window where nothing else is asked for: what `auto` looks at, and the shortest window a page draws."""

WINDOW_LENGTHS = (1, 2, 5)
"""Lengths of the windows at the end of a run, in checkpoint spacings."""

MEANING: Mapping[Regime, str] = {
    "signal": "the path is far straighter than Adam's memory explains",
    "mixed": "part of the direction lasts",
    "noise": "the path keeps no more direction than Adam's own memory",
}
"""What each regime says about a path, as a clause."""


def regime_of(mean_excess: float) -> Regime:
    """The name of a run with this excess persistence, the mean over its windows."""
    return "signal" if mean_excess > SIGNAL else "mixed" if mean_excess > MIXED else "noise"


@dataclass(frozen=True)
class PersistenceWindow:
    """Persistence over one window length at the end of a run.

    Attributes:
        steps: length of the window.
        c: cosine of the last two windows.
        c0: the cosine that Adam's momentum alone gives.
        e: the excess (c - c0) / (1 - c0).
    """

    steps: int
    c: float
    c0: float
    e: float


def mean_excess(windows: Sequence[PersistenceWindow]) -> float:
    """Mean excess over window lengths; 0.0 without any, since a path that does not move keeps no direction."""
    return sum(w.e for w in windows) / len(windows) if windows else 0.0


def even_gram(traj: Trajectory) -> Tensor:
    """(G, G) float64 inner products of the run's points, all modules together, on an even grid of steps."""
    grid = even_grid(traj)
    return grid @ pooled_gram(traj) @ grid.mT


def recent_windows(gram: Tensor, spacing: int, beta1: float) -> tuple[PersistenceWindow, ...]:
    """Persistence at the end of a run, for every window length that fits twice and moved.

    Args:
        gram: (G, G) inner products on an even grid, from `even_gram`.
        spacing: steps between two points of the grid.
        beta1: Adam's first momentum coefficient.
    """
    size, windows = len(gram), []
    for length in WINDOW_LENGTHS:
        if 2 * length >= size:
            continue
        late = displacement(size, -1 - length, -1)
        early = displacement(size, -1 - 2 * length, -1 - length)
        squares = float(late @ gram @ late) * float(early @ gram @ early)
        if squares <= 0:
            continue
        c, c0 = float(late @ gram @ early) / math.sqrt(squares), adam_persistence(length * spacing, beta1)
        windows.append(PersistenceWindow(length * spacing, c, c0, excess(c, c0)))
    return tuple(windows)


def displacement(size: int, start: int, stop: int) -> Tensor:
    """(size,) float64 coefficients of `W_stop - W_start` on a grid of `size` points."""
    c = torch.zeros(size, dtype=torch.float64)
    c[stop] += 1.0
    c[start] -= 1.0
    return c
