"""The one training loop of the networks in this package: AdamW, a cosine to a tenth, L1 loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MOST_UNITS = 2**16
"""Hidden units of a network: a hundred times what any method here asks for, and few enough to be allocated."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a small network is trained.

    Attributes:
        updates: optimizer updates.
        learning_rate: at the start; a tenth of it at the end, along a cosine.
        rows: rows per update; all of them when there are no more, and then an update is an epoch.
        weight_decay: AdamW's.
    """

    updates: int
    learning_rate: float
    rows: int | None = None
    weight_decay: float = 0.0


def train(net: nn.Module, x: Tensor, y: Tensor, recipe: TrainingSettings, generator: torch.Generator) -> None:
    """Fit `net(x)` to `y` in place.

    Args:
        net: maps (N, ...) to the shape of y.
        x: (N, ...) float32 inputs.
        y: (N, d) or (N,) float32 targets; the loss is the sum of absolute errors, averaged over rows.
        recipe: optimizer settings.
        generator: draws the rows of an update.
    """
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, foreach=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: 0.55 + 0.45 * math.cos(math.pi * min(i / recipe.updates, 1.0))
    )
    subset = recipe.rows is not None and len(x) > recipe.rows
    for _ in range(recipe.updates):
        inputs, targets = x, y
        if subset:
            pick = torch.randperm(len(x), generator=generator)[: recipe.rows]
            inputs, targets = x[pick], y[pick]
        optimizer.zero_grad(set_to_none=True)
        loss = (net(inputs) - targets).abs().sum() / len(inputs)
        loss.backward()
        optimizer.step()
        schedule.step()
