"""`ema`: an exponential moving average of the checkpoints, its memory counted in steps.

Averaging the iterates of a stochastic method is Ruppert's (1988) and Polyak and Juditsky's (1992), who weight all of
them alike; weights that decay exponentially are common practice (as in Mean Teacher, 1703.01780). All second-hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from nextrl.extrapolators.base import Tags, register, require
from nextrl.extrapolators.predictions import CombinationOfCheckpoints, in_proportion
from nextrl.trajectory.combinations import known_steps, unit
from nextrl.trajectory.trajectory import Trajectory


def moving_average(traj: Trajectory, memory: float) -> Tensor:
    """(T,) weights of the EMA at T: from one known step to the next the past fades by `exp(-steps / memory)`.

    It begins at W_0 where that is known, whether its checkpoint is there or not.
    """
    known = known_steps(traj)
    average = unit(traj, known[0])
    for before, step in pairwise(known):
        keep = math.exp(-(step - before) / memory)
        average = keep * average + (1 - keep) * unit(traj, step)
    return average


@register
@dataclass(frozen=True)
class MovingAverage:
    """`W_T + a (EMA - W_T)`.

    Attributes:
        memory: time constant in steps; half the horizon by default, `lawa`'s mean age.
    """

    memory: Annotated[float, Field(gt=0)] | None = None
    name: ClassVar[str] = "ema"
    reference: ClassVar[str] = "weights averaged with exponential decay, as in arXiv 1703.01780 (second-hand)"
    summary: ClassVar[str] = "exponential moving average of the checkpoints"
    tags: ClassVar[Tags] = Tags(averages=True)

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """Two."""
        return 2

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> CombinationOfCheckpoints:
        """One weight per checkpoint."""
        require(self, traj, horizon)
        average = moving_average(traj, horizon / 2 if self.memory is None else self.memory)
        toward = average - unit(traj, traj.steps[-1])
        return CombinationOfCheckpoints(traj, in_proportion(toward))
