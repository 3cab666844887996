"""The one door of the public functions: a trajectory, or a place that one is read from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from nextrl.errors import InputError, shown
from nextrl.trajectory.trajectory import Trajectory

Run = Trajectory | str | Path
"""What a public function takes for a run: its trajectory, or its folder."""


def trajectory_of(run: Run) -> Trajectory:
    """The trajectory itself, or the one in a run's folder.

    Raises:
        InputError: it is neither, or no run is there that can be read.
    """
    if isinstance(run, Trajectory):
        return run
    if isinstance(run, str | os.PathLike | Mapping):
        return Trajectory.load(run)
    raise InputError(f"a run is its folder or a nextrl.Trajectory, not {shown(run)}")
