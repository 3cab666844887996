"""RLVR through TRL: one function that builds a trainer with settings that say what they mean.

TRL's defaults are made for large models on GPUs: bf16 and gradient checkpointing (5x and 1.4x slower on CPU), a
rate of 1e-6 with linear decay, weight decay off. Here all of them are set on purpose. The trainer is TRL's own,
unpatched; nextrl enters through callbacks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback

from nextrl.engines import algorithms, named_optimizers
from nextrl.engines.ranks import launched
from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.engines.trl.fused_head import score_labelled_columns
from nextrl.engines.trl.shared_prefix import share_prefixes
from nextrl.errors import InputError
from nextrl.tasks.base import Example, Task


def with_adapter(model: Any, lora: LoraSettings, seed: int) -> Any:
    """Wrap a model in a fresh LoRA adapter (`B_0 = 0`), seeded."""
    torch.manual_seed(seed)
    return get_peft_model(model, lora.for_peft())


def reward_function(task: Task) -> Callable[..., list[float]]:
    """The task's reward in the form TRL calls: completions and the dataset's `answer` column, as lists."""

    def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [task.reward(c, a) for c, a in zip(completions, answer, strict=True)]

    return reward


def as_dataset(examples: Sequence[Example]) -> Dataset:
    """Examples as a TRL dataset with the columns `prompt` and `answer`."""
    return Dataset.from_dict({"prompt": [e.prompt for e in examples], "answer": [e.answer for e in examples]})


def _share(settings: TrainSettings) -> int:
    """Completions a step on each process.

    Raises:
        InputError: they do not divide.
    """
    world = launched().world
    if settings.completions_per_step % world:
        raise InputError(
            f"{settings.completions_per_step} completions per step cannot be shared by {world} processes: change "
            "prompts_per_step or completions_per_prompt"
        )
    return settings.completions_per_step // world


def build_trainer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    settings: TrainSettings,
    output_dir: Path,
    *,
    save: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    report_to: Sequence[str] = (),
    log_dir: Path | None = None,
) -> Any:
    """The algorithm's TRL trainer (GRPOTrainer or RLOOTrainer) on the task's training prompts, ready for `train()`.

    Args:
        model: a PEFT model (`with_adapter`).
        output_dir: where `checkpoint-N` folders go (TRL's own layout, optimizer state included).
        save: keep a checkpoint every `settings.save_every` steps.
        report_to: loggers by the trainer's names ("tensorboard", "wandb", "trackio"); none by default.
        log_dir: where TensorBoard's files go; below `output_dir` by default.
    """
    # At every save PEFT asks the hub for a config.json of a model that lies in no local folder. It takes no argument
    # that forbids this and reads nothing but this variable, at that moment.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    on_cpu = not torch.cuda.is_available()
    algorithm = algorithms.get(settings.algorithm)
    config = algorithm.config(
        output_dir=str(output_dir),
        max_steps=settings.steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        per_device_train_batch_size=_share(settings),
        num_generations=settings.completions_per_prompt,
        max_completion_length=settings.max_completion_length or task.max_completion_length,
        temperature=settings.temperature,
        **algorithm.options,
        bf16=not on_cpu,
        gradient_checkpointing=False,
        use_cpu=on_cpu,
        save_strategy="steps" if save else "no",
        save_steps=settings.save_every,
        logging_steps=1,
        report_to=list(report_to) or "none",
        disable_tqdm=True,
        seed=settings.seed,
        dataloader_num_workers=0,
        dataloader_pin_memory=not on_cpu,
    )
    # Without a launcher one GPU trains: TRL refuses DataParallel.
    if launched().world == 1 and config.n_gpu > 1:
        config._n_gpu = 1
    optimizer = named_optimizers.get(settings.optimizer).build(model, settings.learning_rate)
    with _offline():
        trainer = algorithm.trainer(
            model=model,
            reward_funcs=reward_function(task),
            args=config,
            train_dataset=as_dataset(task.examples("train")),
            processing_class=tokenizer,
            optimizers=(optimizer, None),
            callbacks=list(callbacks),
        )
    if settings.share_prefixes:
        share_prefixes(trainer.model)
        score_labelled_columns(trainer.model)
    trainer.remove_callback(PrinterCallback)
    _without_cards(trainer)
    if log_dir is not None:
        _log_to(trainer, log_dir)
    return trainer


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """The hub's client offline inside, as it was outside.

    TRL reports each new trainer (the class, the model's architecture, the GPU) to huggingface.co. The client reads
    HF_HUB_OFFLINE once, when it is imported, which in a user's program was long ago: hence its own constant.
    """
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


def _log_to(trainer: Any, folder: Path) -> None:
    """Where TensorBoard writes: its callback takes that from the environment, or from this attribute."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(folder)
            if hasattr(trainer.args, "logging_dir"):  # transformers 4 looks here
                trainer.args.logging_dir = str(folder)


def _without_cards(trainer: Any) -> None:
    """No README in each checkpoint: TRL and PEFT compile two templates for it, most of what a small save takes."""
    trainer.create_model_card = lambda *args, **options: None
    trainer.accelerator.unwrap_model(trainer.model).create_or_update_model_card = lambda *args, **options: (
        None
    )
