"""What makes a run survive being killed: checkpoints that say when they are whole, and the last of them.

A trainer writes a checkpoint file by file, so a killed one leaves half a folder. `Resumable` writes
`nextrl_checkpoint.json` into it last of all: the size of each file, and the arm's record so far. A folder without it,
or with another size, is no checkpoint and is removed. Where a run was told to stop between two saves, its checkpoint
is kept in `stopped/`, beside the trajectory and not in it, so that a leap sees the same trajectory as ever.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nextrl.checkpoints.atomic import write_json
from nextrl.checkpoints.layouts.listing import trainer_checkpoints
from nextrl.engines.ranks import launched
from nextrl.engines.trl.seam import draw_orders_again
from nextrl.runs.arm import ArmRecord

MARKER = "nextrl_checkpoint.json"
STOPPED = "stopped"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder, its step, and the arm's record when it was written."""

    folder: Path
    step: int
    record: ArmRecord


def read(folder: Path) -> Checkpoint | None:
    """The checkpoint in a folder `checkpoint-N`, None where any part of it is missing."""
    try:
        value = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        if any((folder / name).stat().st_size != size for name, size in value["files"].items()):
            return None
        return Checkpoint(folder, int(value["step"]), ArmRecord.model_validate(value["record"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Whatever is wrong with it, the run goes on from the checkpoint before.
        return None


def last_checkpoint(
    trajectory: Path, stopped: Path, on_grid: Callable[[int], bool], say: Callable[[str], None]
) -> Checkpoint | None:
    """The last whole checkpoint of a run; incomplete ones are removed, and `say` is told of each.

    Args:
        trajectory: folder of the run's checkpoints.
        stopped: folder for one that was written between two saves.
        on_grid: whether a checkpoint of that step belongs into the trajectory.
        say: told one line about each folder that is removed.
    """
    found: list[Checkpoint] = []
    for parent in (trajectory, stopped):
        for step, folder in trainer_checkpoints(parent):
            checkpoint = read(folder)
            if checkpoint is None:
                say(f"checkpoint {step} is incomplete: removed")
                shutil.rmtree(folder)
            else:
                found.append(checkpoint)
    if not found:
        return None
    last = max(found, key=lambda c: c.step)
    return last if on_grid(last.step) or last.folder.parent == stopped else set_aside(last, stopped)


def set_aside(checkpoint: Checkpoint, stopped: Path) -> Checkpoint:
    """Move a checkpoint out of the trajectory into `stopped`, in place of any that is there."""
    shutil.rmtree(stopped, ignore_errors=True)
    stopped.mkdir(parents=True)
    folder = checkpoint.folder.rename(stopped / checkpoint.folder.name)
    return Checkpoint(folder, checkpoint.step, checkpoint.record)


class Resumable(TrainerCallback):
    """Marks checkpoints as whole, stops a run that was asked to, and puts the order of prompts where it was.

    Args:
        record: the arm's record, written into each checkpoint.
        update: brings the record up to date.
        before_last: called with the model and the optimizer at the last step, before its checkpoint counts as whole.
        stop_asked: whether to save and stop after this step.
        stopped: where a checkpoint between two saves was set aside; removed when a later one is whole.
    """

    def __init__(
        self,
        record: ArmRecord,
        update: Callable[[TrainerState], None],
        before_last: Callable[[Any, Any], None],
        stop_asked: Callable[[], bool],
        stopped: Path,
    ) -> None:
        self._record, self._update, self._before_last = record, update, before_last
        self._stop_asked, self._stopped = stop_asked, stopped

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the orders of the epochs that are over once more.

        TRL's sampler shuffles with a generator of its own that no checkpoint holds: without this, the second epoch of
        a resumed run would have the first one's order.
        """
        loader = kwargs["train_dataloader"]
        per_epoch = max(1, len(loader) // args.gradient_accumulation_steps)
        draw_orders_again(loader, state.global_step // per_epoch)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop if asked to, unless rollouts are left that the next step is to train on.

        They are in no checkpoint: a run resumed there would sample others.
        """
        between = state.global_step % int(getattr(args, "steps_per_generation", 1) or 1)
        if not between and self._stop_asked():
            control.should_save = control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Mark the checkpoint that the trainer and every callback before this one have written, on any process."""
        launched().wait()
        if not args.should_save:
            return
        if state.global_step == args.max_steps:
            self._before_last(kwargs["model"], kwargs["optimizer"])
        self._update(state)
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        files = {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.name != MARKER}
        record = self._record.model_dump(mode="json")
        write_json(folder / MARKER, {"step": state.global_step, "files": files, "record": record})
        shutil.rmtree(self._stopped, ignore_errors=True)
