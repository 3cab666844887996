"""What transformers does not tell a callback, looked up on the call stack: its trainer, its checkpoint.

`nextrl.attach(trainer)` and `LeapCallback(trainer=...)` name the trainer, so it is not looked up then.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from nextrl.checkpoints.layouts.listing import trainer_checkpoint
from nextrl.errors import InputError


def calling_trainer(callback: Any) -> Any:
    """The trainer whose callback list holds this callback.

    Transformers hands a callback the model and the optimizer, never the trainer; scoring candidates needs the
    trainer's own generation and rewards.

    Raises:
        InputError: there is none among the callers.
    """
    for frame in _frames():
        owner = frame.f_locals.get("self")
        handler = getattr(owner, "callback_handler", None)
        if handler is not None and callback in getattr(handler, "callbacks", []):
            return owner
    raise InputError(
        "LeapCallback found no trainer: use nextrl.attach(trainer, ...) or LeapCallback(trainer=trainer)"
    )


def resumed_from(output_dir: Path, step: int) -> Path:
    """The checkpoint that the running `Trainer.train` was told to go on from.

    Transformers keeps it in a local variable of `train` and tells callbacks the step only; where it is not found, it is
    the trainer's own checkpoint of that step.
    """
    for frame in _frames():
        found = frame.f_locals.get("resume_from_checkpoint")
        if isinstance(found, str | Path):
            return Path(found)
    return trainer_checkpoint(output_dir, step)


def _frames() -> Iterator[FrameType]:
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back
