"""`next-paper`: NExt's predictor exactly as published, kept for comparison (see `next.py` for what we changed).

One network a vector length d and side, shared by all modules. Two branches (global and local vector), each
Linear(d, 256) Linear(256, d) ReLU Linear(d, 256) Linear(256, d); their outputs, concatenated, go through Linear(2d,
256) Linear(256, 2d) ReLU Linear(2d, 256) Linear(256, d). L1 loss against the target's vector, summed, averaged over
checkpoints; AdamW at 2e-5 with a cosine to a tenth; 1000 full-batch epochs; singular values through the same
network with d = 1. The one liberty taken is the sign of singular vectors, which must be fixed somehow. All of this
is second-hand, from public accounts of the paper (docs/design.md, the predictor).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from nextrl.extrapolators.alphas import PAPER_ALPHAS
from nextrl.extrapolators.base import Tags, register, require
from nextrl.extrapolators.networks import TrainingSettings, train
from nextrl.extrapolators.predictions import NewDirection
from nextrl.extrapolators.triples import Features, collect
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.trajectory import Trajectory


class PaperNet(nn.Module):
    """(N, 2, d) global and local vector -> (N, d)."""

    def __init__(self, d: int, width: int = 256) -> None:
        super().__init__()
        self.far, self.local = _stack(d, width, d), _stack(d, width, d)
        self.joint = _stack(2 * d, width, d)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 2, d) -> (N, d)."""
        out: Tensor = self.joint(torch.cat([self.far(x[:, 0]), self.local(x[:, 1])], 1))
        return out


def _stack(d: int, width: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(d, width), nn.Linear(width, d), nn.ReLU(), nn.Linear(d, width), nn.Linear(width, out)
    )


@register
@dataclass(frozen=True)
class NextPaper:
    """The published networks and recipe.

    Attributes:
        width: hidden units (256).
        epochs: full-batch epochs (1000).
        learning_rate: AdamW's (2e-5).
        alphas: the step lengths that the paper sweeps on validation accuracy.
    """

    width: int = 256
    epochs: int = 1000
    learning_rate: float = 2e-5
    name: ClassVar[str] = "next-paper"
    reference: ClassVar[str] = "NExt, arXiv 2604.11446, as published (second-hand)"
    summary: ClassVar[str] = "NExt's networks as published"
    tags: ClassVar[Tags] = Tags(trains=True)
    alphas: ClassVar[tuple[float, ...]] = PAPER_ALPHAS

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """The start and two training pairs (t, t + h)."""
        return -(-horizon // spacing) + 3

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> NewDirection:
        """Train on the checkpoints t with t + h <= T, apply at T; u and v renormalised, sigma as predicted."""
        require(self, traj, horizon)
        features = collect(traj, horizon, self.name)
        draws = torch.Generator().manual_seed(seed)
        recipe = TrainingSettings(self.epochs, self.learning_rate, weight_decay=0.01)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            left, right = (self._sides(features, side, recipe, draws) for side in ("u", "v"))
            sizes = self._sizes(features, traj.spacing, recipe, draws)
        directions = {m: LowRank.zeros(*traj.shape(m)[:2]) for m in traj.modules}
        for module, sigma in sizes.items():
            u, v = (nn.functional.normalize(side[module], dim=0).double() for side in (left, right))
            directions[module] = LowRank((u * sigma)[:, None], v[:, None])
        return NewDirection(directions)

    def _sides(
        self, features: Features, side: str, recipe: TrainingSettings, draws: torch.Generator
    ) -> Mapping[str, Tensor]:
        """module -> (d,) the network's output for one side."""
        predicted: dict[str, Tensor] = {}
        for d, modules in features.lengths(side).items():
            x, y, last = features.vectors(side, modules)
            net = PaperNet(d, self.width)
            train(net, x, y, recipe, draws)
            with torch.no_grad():
                predicted.update(zip(modules, net(last), strict=True))
        return predicted

    def _sizes(
        self, features: Features, unit: int, recipe: TrainingSettings, draws: torch.Generator
    ) -> dict[str, float]:
        """module -> predicted sigma. The network of width d = 1 is the published one, collapse included."""
        x, y, last = features.sizes(unit)
        net = PaperNet(1, self.width)
        train(net, x[:, :, None], y[:, None], recipe, draws)
        with torch.no_grad():
            out = net(last[:, :, None])[:, 0]
        return dict(zip(features.modules, out.tolist(), strict=True))
