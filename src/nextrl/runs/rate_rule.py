"""`learning_rate: rule`: a start that is known before the run, from the model's width alone.

The rule is the one of Thinking Machines' Tinker cookbook (`hyperparam_utils.get_lr`, read in tinker-cookbook 0.6.1):
ten times a full fine-tuning rate of 5e-5, which "LoRA Without Regret" (https://thinkingmachines.ai/blog/lora/,
second-hand) found to be about right for LoRA, times (2000 / hidden size) to a power that was fitted for each family of
models. Where all weights are trained the factor of ten falls away (the same function). It asks for neither rank nor
alpha: there, an adapter is scaled by 32 / r (second-hand). Only Llama's and Qwen's powers are published as calibrated,
so other families are refused. It was fitted on models of 1B parameters and more (second-hand).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nextrl.errors import InputError, shown
from nextrl.files import is_number, read_json, usable_path
from nextrl.tasks.bases import smollm2

RULE = "rule"
FULL_RATE, LORA_FACTOR, WIDTH = 5e-5, 10.0, 2000
POWERS: Mapping[str, float] = {"llama": 0.781, "qwen": 0.0775}

# Of the models that are known by name; a test reads them back.
SHAPES: Mapping[str, tuple[str, int]] = {"tiny": ("llama", 128), smollm2.NAME: ("llama", 576)}


def rule_rate(family: str, hidden_size: int, *, lora: bool = True) -> float:
    """The learning rate, to two digits.

    Args:
        family: `model_type` of the model's configuration.
        hidden_size: the width of its residual stream.
        lora: whether an adapter is trained; False for all weights, whose rate is a tenth.

    Raises:
        InputError: a family without a published power.
    """
    power = next((power for name, power in POWERS.items() if family.lower().startswith(name)), None)
    if power is None:
        raise InputError(
            f"learning_rate: rule is calibrated for {' and '.join(POWERS)} models, not for {shown(family)}: give a "
            "number, or leave it out and let auto find one"
        )
    base = FULL_RATE * (LORA_FACTOR if lora else 1.0)
    return float(f"{base * (WIDTH / hidden_size) ** power:.2g}")


def rate_of(model: str, *, lora: bool = True) -> float:
    """The rule's rate for a model: a name, or a local Hugging Face folder.

    Raises:
        InputError: the folder's config.json is missing or names no width, or as `rule_rate`.
    """
    if model in SHAPES:
        return rule_rate(*SHAPES[model], lora=lora)
    path = Path(usable_path(model)) / "config.json"
    config: Any = read_json(path)
    inner = config.get("text_config") if isinstance(config, dict) else None
    parts = [part for part in (config, inner) if isinstance(part, dict)]
    family = next((part["model_type"] for part in parts if isinstance(part.get("model_type"), str)), "")
    width = next((part["hidden_size"] for part in parts if is_number(part.get("hidden_size"))), 0)
    if width < 1:
        raise InputError(f"{path}: names no hidden_size, which learning_rate: rule needs: give a number")
    return rule_rate(family, int(width), lora=lora)
