"""TRL, transformers' Trainer and nextrl itself: `RUN/checkpoint-N/adapter_model.safetensors`.

Read from trl 1.16.0 and transformers 5.24.0 (`trainer_utils.PREFIX_CHECKPOINT_DIR`). The adapter that
`trainer.save_model` leaves in RUN itself carries no step and is not a checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from nextrl.checkpoints.layouts.adapters import adapters_among
from nextrl.checkpoints.layouts.listing import TRAINER_FOLDER, numbered
from nextrl.checkpoints.run import Layout


def find(run: Path) -> Layout:
    """Checkpoints of `run` in this layout."""
    folders, problems = numbered(run, TRAINER_FOLDER)
    located, models = adapters_among(folders)
    return Layout("trl", located, (*problems, *models))
