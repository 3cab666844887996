"""`nowcast`: one small network, shared by all scalars of A and B, forecasts each from its last five values.

The input is that of Weight Nowcaster Networks (Jang et al. 2023; their code, github.com/jjh6297/WNN at ab0f62c, was
read): five snapshots of a scalar, minus the first, over their range (twice the range there). The output is the change,
in units of the range. What else differs: theirs has a second stream for the four differences, exponential
activations and a tanh, is trained on other runs, and there is one each for convolutions, dense layers and biases; here
one plain MLP learns from the run's own past, on the five snapshots before each t with t + h <= T. Relatives,
second-hand: Introspection (1704.04959) came before, and NiNo (2409.04434) has such an MLP among its baselines.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from nextrl.errors import InputError
from nextrl.extrapolators.base import Tags, register, require, spacings_in
from nextrl.extrapolators.networks import MOST_UNITS, TrainingSettings, linear, plain_torch, seeded, train
from nextrl.extrapolators.predictions import InsideFactors
from nextrl.trajectory.combinations import wide
from nextrl.trajectory.trajectory import Trajectory

SNAPSHOTS = 5


@register
@dataclass(frozen=True)
class Nowcast:
    """`A_T + a net(last five A)`, B alike.

    Attributes:
        width: hidden units. updates, learning_rate: training. rows: scalars per update.
        scalars: at most so many scalars of the run are drawn to train on.
    """

    width: Annotated[int, Field(ge=1, le=MOST_UNITS)] = 32
    updates: Annotated[int, Field(ge=1)] = 300
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-3
    rows: Annotated[int, Field(ge=1)] = 4096
    scalars: Annotated[int, Field(ge=1)] = 100_000
    name: ClassVar[str] = "nowcast"
    reference: ClassVar[str] = "Weight Nowcaster Networks, Jang et al. 2023; arXiv 1704.04959"
    summary: ClassVar[str] = "a network forecasts each scalar of A and B"
    tags: ClassVar[Tags] = Tags(trains=True)

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """The start, five snapshots on disk, and the one h steps after the last of them."""
        return 1 + SNAPSHOTS + spacings_in(horizon, spacing)

    @plain_torch()
    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> InsideFactors:
        """Train on scalars drawn from all modules and all possible t."""
        require(self, traj, horizon)
        first, draws = seeded(seed), seeded(seed)
        x, y = self._examples(traj, horizon, draws)
        net = nn.Sequential(linear(SNAPSHOTS, self.width, first), nn.ReLU(), linear(self.width, 1, first))
        train(net, x, y[:, None], TrainingSettings(self.updates, self.learning_rate, self.rows), draws)
        return InsideFactors(traj, partial(_ahead, traj, net))

    def _examples(self, traj: Trajectory, horizon: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """(N, 5) normalised snapshots and (N,) the change h steps on, over the range."""
        k, end = traj.spacing, traj.steps[-1]
        first = traj.steps[0] + (SNAPSHOTS - 1) * k
        origins = [t for t in traj.steps if t >= first and t + horizon <= end]
        if not origins:
            raise InputError(
                f"nowcast needs {SNAPSHOTS} checkpoints on disk and one {horizon} steps after them "
                "(step 0 counts only if it is on disk): choose a shorter horizon"
            )
        share = max(1, self.scalars // (2 * len(traj.modules) * len(origins)))
        inputs, targets = [], []
        for module in traj.modules:
            for side in (0, 1):
                for t in origins:
                    size = traj.factors(t, module)[side].numel()
                    pick = torch.randint(size, (share,), generator=draws, device="cpu")
                    past = _snapshots(traj, module, side, t, pick)
                    later = _value(traj, module, side, t + horizon, pick)
                    spread = past.max(0).values - past.min(0).values
                    keep = spread > 0
                    inputs.append(((past - past[0]) / spread)[:, keep].mT)
                    targets.append(((later - past[-1]) / spread)[keep])
        x, y = torch.cat(inputs).float(), torch.cat(targets).float()
        if not len(x):
            raise InputError("nowcast: no scalar of the adapter moved; there is nothing to learn from")
        return x, y


def _value(traj: Trajectory, module: str, side: int, step: float, pick: Tensor | None = None) -> Tensor:
    """A (side 0) or B (side 1) at any step, linear between the checkpoints around it.

    With `pick` (N,) only those scalars of the flattened factor, which are widened after they are drawn.
    """

    def stored(at: int) -> Tensor:
        factor = traj.factors(at, module)[side]
        return wide(factor if pick is None else factor.reshape(-1)[pick])

    later = next(s for s in traj.steps if s >= step)
    after = stored(later)
    if later == step or later == traj.steps[0]:
        return after
    earlier = max(s for s in traj.steps if s < step)
    before = stored(earlier)
    return before + (after - before) * ((step - earlier) / (later - earlier))


def _snapshots(traj: Trajectory, module: str, side: int, end: int, pick: Tensor | None = None) -> Tensor:
    """(5, ...) the factor (or its scalars `pick`) at end - 4k ... end."""
    k = traj.spacing
    return torch.stack([_value(traj, module, side, end - i * k, pick) for i in reversed(range(SNAPSHOTS))])


@plain_torch()
@torch.no_grad()
def _forecast(net: nn.Sequential, past: Tensor) -> Tensor:
    """The change of every scalar h steps on; zero for one that did not move."""
    spread = past.amax(0) - past.amin(0)
    shape = past.shape[1:]
    x = ((past - past[0]) / spread.clamp_min(torch.finfo(past.dtype).tiny)).flatten(1).mT
    change: Tensor = net(x.to(torch.float32))[:, 0].reshape(shape)
    return change.to(past.dtype) * spread


def _ahead(traj: Trajectory, net: nn.Sequential, module: str, alpha: float) -> tuple[Tensor, Tensor]:
    """The factors at T, and alpha times what the network sees coming."""
    end = traj.steps[-1]
    now = (wide(f) for f in traj.factors(end, module))
    a, b = (new + alpha * _forecast(net, _snapshots(traj, module, side, end)) for side, new in enumerate(now))
    return a, b
