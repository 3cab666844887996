"""`python -m nextrl.checkpoints.verl_adapter RUN`: write the adapters in a verl run's FSDP shards where they are found.

verl's own merger rounds to bf16, writes the whole model, and cannot read shards of an adapter alone
(`actor.checkpoint.save_lora_only`). Here the tensors keep their dtype, and nothing else is written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nextrl.checkpoints.adapter import CONFIG, NOTE, PICKLE, WEIGHTS, arrange, finite
from nextrl.checkpoints.atomic import replacing_folder, write_json, write_tensors
from nextrl.checkpoints.fsdp_shards import has_shards, read_shards, written_out
from nextrl.checkpoints.layouts.listing import numbered
from nextrl.checkpoints.layouts.verl import ADAPTER, FOLDER, META
from nextrl.checkpoints.lora_settings import AdapterConfig
from nextrl.checkpoints.tensorfile import DTYPES
from nextrl.errors import InputError, one_line, shown
from nextrl.files import MAX_CONFIG, read_object, usable_path


@dataclass(frozen=True)
class _Header:
    """Tensors that were read, as `arrange` asks for them."""

    path: Path
    entries: Mapping[str, tuple[tuple[int, ...], torch.dtype | str]]


def write_adapter(actor: Path) -> Path | None:
    """Write the adapter in the shards of an `actor` folder beside them, as a whole or not at all.

    verl stores rank and alpha alone: whoever trained with `use_rslora` adds that to `adapter_config.json`, where it
    stays when the adapter is written anew.

    Returns:
        The adapter's folder; None where it was there already, with these very values.

    Raises:
        InputError: as `read_shards`, the tensors are no adapter, or `lora_train_meta.json`, by which verl says alpha,
            does not fit them.
    """
    out, meta = actor / ADAPTER, read_object(actor / META, MAX_CONFIG)
    if not isinstance(meta.get("task_type"), str | None):
        raise InputError(f"{actor / META}: task_type is {shown(meta['task_type'])}; set it to CAUSAL_LM")
    if os.path.lexists(out) and not out.is_dir():
        raise InputError(f"{out}: is no folder, so the adapter cannot be written there; move it away")
    tensors = read_shards(actor)
    said = {
        "peft_type": "LORA",
        "task_type": meta.get("task_type"),
        "bias": "none",
        "target_modules": sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in tensors}),
        "r": meta.get("r"),
        "lora_alpha": meta.get("lora_alpha"),
    }
    config = AdapterConfig.of(said, actor / META)
    if (out / CONFIG).is_file():
        config = replace(AdapterConfig.read(out / CONFIG, said), path=actor / META)
    _check(actor, tensors, config)
    if (out / CONFIG).is_file() and written_out(actor, out / WEIGHTS, tensors):
        return None
    with replacing_folder(out, lambda entry: entry.name in (PICKLE, NOTE)) as folder:
        write_json(folder / CONFIG, config.raw)
        write_tensors(folder / WEIGHTS, tensors)
    return out


def _check(actor: Path, tensors: Mapping[str, Tensor], config: AdapterConfig) -> None:
    """Whether these tensors are an adapter of this configuration, as whoever reads it asks."""
    kinds = {
        name: t.dtype if t.dtype in DTYPES.values() else str(t.dtype).removeprefix("torch.")
        for name, t in tensors.items()
    }
    arrange(_Header(actor, {name: (tuple(t.shape), kinds[name]) for name, t in tensors.items()}), config)
    for name, tensor in tensors.items():
        if not isinstance(kinds[name], str) and not finite(tensor):
            raise InputError(f"{actor}: {shown(name)} holds NaN or infinity; the run has diverged")


def main(runs: list[str]) -> int:
    """Write the adapters of these runs that are not there, or are others than in the shards; the exit code."""
    code = 0
    for run in runs:
        try:
            actors = [folder / "actor" for _, folder in numbered(usable_path(run), FOLDER)[0]]
        except InputError as error:
            actors, code = [], _said(error)
        for actor in filter(has_shards, actors):
            # An older verl wrote the adapter too, and no metadata: there it is the adapter that counts.
            if (actor / META).is_file() or not (actor / ADAPTER / WEIGHTS).is_file():
                try:
                    if (written := write_adapter(actor)) is not None:
                        sys.stdout.write(f"{written}\n")
                except InputError as error:
                    code = _said(error)
    return code


def _said(error: InputError) -> int:
    sys.stderr.write(f"{one_line(str(error))}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
