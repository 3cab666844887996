"""Whether an adapter fits a model, found out on a copy without weights, before a run writes anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nextrl.checkpoints import patterns
from nextrl.engines.settings import LoraSettings
from nextrl.errors import InputError, first_line, needs, shown
from nextrl.registry import did_you_mean

WHERE = "lora: target_modules"


def adapter_without_weights(model: Any, lora: LoraSettings, name: str) -> Any:
    """PEFT's model of a base and an adapter on the meta device: names and shapes, no memory.

    Args:
        model: the base, with its weights or without; it is left as it is.
        lora: the adapter.
        name: the base's, for messages.

    Raises:
        InputError: the base has none of the modules that the adapter is to be put on, or ones that PEFT cannot adapt.
        MissingExtra: PEFT is not installed.
    """
    with needs("trl", "a LoRA adapter"):
        from peft import get_peft_model

    wanted, there = lora.target_modules, [module for module, _ in model.named_modules()]
    if isinstance(wanted, str):
        patterns.check(wanted, WHERE)
        patterns.refuse_slow([wanted], there, WHERE)
    else:
        _refuse_absent(wanted, there)
    with torch.device("meta"):
        bare = type(model)(model.config)
    try:
        return get_peft_model(bare, lora.for_peft())
    except (ValueError, TypeError, RuntimeError, LookupError) as error:
        raise InputError(f"lora: no adapter fits {name}: {first_line(error)}") from error


def _refuse_absent(wanted: Sequence[str], there: Sequence[str]) -> None:
    """PEFT takes a list of which one name fits, and leaves the others out without a word.

    Raises:
        InputError: the model has no module of one of the names.
    """
    for name in wanted:
        if not any(module == name or module.endswith(f".{name}") for module in there):
            last = sorted({module.rsplit(".", 1)[-1] for module in there})
            hint = did_you_mean(name, last, "name modules of the model, or all-linear")
            raise InputError(f"{WHERE}: the model has no module {shown(name)}; {hint}")
