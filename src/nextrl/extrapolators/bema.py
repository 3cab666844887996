"""`bema`: an EMA with its lag corrected, `(rho + gamma t)^-eta (W_t - W_0) + EMA_t`.

BEMA (2508.00180), in the form and with the defaults of TRL's `BEMACallback`: `beta_t = (rho + gamma t)^-kappa` and
`EMA_t = (1 - beta_t) EMA_{t-1} + beta_t W_t`, with rho = 10, gamma = 1, kappa = .5, eta = .2. As there (read and run
in trl 1.16.0), the average begins at the initial weights, is updated once per checkpoint (the callback's
`update_freq`), t counts optimizer steps, and the correction is added in full. The callback averages each parameter,
with LoRA A and B for themselves; here it is the effective weights W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from nextrl.extrapolators.base import Tags, register, require
from nextrl.extrapolators.predictions import CombinationOfCheckpoints, in_proportion
from nextrl.trajectory.combinations import known_steps, unit
from nextrl.trajectory.trajectory import Trajectory


@register
@dataclass(frozen=True)
class BiasCorrectedAverage:
    """`W_T + a (BEMA - W_T)`.

    Attributes:
        eta: power of the correction. kappa: power of the average. rho: lag. gamma: multiplier of t.
    """

    eta: Annotated[float, Field(ge=0, le=10)] = 0.2
    kappa: Annotated[float, Field(ge=0, le=10)] = 0.5
    rho: Annotated[float, Field(ge=1e-6)] = 10.0
    gamma: Annotated[float, Field(ge=0)] = 1.0
    name: ClassVar[str] = "bema"
    reference: ClassVar[str] = "BEMA, arXiv 2508.00180; TRL's BEMACallback"
    summary: ClassVar[str] = "moving average plus a correction along the run"
    tags: ClassVar[Tags] = Tags(averages=True)

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """The start and T."""
        return 2

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> CombinationOfCheckpoints:
        """One weight per checkpoint."""
        require(self, traj, horizon)
        now, age = unit(traj, traj.steps[-1]), traj.steps[-1] - traj.start
        toward = self._average(traj) + (self.rho + self.gamma * age) ** -self.eta * now - now
        return CombinationOfCheckpoints(traj, in_proportion(toward))

    def _average(self, traj: Trajectory) -> Tensor:
        """(T,) coefficients of the moving average at T."""
        first, *later = known_steps(traj)
        average = unit(traj, first)
        for step in later:
            beta = (self.rho + self.gamma * (step - traj.start)) ** -self.kappa
            average = (1 - beta) * average + beta * unit(traj, step)
        return average
