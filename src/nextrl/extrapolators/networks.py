"""Small networks: how a layer begins, and the one training loop (AdamW, a cosine to a tenth, L1 loss).

Nothing here draws from torch's global generator, which other threads and the user's training draw from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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


@contextmanager
def plain_torch() -> Iterator[None]:
    """Inside it gradients are kept, nothing is narrowed and all lies on the CPU, whatever modes the caller is in."""
    # An optimizer makes tensors of its own. Such a context costs half of a fit's time, so that it is not always there.
    on_cpu = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False), on_cpu:
        yield


def linear(inputs: int, outputs: int, draws: torch.Generator) -> nn.Linear:
    """A layer in float32 on the CPU with the numbers that `nn.Linear` would draw for itself after `manual_seed`.

    Args:
        inputs, outputs: its widths.
        draws: goes on by one number for each weight and each bias.
    """
    layer = nn.Linear(inputs, outputs, device="meta", dtype=torch.float32).to_empty(device="cpu")
    # As torch 2.13's `nn.Linear.reset_parameters`, which takes no generator.
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=draws)
    bound = 1 / math.sqrt(inputs)
    nn.init.uniform_(layer.bias, -bound, bound, generator=draws)
    return layer


def seeded(seed: int) -> torch.Generator:
    """A generator of its own, on the CPU."""
    return torch.Generator("cpu").manual_seed(seed)


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
            pick = torch.randperm(len(x), generator=generator, device="cpu")[: recipe.rows]
            inputs, targets = x[pick], y[pick]
        optimizer.zero_grad(set_to_none=True)
        loss = (net(inputs) - targets).abs().sum() / len(inputs)
        loss.backward()
        optimizer.step()
        schedule.step()
