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

from nextrl.errors import TooShort
from nextrl.trajectory.combinations import check_grid, known_steps, moves
from nextrl.trajectory.persistence import adam_persistence, excess, window_products
from nextrl.trajectory.precision import WARN_ABOVE, window_noise
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
    "noise": "the path keeps hardly more direction than Adam's own memory gives it",
}
"""What each regime says about a path, as a clause."""


def regime_of(mean_excess: float) -> Regime:
    """The name of a run with this excess persistence, the mean over its windows."""
    return "signal" if mean_excess > SIGNAL else "mixed" if mean_excess > MIXED else "noise"


@dataclass(frozen=True)
class PersistenceWindow:
    """Persistence over one window length at the end of a run.

    Attributes:
        steps: length of the last window.
        c: cosine of the last two windows.
        c0: the cosine that Adam's momentum alone gives.
        e: the excess (c - c0) / (1 - c0).
        before: length of the window before it where checkpoints are unevenly spaced; None where it is as long.
    """

    steps: int
    c: float
    c0: float
    e: float
    before: int | None = None


def mean_excess(windows: Sequence[PersistenceWindow]) -> float:
    """Mean excess over window lengths; 0.0 without any, since a path that does not move keeps no direction."""
    return sum(w.e for w in windows) / len(windows) if windows else 0.0


def recent_windows(traj: Trajectory, beta1: float, updates: int = 1) -> tuple[PersistenceWindow, ...]:
    """Persistence at the end of a run, for every window length that fits twice and moved.

    Windows lie between checkpoints that are there: a point interpolated between two of them would lie on a straight
    path. Where checkpoints are unevenly spaced the two windows differ in length, and so does the c0 that they are
    compared with; one that would end off by more than half its length is left out.

    Args:
        traj: the run.
        beta1: Adam's first momentum coefficient.
        updates: optimizer updates in each of the run's steps (`trainer_log.updates_per_step`).

    Raises:
        InputError: as `check_grid`, or W_0 is not known to be one of the checkpoints and takes part.
    """
    check_grid(traj)
    products, windows = window_products(traj), []
    for first, middle, last in recent_steps(traj):
        dot, late, early = products(first, middle, last)
        if late * early <= 0:
            continue
        steps, before = last - middle, middle - first
        c, c0 = dot / math.sqrt(late * early), adam_persistence(steps, beta1, before, updates)
        windows.append(PersistenceWindow(steps, c, c0, excess(c, c0), None if steps == before else before))
    return tuple(windows)


def above_rounding(traj: Trajectory, windows: tuple[PersistenceWindow, ...]) -> tuple[PersistenceWindow, ...]:
    """The windows that are more than the rounding of what was stored, which turns back each time and hides a direction.

    Raises:
        TooShort: there are none.
    """
    shares = [window_noise(traj, traj.steps[-1] - window.steps) for window in windows]
    kept = tuple(w for w, share in zip(windows, shares, strict=True) if share <= WARN_ABOVE)
    if not kept:
        # Some modules may be stored wider; those of 16 bits are the ones that round.
        kinds = {str(d).removeprefix("torch.") for m in traj.modules for d in traj.dtypes(traj.steps[-1], m)}
        narrow = " or ".join(sorted(kinds & {"bfloat16", "float16"}))
        raise TooShort(
            f"stored in {narrow}, whose rounding is {shares[0]:.2g} times the last window: save in float32, or less "
            "often"
        )
    return kept


def recent_steps(traj: Trajectory) -> list[tuple[int, int, int]]:
    """The known steps that the last two windows of each length lie between, (first, middle, last), shortest first."""
    known, found = known_steps(traj), dict[int, tuple[int, int, int]]()
    for length in (n * traj.spacing for n in WINDOW_LENGTHS):
        if known[-1] - known[0] < 2 * length:
            continue
        middle = _near(known, known[-1] - length, length / 2)
        first = None if middle is None else _near(known, middle - length, length / 2)
        # Where one checkpoint is the nearest for two lengths, the shorter one has it.
        if middle is not None and first is not None:
            found.setdefault(middle, (first, middle, known[-1]))
    return list(found.values())


def _near(known: Sequence[int], step: int, slack: float) -> int | None:
    """The known step nearest to `step`, the earlier on a tie; None where it is off by more than `slack`."""
    near = min(known, key=lambda s: (abs(s - step), s))
    return near if abs(near - step) <= slack else None


def no_windows(traj: Trajectory) -> str:
    """Why `recent_windows` found none, as a clause."""
    known = known_steps(traj)
    if recent_steps(traj) or not moves(traj):
        return f"the adapter does not move in the last {2 * traj.spacing} steps"
    last = ", ".join(map(str, known[-4:]))
    return (
        f"the last checkpoints (steps {last}) are too few or too unevenly spaced to lay two windows of "
        f"{' or '.join(str(n * traj.spacing) for n in WINDOW_LENGTHS)} steps between them"
    )
