"""Rollouts on chosen prompts through a TRL trainer's own path: its generation, its reward functions, its weights.

Scoring must see what training sees, so it goes through the trainer (Hugging Face generate or vLLM, chat template,
tools), not around it. It leaves no trace: random state, metrics and logs are put back, and a vLLM engine is told
that its weights are stale, both before and after, since TRL syncs it only when the step number changes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nextrl.evaluate import inference, seeded

Row = dict[str, Any]
"""One row of the trainer's dataset: `prompt` and whatever columns the reward functions need."""


class TrainerRollouts:
    """Scores rows of a dataset with the current weights of a trainer's model.

    Attributes:
        completions: completions generated so far, over all processes.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.completions = 0

    def rewards(self, rows: Sequence[Row], seed: int) -> Tensor:
        """Reward of one completion a row: (n,) float64, weighted over the trainer's reward functions.

        The same rows and seed give the same prompts and the same random numbers whatever the weights are.
        """
        trainer = self._trainer
        rows = [dict(row) for row in rows]
        prompts = [row["prompt"] for row in rows]
        self.mark_weights_changed()
        with _untouched(trainer), inference(trainer.model), seeded(seed):
            generated = trainer._generate(prompts)
            ids, completions = generated[1], generated[3]
            by_function = trainer._calculate_rewards(rows, prompts, completions, ids)
        self.mark_weights_changed()
        weights = trainer.reward_weights.to(by_function.device).unsqueeze(0)
        rewards: Tensor = (by_function * weights).nansum(dim=1).double().cpu()
        self.completions += len(rewards)
        return rewards

    def mark_weights_changed(self) -> None:
        """Make the next rollout deliver the current weights to vLLM, whatever the step number says."""
        if getattr(self._trainer, "use_vllm", False):
            self._trainer._last_loaded_step = -1

    def drop_buffered(self) -> None:
        """Forget rollouts sampled before a leap, which would be trained on after it."""
        self._trainer._buffered_inputs = None


@contextmanager
def _untouched(trainer: Any) -> Iterator[None]:
    """The trainer's metrics, completion logs and token count as they were, afterwards."""
    kept = {
        name: copy.deepcopy(getattr(trainer, name))
        for name in ("_metrics", "_logs")
        if hasattr(trainer, name)
    }
    tokens = trainer.state.num_input_tokens_seen
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(trainer, name, value)
        trainer.state.num_input_tokens_seen = tokens


def last_rewards(trainer: Any, count: int) -> list[float]:
    """The last `count` mean training rewards that the trainer has measured and not yet logged."""
    return [float(r) for r in trainer._metrics["train"]["reward"][-count:]]


def set_rate_factor(optimizer: torch.optim.Optimizer, scheduler: Any, factor: float) -> None:
    """Multiply the learning rate, base rates included, so that warm-up and decay keep their shape."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    scheduler = getattr(scheduler, "scheduler", scheduler)
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
        if "initial_lr" in group:
            group["initial_lr"] = group["initial_lr"] * factor
    if scheduler is not None and hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [base * factor for base in scheduler.base_lrs]
        if hasattr(scheduler, "_last_lr"):
            scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
