"""Another learning rate for a run under way, with the shape of its schedule kept."""

from __future__ import annotations

from typing import Any

import torch


def set_rate_factor(optimizer: torch.optim.Optimizer, scheduler: Any, factor: float) -> None:
    """Multiply the learning rate, base rates included, so that warm-up and decay keep their shape."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    scheduler = getattr(scheduler, "scheduler", scheduler)
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
        if "initial_lr" in group:
            group["initial_lr"] = group["initial_lr"] * factor
    _scale_schedule(scheduler, optimizer, factor)


def _scale_schedule(scheduler: Any, optimizer: torch.optim.Optimizer, factor: float) -> None:
    # A SequentialLR or ChainedScheduler holds others, each with base rates of its own.
    for inner in getattr(scheduler, "_schedulers", ()):
        _scale_schedule(inner, optimizer, factor)
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [base * factor for base in scheduler.base_lrs]
    if hasattr(scheduler, "_last_lr"):
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
