"""TRL, transformers' Trainer and nextrl itself: `RUN/checkpoint-N/adapter_model.safetensors`.

Read from trl 1.16.0 and transformers 5.24.0 (`trainer_utils.PREFIX_CHECKPOINT_DIR`). The adapter that
`trainer.save_model` leaves in RUN itself carries no step and is not a checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from nextrl.checkpoints.dense import holds_full_model
from nextrl.checkpoints.layouts.listing import TRAINER_FOLDER, numbered
from nextrl.checkpoints.run import Layout, Located


def find(run: Path) -> Layout:
    """Checkpoints of `run` in this layout.

    A `checkpoint-N` without adapter files counts too (as a broken one), unless it holds a full model.
    """
    folders, problems = numbered(run, TRAINER_FOLDER)
    located = tuple(Located(step, folder) for step, folder in folders if not holds_full_model(folder))
    return Layout("trl", located, tuple(problems))
