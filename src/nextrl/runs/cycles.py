"""Leaps at named steps of a running arm, any number of cycles: train, leap, train on (predict-extend, repeated).

A leap starts at a checkpoint: the trainer saves, then the adapter moves. So the checkpoint of a leap's step holds the
run as it was before, and a run that is stopped in the middle of a fit or a search repeats it to the bit. The
trajectory of a cycle begins with the adapter that the leap before it left.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nextrl.checkpoints.layouts.listing import trainer_checkpoints
from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.ranks import Ranks
from nextrl.engines.trl.rollouts import Row, TrainerRollouts
from nextrl.errors import InputError
from nextrl.leaps.leap import leap
from nextrl.runs.arm import ArmRecord, LeapSettings
from nextrl.runs.single_leap import LeapRecord, SingleLeap
from nextrl.trajectory.trajectory import Trajectory


class Cycles(TrainerCallback):
    """Leap by a registry method at each of `settings.at`.

    Args:
        settings: method, horizon, candidates, steps.
        record: the arm's; `cycles` holds what each leap was.
        leaps: folder for the adapters that leaps leave, one a cycle (`leap-N`).
        validation: held-out rows that alpha is chosen on.
        measure: called with (step, model, optimizer) right after a leap that moved the adapter.

    Attributes:
        trainer: set after the trainer was built.
    """

    def __init__(
        self,
        settings: LeapSettings,
        record: ArmRecord,
        leaps: Path,
        validation: Sequence[Row],
        seed: int,
        measure: Callable[[int, Any, Any], None],
    ) -> None:
        self._settings, self._record, self._leaps = settings, record, leaps
        self._validation, self._seed, self._measure = validation, seed, measure
        self.trainer: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A run that goes on from a leap's step leaps there: its checkpoint is from before."""
        if state.global_step in self._settings.at:
            self._leap(Path(args.output_dir), state.global_step, kwargs["model"], kwargs["optimizer"])

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leap once the checkpoint is there, unless the run is about to stop: then it leaps when it goes on."""
        if state.global_step in self._settings.at and not control.should_training_stop:
            self._leap(Path(args.output_dir), state.global_step, kwargs["model"], kwargs["optimizer"])

    def _leap(self, run: Path, step: int, model: Any, optimizer: Any) -> None:
        ranks = Ranks(self.trainer.accelerator)
        ranks.wait()  # process 0 has only just written the checkpoint
        try:
            if ranks.leader:  # half of a leap, of a killed process
                shutil.rmtree(self._leaps / f"leap-{step}", ignore_errors=True)
            done = (
                self._searched(run, step, model) if self._settings.search else self._fixed(run, step, model)
            )
        except InputError as error:
            # Found out in the middle of a run: an adapter that did not move is no reason to throw the run away.
            done = {"step": step, "alpha": 0.0, "horizon": self._settings.horizon, "reason": str(error)}
        rate = float(getattr(optimizer, "optimizer", optimizer).param_groups[0]["lr"])
        self._record.cycles.append({**done, "method": self._settings.method, "learning_rate": rate})
        if done["alpha"]:
            self._measure(step, model, optimizer)

    def _searched(self, run: Path, step: int, model: Any) -> dict[str, Any]:
        settings = self._settings
        single = SingleLeap(
            self._trajectory(run, step),  # type: ignore[arg-type]  # any source that Trajectory.load takes
            step,
            settings.method,
            self._rows(step),
            self._leaps / f"leap-{step}",
            horizon=settings.horizon,
            alphas=settings.alphas,
            prompts=settings.prompts,
            seed=self._seed,
        )
        single.trainer = self.trainer
        # It leaps where training begins at its step, which is where this run stands.
        single.on_train_begin(self.trainer.args, self.trainer.state, self.trainer.control, model=model)
        assert single.record is not None
        return single.record.as_dict()

    def _rows(self, step: int) -> list[Row]:
        """Other validation rows each cycle, as long as they last."""
        count = min(self._settings.prompts, len(self._validation))
        offset = self._settings.at.index(step) * count
        return [self._validation[(offset + i) % len(self._validation)] for i in range(count)]

    def _fixed(self, run: Path, step: int, model: Any) -> dict[str, Any]:
        settings = self._settings
        began = time.perf_counter()
        traj = Trajectory.load(self._trajectory(run, step))
        fitted = leap(traj, settings.method, settings.horizon, settings.alphas[0], seed=self._seed)
        ranks = Ranks(self.trainer.accelerator)
        LiveAdapter(model).write(ranks.same(fitted.leap_state()))
        rollouts = TrainerRollouts(self.trainer)
        rollouts.mark_weights_changed()
        rollouts.drop_buffered()
        if ranks.leader:
            fitted.save_adapter(self._leaps / f"leap-{step}")
        seconds = time.perf_counter() - began
        return LeapRecord(
            step, fitted.alpha, settings.horizon, {}, float(fitted.discarded), seconds, 0.0, 0
        ).as_dict()

    def _trajectory(self, run: Path, step: int) -> Mapping[int, Path]:
        """Checkpoints since the last leap that moved the adapter, which stands where that leap left it."""
        moved = [int(c["step"]) for c in self._record.cycles if c["alpha"]]
        start = max(moved, default=0)
        found = {s: run / f"checkpoint-{s}" for s in self._steps(run) if start < s <= step}
        return {start: self._leaps / f"leap-{start}", **found} if moved else found

    @staticmethod
    def _steps(run: Path) -> list[int]:
        return [step for step, _ in trainer_checkpoints(run)]


def spent(record: ArmRecord) -> tuple[int, float]:
    """(completions, seconds) that an arm's cycles have taken."""
    completions = sum(int(c.get("search_completions", 0)) for c in record.cycles)
    seconds = sum(
        float(c.get("search_seconds", 0.0)) + float(c.get("fit_seconds", 0.0)) for c in record.cycles
    )
    return completions, seconds
