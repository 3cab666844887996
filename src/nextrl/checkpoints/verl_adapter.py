"""`python -m nextrl.checkpoints.verl_adapter RUN`: write the adapters in a verl run's FSDP shards where they are found.

verl's own merger rounds to bf16, writes the whole model, and cannot read shards of an adapter alone
(`actor.checkpoint.save_lora_only`). Here the tensors keep their dtype, and nothing else is written.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nextrl.checkpoints.adapter import CONFIG, WEIGHTS
from nextrl.checkpoints.atomic import write_json, write_tensors
from nextrl.checkpoints.fsdp_shards import has_shards, read_shards
from nextrl.checkpoints.layouts.listing import numbered
from nextrl.checkpoints.layouts.verl import ADAPTER, FOLDER, META
from nextrl.errors import InputError, one_line
from nextrl.files import MAX_CONFIG, is_number, read_json, usable_path


def write_adapter(actor: Path) -> Path:
    """Write the adapter in the shards of an `actor` folder beside them.

    verl stores rank and alpha alone: whoever trained with `use_rslora` adds that to `adapter_config.json`.

    Returns:
        The adapter's folder.

    Raises:
        InputError: as `read_shards`, or there is no `lora_train_meta.json`, by which verl says alpha.
    """
    meta = read_json(actor / META, MAX_CONFIG)
    if not isinstance(meta, dict) or not all(is_number(meta.get(key)) for key in ("r", "lora_alpha")):
        raise InputError(f"{actor / META}: does not say r and lora_alpha; restore it")
    tensors, out = read_shards(actor), actor / ADAPTER
    modules = sorted({name.split(".lora_")[0].rsplit(".", 1)[-1] for name in tensors})
    config = {
        "peft_type": "LORA",
        "task_type": meta.get("task_type"),
        "bias": "none",
        "target_modules": modules,
    }
    out.mkdir(exist_ok=True)
    write_json(out / CONFIG, {**config, "r": meta["r"], "lora_alpha": meta["lora_alpha"]})
    write_tensors(out / WEIGHTS, tensors)
    return out


def main(runs: list[str]) -> int:
    """Write the adapters that are not there yet, of all checkpoints of these runs; the exit code."""
    try:
        for run in runs:
            for _, folder in numbered(usable_path(run), FOLDER)[0]:
                actor = folder / "actor"
                if has_shards(actor) and not (actor / ADAPTER / WEIGHTS).is_file():
                    sys.stdout.write(f"{write_adapter(actor)}\n")
    except InputError as error:
        sys.stderr.write(f"{one_line(str(error))}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
