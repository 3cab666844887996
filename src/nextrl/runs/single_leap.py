"""One leap of a named method at a named step, inside a trainer: the paper's predict-extend, and its rivals'.

The trajectory is read from the checkpoints on disk, the method is fitted, alpha is chosen on held-out prompts, the
adapter moves in place at its own rank, and training goes on with Adam's moments and the schedule as they were.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.ranks import Ranks
from nextrl.engines.trl.rollouts import Row, TrainerRollouts
from nextrl.judge.paired_search import grid_search
from nextrl.leaps.leap import Leap, leap
from nextrl.runs.arm import WIDE_ALPHAS
from nextrl.trajectory.trajectory import Trajectory


@dataclass(frozen=True)
class LeapRecord:
    """What a leap was and what it cost.

    Attributes:
        step: T.
        alpha: the one chosen on validation prompts; 0 where none beat staying put.
        horizon: h in steps.
        scores: validation accuracy by alpha.
        discarded: share of the leap's squared norm that did not fit into the adapter's rank.
        fit_seconds, search_seconds, search_completions: the price.
    """

    step: int
    alpha: float
    horizon: int
    scores: dict[str, float]
    discarded: float
    fit_seconds: float
    search_seconds: float
    search_completions: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


class SingleLeap(TrainerCallback):
    """Leap once when training begins at (or reaches) step `at`.

    Args:
        run: directory whose checkpoints up to `at` are the trajectory.
        method: an extrapolator's name.
        validation: held-out rows (`prompt` and the reward's columns) that alpha is chosen on.
        trainer: set after the trainer was built (`leap.trainer = trainer`).
        out: where the leap is written as a PEFT adapter.

    Attributes:
        record: what was done, None until then.
    """

    def __init__(
        self,
        run: Path,
        at: int,
        method: str,
        validation: Sequence[Row],
        out: Path,
        *,
        horizon: int = 50,
        alphas: Sequence[float] = WIDE_ALPHAS,
        prompts: int = 128,
        seed: int = 0,
    ) -> None:
        self._run, self._at, self._method, self._out = run, at, method, out
        self._validation = list(validation)[:prompts]
        self._horizon, self._alphas, self._seed = horizon, tuple(alphas), seed
        self.trainer: Any = None
        self.record: LeapRecord | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leap before the first step of a run resumed at `at`."""
        if state.global_step == self._at and self.record is None:
            self._leap(kwargs["model"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Have the trainer save when the run reaches `at`: a leap starts at a checkpoint."""
        if state.global_step == self._at and self.record is None:
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leap once the checkpoint of step `at` is there; it holds the run as it was before."""
        if state.global_step == self._at and self.record is None:
            self._leap(kwargs["model"])

    def _leap(self, model: Any) -> None:
        ranks = Ranks(self.trainer.accelerator)
        ranks.wait()  # process 0 has only just written the last checkpoint
        traj = Trajectory.load(self._run).upto(self._at)
        began = time.perf_counter()
        fitted = leap(traj, self._method, self._horizon, seed=self._seed)
        fit_seconds = time.perf_counter() - began
        adapter, rollouts = LiveAdapter(model), TrainerRollouts(self.trainer)
        before = adapter.read()

        def score(alpha: float, start: int, stop: int) -> Tensor:
            adapter.write(ranks.same(_state(fitted, alpha)) if alpha else before)
            return rollouts.rewards(self._validation[start:stop], self._seed + self._at)

        began = time.perf_counter()
        scores = grid_search(score, self._alphas, len(self._validation))
        alpha = scores.best(level=0.0)
        chosen = replace(fitted, alpha=alpha)
        adapter.write(ranks.same(_state(fitted, alpha)) if alpha else before)
        rollouts.mark_weights_changed()
        rollouts.drop_buffered()
        if alpha and ranks.leader:
            chosen.save_adapter(self._out)
        self.record = LeapRecord(
            step=self._at,
            alpha=alpha,
            horizon=self._horizon,
            scores={f"{a:g}": m for a, m in scores.means().items()},
            discarded=float(chosen.discarded) if alpha else 0.0,
            fit_seconds=fit_seconds,
            search_seconds=time.perf_counter() - began,
            search_completions=scores.completions(),
        )


def _state(fitted: Leap, alpha: float) -> dict[str, torch.Tensor]:
    """The adapter after a leap of `alpha`, at the rank it has, in the gauge that Adam's moments belong to."""
    return replace(fitted, alpha=alpha).leap_state()
