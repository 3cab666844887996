"""The clock and the examiner of an arm: accuracy at the steps asked for, and what it had cost by then.

The clock runs over training, checkpoints, searches and fits; it stands still during evaluations, which measure the
run and are no part of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nextrl.engines.decision_log import Costs
from nextrl.engines.optimizers import unwrapped
from nextrl.engines.schedules import rate_of
from nextrl.runs.arm import ArmRecord, ArmSettings, Progress
from nextrl.tasks import base
from nextrl.tasks.evaluate import Accuracy, evaluate


class Meter(TrainerCallback):
    """Evaluates at the given steps and keeps the arm's clock.

    Args:
        arm: whose `eval_at` and `eval_prompts` count.
        tokenizer: of its model.
        record: is filled in; one that already holds evaluations is continued.
        before: completions and seconds that were spent before the first step (by the arm this one goes on from).

    Attributes:
        costs: what deciding on leaps has taken so far.
        cooled: share of the rate that the end of the run left the latest step.
    """

    def __init__(
        self, arm: ArmSettings, tokenizer: Any, record: ArmRecord, before: tuple[int, float] = (0, 0.0)
    ) -> None:
        self._arm, self._tokenizer, self.record = arm, tokenizer, record
        self._task = base.get(arm.task)
        self._completions, self._seconds = before
        if record.steps:
            self._seconds = record.train_seconds
        self._offset: int | None = 0 if record.steps else None
        self._mark: float | None = None
        self.costs: Callable[[], Costs] = Costs
        self.cooled: Callable[[], float] = lambda: 1.0
        self.progress: Progress = lambda name, step: None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the arm where it starts, leap included; one that was stopped has been measured there."""
        self.tick()
        if self._offset is None:
            self._offset = state.global_step
            self.evaluate(state.global_step, kwargs["model"], kwargs["optimizer"])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the rate of the step where it is another one than before; `LeapCallback`, asked first, has set it."""
        rate = rate_of(kwargs["optimizer"])
        if self.record.rates[-1:] != [rate]:
            self.record.rate_steps.append(state.global_step + 1)
            self.record.rates.append(rate)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Advance the clock; evaluate if due."""
        self.tick()
        if state.global_step in self._arm.eval_at:
            self.evaluate(state.global_step, kwargs["model"], kwargs["optimizer"])
        self.progress(self._arm.name, state.global_step)

    def tick(self) -> None:
        """Bring the record's clock up to now."""
        now = time.perf_counter()
        if self._mark is None:
            # A leap at the very step that training begins at was made before this clock was started.
            self._seconds += self.costs().search_seconds - self.record.search_seconds
        else:
            self._seconds += now - self._mark
        self._mark = now
        self.record.train_seconds = self._seconds

    def evaluate(self, step: int, model: Any, optimizer: Any) -> None:
        """Add one evaluation to the record, with the clock stopped."""
        self.tick()
        with evaluation_weights(optimizer):
            result: Accuracy = evaluate(
                model,
                self._tokenizer,
                self._task,
                prompts=self._arm.eval_prompts,
                max_new_tokens=self._arm.train.max_completion_length,
            )
        record = self.record
        record.test_prompts = result.n
        record.steps.append(step)
        record.accuracy.append(result.accuracy)
        record.se.append(result.se)
        record.greedy.append(result.greedy if result.greedy is not None else float("nan"))
        trained = (step - (self._offset or 0)) * self._arm.train.completions_per_step
        record.completions.append(self._completions + trained + self.costs().search_completions)
        record.seconds.append(round(self._seconds, 3))
        record.learning_rate.append(rate_of(optimizer) * self.cooled())
        self._mark = time.perf_counter()


@contextmanager
def evaluation_weights(optimizer: Any) -> Iterator[None]:
    """Inside, the model holds the averaged weights that schedule-free optimizers keep aside."""
    inner = unwrapped(optimizer)
    if not (hasattr(inner, "eval") and hasattr(inner, "train")):
        yield
        return
    inner.eval()
    try:
        yield
    finally:
        inner.train()
