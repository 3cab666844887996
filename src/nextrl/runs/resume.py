"""What makes a run survive being killed: checkpoints that say when they are whole, and the last of them.

A trainer writes a checkpoint file by file, so a killed one leaves half a folder. `Resumable` writes
`nextrl_checkpoint.json` into it last of all: the size and the SHA-256 of each file, the config it was trained by, the
arm's record so far, and a digest of its own. A folder without it, or with a file that is not as it was written, is no
checkpoint: the run goes on from the one before, and says so. Where a run was told to stop between two saves, its
checkpoint is kept in `stopped/`, beside the trajectory and not in it, so that a leap sees the same trajectory as ever.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nextrl.checkpoints.adapter import WEIGHTS
from nextrl.checkpoints.atomic import sealed, sha256, write_json, writing
from nextrl.checkpoints.layouts.listing import trainer_checkpoint, trainer_checkpoints
from nextrl.engines.ranks import launched
from nextrl.errors import InputError
from nextrl.files import in_range, read_json
from nextrl.runs.arm import ArmRecord

MARKER = "nextrl_checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder, its step, the arm's record when it was written, and the run's config.

    Attributes:
        config: empty in checkpoints of earlier versions.
    """

    folder: Path
    step: int
    record: ArmRecord
    config: Mapping[str, Any] = field(default_factory=dict)


class Damaged(NamedTuple):
    """A folder that is no whole checkpoint, and which of its files says so."""

    why: str


def read(folder: Path, *, thorough: bool = True) -> Checkpoint | Damaged:
    """The checkpoint in a folder `checkpoint-N`, or what is wrong with it.

    Args:
        thorough: compare the digest of each file; else of the adapter alone, which later leaps are fitted on.
    """
    try:
        value = read_json(folder / MARKER)
        if value.get("digest") != sealed(value)["digest"]:
            return Damaged(f"{MARKER} is not as it was written")
        for name, wanted in value["files"].items():
            file = folder / name
            if not file.is_file() or file.stat().st_size != wanted["bytes"]:
                return Damaged(f"{name} is missing or has another size")
            if (thorough or name == WEIGHTS) and sha256(file) != wanted["sha256"]:
                return Damaged(f"{name} is not as it was written")
        record = ArmRecord.model_validate(value["record"])
        config = dict(value.get("config", {}))
        return Checkpoint(folder, in_range(value["step"], "step", 0), record, config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Whatever is wrong with it, the run goes on from the checkpoint before.
        return Damaged(f"{MARKER} is missing or not readable")


def last_checkpoint(
    trajectory: Path,
    stopped: Path,
    on_grid: Callable[[int], bool],
    say: Callable[[str], None],
    check: Callable[[Checkpoint], None] = lambda found: None,
) -> Checkpoint | None:
    """The last whole checkpoint of a run; damaged ones after it are removed, and `say` is told of each.

    The newest is looked at in full, down to the digest of every file. Of those before it, on which leaps and the
    result rest, so is the adapter.

    Args:
        trajectory: folder of the run's checkpoints.
        stopped: folder for one that was written between two saves.
        on_grid: whether a checkpoint of that step belongs into the trajectory.
        say: told one line about each folder that is removed, and one about those that somebody else has removed.
        check: raises where the run must not go on from the last whole one.

    Raises:
        InputError: what `check` raises, or an adapter of an earlier checkpoint was changed after it was written;
            nothing is removed then.
    """
    folders = [found for parent in (trajectory, stopped) for found in trainer_checkpoints(parent)]
    last: Checkpoint | None = None
    unusable: list[tuple[int, Path, str]] = []
    for step, folder in sorted(folders, key=lambda found: -found.step):
        found = read(folder, thorough=last is None)
        if isinstance(found, Checkpoint):
            if last is None:
                check(found)
                last = found
        elif last is not None and folder.parent == trajectory and found.why.startswith(WEIGHTS):
            raise InputError(
                f"{folder}: {found.why}, and leaps after it were fitted on it: restore it from a copy, or remove it "
                "and the checkpoints after it, and the same command trains them anew"
            )
        else:
            unusable.append((step, folder, found.why))
    for step, folder, why in unusable:
        say(f"checkpoint {step} is incomplete or damaged ({why}): removed")
        with writing(folder):
            shutil.rmtree(folder)
    if last is None:
        return None
    there = {step for step, folder in folders if folder.parent == trajectory}
    gone = [str(step) for step in range(1, last.step) if on_grid(step) and step not in there]
    if gone:
        say(
            f"{trajectory} lacks the checkpoints of steps {', '.join(gone)}: leaps that are still to come, and the "
            "result's figures of the trajectory, do without them"
        )
    return last if on_grid(last.step) or last.folder.parent == stopped else set_aside(last, stopped)


def set_aside(checkpoint: Checkpoint, stopped: Path) -> Checkpoint:
    """Move a checkpoint out of the trajectory into `stopped`, in place of any that is there.

    The trajectory may be a link to another disk, where that is a copy: a kill leaves one of the two whole.
    """
    folder = stopped / checkpoint.folder.name
    with writing(folder):
        shutil.rmtree(stopped, ignore_errors=True)
        stopped.mkdir(parents=True)
        shutil.move(checkpoint.folder, folder)
    return replace(checkpoint, folder=folder)


class Resumable(TrainerCallback):
    """Marks checkpoints as whole, and stops a run that was asked to.

    Args:
        record: the arm's record, written into each checkpoint.
        update: brings the record up to date.
        before_last: called with the model and the optimizer at the last step, before its checkpoint counts as whole.
        stop_asked: whether to save and stop after this step.
        stopped: where a checkpoint between two saves was set aside; removed when a later one is whole.
        config: the run's config, written into each checkpoint.
    """

    def __init__(
        self,
        record: ArmRecord,
        update: Callable[[TrainerState], None],
        before_last: Callable[[Any, Any], None],
        stop_asked: Callable[[], bool],
        stopped: Path,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._record, self._update, self._before_last = record, update, before_last
        self._config = dict(config or {})
        self._stop_asked, self._stopped = stop_asked, stopped

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
        folder = trainer_checkpoint(Path(args.output_dir), state.global_step)
        files = {
            file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256(file)}
            for file in sorted(folder.rglob("*"))
            if file.name != MARKER and file.is_file()
        }
        record = self._record.model_dump(mode="json")
        known = {"step": state.global_step, "files": files, "config": self._config, "record": record}
        write_json(folder / MARKER, sealed(known))
        shutil.rmtree(self._stopped, ignore_errors=True)
