"""The sampler of the training dataset, found inside the wrappers that accelerate puts around it.

A row that is held back is never drawn; a run that goes on from a checkpoint draws the orders of earlier epochs again.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class PromptOrder(TrainerCallback):
    """Puts the order of prompts of a run that goes on from a checkpoint where it was.

    TRL's sampler shuffles with a generator of its own that no checkpoint holds: without this, the second epoch of
    such a run would have the first one's order.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the orders of the epochs that are over once more."""
        loader = kwargs["train_dataloader"]
        per_epoch = max(1, len(loader) // args.gradient_accumulation_steps)
        draw_orders_again(loader, state.global_step // per_epoch)


def training_loader(trainer: Any) -> Any:
    """The loader of training batches, from the start of `train()` on: callbacks are handed the same one."""
    return trainer.callback_handler.train_dataloader


def dataset_sampler(loader: Any) -> Any:
    """The sampler of a loader's dataset, None where it has none (a stream)."""
    return getattr(_sampling(loader), "sampler", None)


def replace_dataset_sampler(loader: Any, sampler: Any) -> None:
    """Draw from another sampler of the same dataset, from the next epoch that begins on."""
    _sampling(loader).sampler = sampler


def draw_orders_again(loader: Any, epochs: int) -> None:
    """Bring the order of prompts to where it is after some epochs, for a run that goes on from a checkpoint.

    TRL's RepeatSampler shuffles with a generator of its own, one permutation of the dataset an epoch, and no checkpoint
    holds that generator.
    """
    sampler = dataset_sampler(loader)
    for _ in range(epochs):
        torch.randperm(sampler.num_samples, generator=sampler.generator)


def _sampling(loader: Any) -> Any:
    """What holds the dataset's sampler: the batch sampler inside all that accelerate wraps around it."""
    while getattr(loader, "batch_sampler", None) is not None:
        loader = loader.batch_sampler
    return loader
