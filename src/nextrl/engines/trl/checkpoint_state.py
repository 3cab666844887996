"""What a session leaves in a TRL trainer's checkpoints, and what a resumed one finds there.

When it is written is the callback's affair, how it lies there `engines.memory`'s.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from nextrl.checkpoints.layouts.listing import trainer_checkpoint
from nextrl.engines import memory
from nextrl.engines.session import Session
from nextrl.engines.trl.live_run import LiveRun
from nextrl.judge import decision_file
from nextrl.say import say

log = logging.getLogger(__name__)


class CheckpointState:
    """The state of one session beside the trainer's own files.

    Args:
        run: the training run, as TRL has it.
        session: its windows.

    Attributes:
        delivered: the step whose checkpoint is whole; None before any.
    """

    def __init__(self, run: LiveRun, session: Session) -> None:
        self._run, self._session = run, session
        self.delivered: int | None = None

    def prepare(self, args: TrainingArguments, step: int) -> None:
        """Write down what belongs into the checkpoint that the trainer is about to write."""
        weights = self._run.adapter.fingerprint()  # on every process: pieces are put together for it
        if args.should_save:
            # Before the trainer's own files: a kill in between must not leave a checkpoint without its memory.
            known = {**self._values(), "weights": weights}
            memory.write_pending(Path(args.output_dir), step, self._session.memory, known)

    def deliver(self, args: TrainingArguments, step: int) -> None:
        """Put the memory into the checkpoint that the trainer has just written."""
        folder = trainer_checkpoint(Path(args.output_dir), step)
        if args.should_save and folder.is_dir():
            # Another callback may have asked for a checkpoint after this one was asked whether there is one.
            if not memory.deliver_pending(folder):
                known = self._values()
                # Of several processes all would have to put pieces together for it.
                if self._run.ranks.world == 1:
                    known["weights"] = self._run.adapter.fingerprint()
                memory.write(folder, self._session.memory, known)
            memory.forget_pending(Path(args.output_dir))
        self.delivered = step

    def resume(self, folder: Path, step: int, writes: bool) -> None:
        """Go on from the checkpoint of a step, with its state where it has one that is its own.

        Args:
            writes: whether this process is one that writes checkpoints.

        Raises:
            InputError: see `memory.read`, and `Session.begins_late`.
        """
        self._bring_pending(folder, writes)
        session = self._session
        found = memory.read(folder, session.memory.start.state)
        foreign = found is not None and not self._run.adapter.belongs(found[1].get("weights"))
        if foreign:
            found = None
        if found is not None:
            # Whatever else is of use, the rates of optimizer and schedule hold these factors.
            session.memory.factor, session.memory.cooled = found[0].factor, found[0].cooled
            self._run.tools.fresh.repeatable = found[1].get("repeatable")
            self._say_size(found[1].get("completions_per_step"), step)
            if not (folder / "scheduler.pt").is_file() and found[0].factor != 1.0:
                # A checkpoint of the model alone: the trainer has begun its schedule anew, at the configured rate.
                self._set_rate(found[0].factor, found[1].get("base_rate"))
        elif not foreign and folder.resolve().parent == Path(self._run.trainer.args.output_dir).resolve():
            session.decisions = decision_file.read(folder.parent, upto=step)
        if found is None or not session.knows(found[1]):
            session.begins_late(step)
        if found is not None and found[1]["every"] == session.policy.every:
            session.restore(*found, step)
            return
        if found is not None:
            session.go_on(found[1])
        if not session.without_memory(step) and self._run.ranks.leader:
            why = _why_anew(folder, known=found is not None, foreign=foreign)
            say(log, "%s %s; leaps begin anew with the next full window", folder, why)

    def _values(self) -> dict[str, Any]:
        """What belongs into a checkpoint beside the memory."""
        known = {"base_rate": self._run.base_rate, "repeatable": self._run.tools.fresh.repeatable}
        return {**self._session.state(), **known, "completions_per_step": self._run.completions_per_step}

    def _bring_pending(self, folder: Path, writes: bool) -> None:
        """Put what waits for the checkpoint that is resumed into it, before any process reads there."""
        run = self._run
        known = run.ranks.once(partial(memory.rival, folder))
        if known:
            known = known if run.adapter.belongs(known) else {}
        if writes and known != {}:
            memory.deliver_pending(folder)
        run.ranks.wait()

    def _say_size(self, before: int | None, step: int) -> None:
        """Say that a step is of another size than before: the trainer goes on with fewer processes without a word."""
        now = self._run.completions_per_step
        # A checkpoint of an earlier nextrl does not tell.
        if before not in (None, now) and self._run.ranks.leader:
            say(
                log,
                "a step is trained on %d completions now, and was on %d before the checkpoint (another number of "
                "processes, batch size or gradient accumulation); the learning rate stays as it was",
                now,
                before,
                step=step,
            )

    def _set_rate(self, factor: float, base: float | None) -> None:
        """Bring the rate to what a checkpoint says: what the schedule began from, or else by what it was multiplied."""
        now = self._run.base_rate
        self._run.multiply_rate(base / now if base is not None and now else factor)


def _why_anew(folder: Path, *, known: bool, foreign: bool) -> str:
    """Why the state of a checkpoint is of no use to a session that goes on from there."""
    if foreign:
        return (
            "holds the state of another run, which is left alone: it was written beside other weights than those that "
            "were loaded (a run without LeapCallback has written into the same folder since)"
        )
    if known:
        return "was saved with windows of another length"
    return (
        f"holds no state of LeapCallback ({memory.missing(folder)} not there): it was saved before the callback was "
        "added, copied before the callback had put it there (the Hub's copies are), or the run was killed while it was "
        "being saved"
    )
