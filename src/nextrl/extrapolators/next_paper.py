"""`next-paper`: NExt's predictor as published, kept for comparison (see `next.py` for what we changed).

One network a vector length d and side, shared by all modules. Two branches (global and local vector), each
Linear(d, 256) Linear(256, d) ReLU Linear(d, 256) Linear(256, d); their outputs, concatenated, go through Linear(2d,
256) Linear(256, 2d) ReLU Linear(2d, 256) Linear(256, d). L1 loss against the target's vector, summed, averaged over
checkpoints; AdamW at 2e-5 with a cosine to a tenth; 1000 full-batch epochs; singular values through the same
network with d = 1. All of this is second-hand, from public accounts of the paper (docs/design.md, the predictor).

Liberties taken, all of them:

- Signs of singular vectors follow the run (`triples`); the paper does not say how it fixes them.
- Only what LoRA adapts is predicted: no norms, biases, embeddings or output layer.
- A leap that goes on training is brought back to the adapter's rank (the paper merges it into the base: `merge` of an
  arm does so), and Adam's moments stay.
- The loss is averaged over rows, and so does not grow with their number.
- Spans of uneven length are rescaled to one spacing and one horizon; with checkpoints at even steps this does nothing.
- A training row whose local or target span did not move is left out: it has no direction.
- What the networks say of u and v is brought to unit length before sigma u v^T is formed.
- A step is one optimizer update; the paper counts steps of four (batch 128, mini-batches of 32).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from nextrl.errors import InputError
from nextrl.extrapolators.alphas import PAPER_ALPHA, PAPER_ALPHAS, PAPER_AT
from nextrl.extrapolators.base import Tags, register, require, spacings_in
from nextrl.extrapolators.networks import MOST_UNITS, TrainingSettings, linear, plain_torch, seeded, train
from nextrl.extrapolators.predictions import NewDirection
from nextrl.extrapolators.triples import Features, collect
from nextrl.trajectory.combinations import known_steps
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.trajectory import Trajectory

Inputs = Literal["both", "global", "local"]
_BRANCHES: dict[Inputs, tuple[int, ...]] = {"both": (0, 1), "global": (0,), "local": (1,)}


class PaperNet(nn.Module):
    """(N, 2, d) global and local vector -> (N, d); of the two only `inputs` are looked at."""

    def __init__(self, d: int, first: torch.Generator, width: int = 256, inputs: Inputs = "both") -> None:
        super().__init__()
        self._seen = _BRANCHES[inputs]
        self.branches = nn.ModuleList(_stack(d, width, d, first) for _ in self._seen)
        self.joint = _stack(len(self._seen) * d, width, d, first)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 2, d) -> (N, d)."""
        seen = [branch(x[:, at]) for branch, at in zip(self.branches, self._seen, strict=True)]
        out: Tensor = self.joint(torch.cat(seen, 1))
        return out


def _stack(d: int, width: int, out: int, first: torch.Generator) -> nn.Sequential:
    return nn.Sequential(
        linear(d, width, first),
        linear(width, d, first),
        nn.ReLU(),
        linear(d, width, first),
        linear(width, out, first),
    )


@register
@dataclass(frozen=True)
class NextPaper:
    """The published networks and recipe.

    Attributes:
        width: hidden units (256).
        epochs: full-batch epochs (1000).
        learning_rate: AdamW's (2e-5).
        inputs: what the networks see, "both", "global" or "local" (the paper's ablations).
        rank: leading singular triples of each difference that are predicted, each by networks of its own (1).
    """

    width: Annotated[int, Field(ge=1, le=MOST_UNITS)] = 256
    epochs: Annotated[int, Field(ge=1)] = 1000
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-5
    inputs: Inputs = "both"
    rank: Annotated[int, Field(ge=1)] = 1
    name: ClassVar[str] = "next-paper"
    reference: ClassVar[str] = "NExt, arXiv 2604.11446, as published (second-hand)"
    summary: ClassVar[str] = "NExt's networks as published"
    tags: ClassVar[Tags] = Tags(
        trains=True, slow=True, alphas=PAPER_ALPHAS, alpha=PAPER_ALPHA, at=(PAPER_AT,)
    )

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """The start and two training pairs (t, t + h)."""
        return spacings_in(horizon, spacing) + 3

    @plain_torch()
    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> NewDirection:
        """Train on the checkpoints t with t + h <= T, apply at T; u and v renormalised, sigma as predicted.

        Raises:
            InputError: unknown `inputs`, or as `triples.collect`.
        """
        require(self, traj, horizon)
        if self.inputs not in get_args(Inputs):
            raise InputError(
                f"next-paper: inputs must be one of {', '.join(get_args(Inputs))}, not {self.inputs!r}"
            )
        directions = {m: LowRank.zeros(*traj.shape(m)[:2]) for m in traj.modules}
        ends = known_steps(traj)[0], traj.steps[-1]
        widest = max(traj.delta(m, *ends).rank for m in traj.modules)
        for part in range(min(self.rank, widest)):
            features = collect(traj, horizon, self.name, part)
            if not features.modules:  # the factors are wider than the differences' true rank
                break
            for module, direction in self._part(features, traj.spacing, seed).items():
                directions[module] = directions[module] + direction if part else direction
        return NewDirection(directions)

    def _part(self, features: Features, spacing: int, seed: int) -> dict[str, LowRank]:
        """module -> what is predicted of one singular triple, (m, n) of rank 1; none for a module without it."""
        first, draws = seeded(seed), seeded(seed)
        recipe = TrainingSettings(self.epochs, self.learning_rate, weight_decay=0.01)
        left, right = (self._sides(features, side, recipe, first, draws) for side in ("u", "v"))
        sizes = self._sizes(features, spacing, recipe, first, draws)
        directions = {}
        for module, sigma in sizes.items():
            u, v = (nn.functional.normalize(side[module], dim=0).double() for side in (left, right))
            directions[module] = LowRank((u * sigma)[:, None], v[:, None])
        return directions

    def _sides(
        self,
        features: Features,
        side: str,
        recipe: TrainingSettings,
        first: torch.Generator,
        draws: torch.Generator,
    ) -> Mapping[str, Tensor]:
        """module -> (d,) the network's output for one side; `first` draws what the networks begin with."""
        predicted: dict[str, Tensor] = {}
        for d, modules in features.lengths(side).items():
            x, y, last = features.vectors(side, modules)
            if not len(x):  # moved too late to learn from, and as it begins this network says nothing
                predicted.update(
                    (module, torch.zeros(d, dtype=torch.float32, device="cpu")) for module in modules
                )
                continue
            net = PaperNet(d, first, self.width, self.inputs)
            train(net, x, y, recipe, draws)
            with torch.no_grad():
                predicted.update(zip(modules, net(last), strict=True))
        return predicted

    def _sizes(
        self,
        features: Features,
        unit: int,
        recipe: TrainingSettings,
        first: torch.Generator,
        draws: torch.Generator,
    ) -> dict[str, float]:
        """module -> predicted sigma. The network of width d = 1 is the published one: it may say the same of all."""
        x, y, last = features.sizes(unit)
        net = PaperNet(1, first, self.width, self.inputs)
        train(net, x[:, :, None], y[:, None], recipe, draws)
        with torch.no_grad():
            out = net(last[:, :, None])[:, 0]
        return dict(zip(features.modules, out.tolist(), strict=True))
