"""TRL, transformers' Trainer and nextrl itself: `RUN/checkpoint-N/adapter_model.safetensors`.

Read from trl 1.16.0 and transformers 5.24.0 (`trainer_utils.PREFIX_CHECKPOINT_DIR`). The adapter that
`trainer.save_model` leaves in RUN itself carries no step and is not a checkpoint.
"""

from __future__ import annotations

import re
from pathlib import Path

from nextrl.checkpoints.adapter import CONFIG, PICKLE, WEIGHTS
from nextrl.checkpoints.run import Layout, Located

_FOLDER = re.compile(r"^checkpoint-(\d+)$")


def find(run: Path) -> Layout:
    """Checkpoints of `run` in this layout; a `checkpoint-N` without any adapter file still counts (as broken)."""
    located = []
    for folder in run.iterdir():
        match = _FOLDER.match(folder.name)
        if match and folder.is_dir() and not _full_model(folder):
            located.append(Located(int(match[1]), folder))
    return Layout("trl", tuple(sorted(located)))


def _full_model(folder: Path) -> bool:
    """A checkpoint of all weights (no LoRA): the dense reader's."""
    if any((folder / name).exists() for name in (CONFIG, WEIGHTS, PICKLE)):
        return False
    return (folder / "model.safetensors").exists() or (folder / "model.safetensors.index.json").exists()
