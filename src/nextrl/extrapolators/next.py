"""`next`: NExt's idea with small, normalised networks and a singular value that is really predicted.

The paper's form is in `next_paper.py` (second-hand). What we saw of it: its network for singular values, with ReLUs of
width d = 1, may end with one value for every matrix (9 of 20 initialisations did, on 40 made-up sizes), and those for
vectors spend their time learning, from a handful of checkpoints, to copy their own input. Here the copy is built in and
a small network learns what to change: inputs scaled by sqrt(d), width 64, learning rate 1e-3, 300 updates, and `log
sigma` predicted as a residual over the local one, so that matrices of different size stay different.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from nextrl.extrapolators.base import Tags, register, require, spacings_in
from nextrl.extrapolators.networks import MOST_UNITS, TrainingSettings, linear, plain_torch, seeded, train
from nextrl.extrapolators.predictions import NewDirection
from nextrl.extrapolators.triples import Features, collect
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.trajectory import Trajectory


class VectorNet(nn.Module):
    """One side's predictor for vectors of length d, shared by every module that has them.

    out = a g + b l + W2 relu(W1 [g, l]), vectors scaled to norm sqrt(d); a and b are two learned numbers that
    start at 0 and 1 (the local direction, repeated), W2 starts at zero.
    """

    def __init__(self, d: int, width: int, first: torch.Generator) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.tensor([0.0, 1.0], dtype=torch.float32, device="cpu"))
        self.inner = linear(2 * d, width, first)
        self.outer = linear(width, d, first)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2, d) global and local vector -> (N, d)."""
        copy = self.mix[0] * x[:, 0] + self.mix[1] * x[:, 1]
        out: Tensor = copy + self.outer(torch.relu(self.inner(x.flatten(1))))
        return out


class SizeNet(nn.Module):
    """log sigma of the target = log sigma of the local span, carried to the horizon, + a 2 -> width -> 1 network."""

    def __init__(self, x: Tensor, width: int, first: torch.Generator) -> None:
        super().__init__()
        self.mean, self.spread = x.mean(0), x.std(0, correction=0).clamp_min(1e-3)
        self.net = nn.Sequential(linear(2, width, first), nn.ReLU(), linear(width, 1, first))
        for parameter in self.net[2].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2) log sigma, global and local -> (N,)."""
        out: Tensor = x[:, 1] + self.net((x - self.mean) / self.spread)[:, 0]
        return out


@register
@dataclass(frozen=True)
class Next:
    """Networks that map the global and the local leading triple at t to that of `W_{t+h} - W_t`.

    Attributes:
        width: hidden units.
        updates: optimizer updates (the rows of a small run make one batch, so an update is an epoch).
        learning_rate: at the start, falling to a tenth along a cosine.
        rows: at most so many rows (module x checkpoint) per update: bounds the time on large models.
    """

    width: Annotated[int, Field(ge=1, le=MOST_UNITS)] = 64
    updates: Annotated[int, Field(ge=1)] = 300
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    rows: Annotated[int, Field(ge=1)] = 64
    name: ClassVar[str] = "next"
    reference: ClassVar[str] = "NExt, arXiv 2604.11446, with the changes of docs/design.md, the predictor"
    summary: ClassVar[str] = "small networks predict the next leading direction and its size"
    tags: ClassVar[Tags] = Tags(trains=True)

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """The start and two training pairs (t, t + h)."""
        return spacings_in(horizon, spacing) + 3

    @plain_torch()
    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> NewDirection:
        """Train one network per vector length and side, and one for the sizes; apply them at T."""
        require(self, traj, horizon)
        features = collect(traj, horizon, self.name)
        first, draws = seeded(seed), seeded(seed)
        left, right = (self._directions(features, side, first, draws) for side in ("u", "v"))
        sizes = self._sizes(features, first, draws)
        directions = {}
        for module in traj.modules:
            if module in sizes:
                u, v = left[module] * sizes[module], right[module]
                directions[module] = LowRank(u[:, None].double(), v[:, None].double())
            else:
                directions[module] = LowRank.zeros(*traj.shape(module)[:2])
        return NewDirection(directions)

    def _recipe(self) -> TrainingSettings:
        return TrainingSettings(self.updates, self.learning_rate, self.rows)

    def _directions(
        self, features: Features, side: str, first: torch.Generator, draws: torch.Generator
    ) -> dict[str, Tensor]:
        """module -> (d,) predicted unit vector of one side ("u" or "v"); `first` draws what the networks begin with."""
        predicted: dict[str, Tensor] = {}
        for d, modules in features.lengths(side).items():
            x, y, last = (block * math.sqrt(d) for block in features.vectors(side, modules))
            net = VectorNet(d, self.width, first)
            # Of vectors that moved too late to learn from, the network as it begins says the local one.
            if len(x):
                train(net, x, y, self._recipe(), draws)
            with torch.no_grad():
                out = nn.functional.normalize(net(last), dim=1)
            predicted.update(zip(modules, out, strict=True))
        return predicted

    def _sizes(self, features: Features, first: torch.Generator, draws: torch.Generator) -> dict[str, float]:
        """module -> predicted sigma of the target, for the modules that moved."""
        # A module that stood still in its last span gets the smallest normal number, not minus infinity.
        x, y, last = (block.clamp_min(1e-30).log() for block in features.sizes(features.horizon))
        net = SizeNet(x, self.width, first)
        train(net, x, y, self._recipe(), draws)
        with torch.no_grad():
            out = net(last).exp()
        return dict(zip(features.modules, out.tolist(), strict=True))
