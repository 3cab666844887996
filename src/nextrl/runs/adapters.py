"""The adapters that a run leaves: their base is called what the user called it, and the last one has a model card.

PEFT writes down where a base model was loaded from. For a base that has a name (`tiny`) that is a folder of this
machine, of use to nobody else. It is put right in the files and not in the model's own configuration, because PEFT
would look a name up on the Hub whenever it saves.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nextrl.checkpoints.adapter import CONFIG
from nextrl.checkpoints.atomic import replacing_folder, write_bytes, write_json
from nextrl.checkpoints.layouts.listing import trainer_checkpoint
from nextrl.engines import named_optimizers
from nextrl.errors import InputError
from nextrl.files import read_json
from nextrl.leaps.model_card import base_name, card_text, hub_id
from nextrl.leaps.provenance import CARD
from nextrl.runs.arm import ArmRecord, ArmSettings
from nextrl.tasks.generation import generating
from nextrl.version import VERSION


def name_base(folder: Path, name: str) -> None:
    """Set the base model's name in an adapter's configuration; a folder without one is left alone."""
    try:
        config = read_json(folder / CONFIG)
    except InputError:
        return
    if isinstance(config, dict) and config.get("base_model_name_or_path") != name:
        write_json(folder / CONFIG, {**config, "base_model_name_or_path": name})


class NamesItsBase(TrainerCallback):
    """Puts the base's name into each checkpoint as it is saved."""

    def __init__(self, name: str) -> None:
        self._name = name

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The checkpoint was written just before."""
        if args.should_save:
            name_base(trainer_checkpoint(Path(args.output_dir), state.global_step), self._name)


def write_final(model: Any, tokenizer: Any, folder: Path, arm: ArmSettings, record: ArmRecord) -> None:
    """The adapter as a PEFT folder with its card, or all weights where there is no adapter; whole or not at all."""
    with replacing_folder(folder, lambda entry: True) as temporary:
        _save(model, temporary, full=arm.lora is None)
        name_base(temporary, arm.model)
        if arm.lora is None:
            tokenizer.save_pretrained(str(temporary))
        write_bytes(temporary / CARD, _card(arm, record, folder.resolve().name).encode())


def _save(model: Any, folder: Path, *, full: bool) -> None:
    """Write a full model, with the generation settings that its base came with, or an adapter."""
    own = getattr(model, "own_generation_config", None) if full else None
    with generating(model, own) if own is not None else nullcontext():
        model.save_pretrained(str(folder))


def _card(arm: ArmSettings, record: ArmRecord, place: str) -> str:
    leap = "auto" if arm.auto else arm.leap.method if arm.leap else "none"
    optimizer = named_optimizers.get(arm.train.optimizer)
    rows: dict[str, object] = {
        "base model": base_name(arm.model),
        "task": base_name(arm.task),
        "algorithm": arm.train.algorithm,
        "steps": arm.train.steps,
        "learning rate at the start": None if optimizer.rate_free else arm.train.learning_rate,
        "optimizer": optimizer.name,
        "trained": "all weights" if arm.lora is None else f"LoRA, rank {arm.lora.r}, alpha {arm.lora.alpha}",
        "seed": arm.train.seed,
        "leaps and learning rate by": leap,
        "leaps taken": sum(decision.accepted for decision in record.decisions),
        "steps, windows or leaps taken back": sum(decision.undone for decision in record.decisions) or None,
        "written by": f"nextrl {VERSION}",
    }
    kind = "model" if arm.lora is None else "LoRA adapter"
    about = f"A {kind} trained with reinforcement learning from verifiable rewards."
    return card_text(
        about,
        base_name(arm.model),
        rows,
        kind="trained" if arm.lora is None else "adapter",
        hub=hub_id(arm.model),
        place=place,
        task=base_name(arm.task),
    )
