"""`LeapCallback`: leaps in place inside a user's own TRL trainer.

One line in an existing script: `trainer.add_callback(nextrl.LeapCallback(every=10, method="auto"))`. At the end of
each window it looks at what is free (persistence, training rewards), pays for a paired search on held-out prompts
where the controller asks for it, moves the LoRA factors in place and scales the learning rate. Adam's moments, the
scheduler's shape, base weights and a reference adapter stay as they are.
"""

from __future__ import annotations

import inspect
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nextrl.adapter import LiveAdapter, State, along, cosine
from nextrl.controller import Controller, ControllerConfig, Decision, Window
from nextrl.engines.trl_rollouts import Row, TrainerRollouts, last_rewards, set_rate_factor
from nextrl.errors import InputError
from nextrl.lowrank import LowRank

log = logging.getLogger(__name__)


@dataclass
class Costs:
    """What the callback has cost so far: completions generated and seconds spent, searches included."""

    search_completions: int = 0
    search_seconds: float = 0.0


@dataclass
class _Memory:
    """What is remembered between windows."""

    start: State
    previous: list[LowRank] | None = None
    rewards: list[float] = field(default_factory=list)
    offset: int = 0


class LeapCallback(TrainerCallback):
    """Persistence screens, a paired search decides, the adapter leaps in place, the rate follows.

    Args:
        every: optimizer steps a window.
        method: "auto".
        validation: rows (a dict or a datasets.Dataset, with `prompt` and the reward functions' columns) to score
            candidates on. Without it the trainer's eval_dataset serves, else rows held back from its training
            dataset.
        prompts: held-out prompts a candidate is scored on.
        config: the controller's other dials.
        adapt_lr: let the learning rate follow what was validated.
        leaps: move the weights; False keeps the search and the learning rate only.
        seed: seeds the search's rollouts.
        trainer: the trainer, where it cannot be found by itself (a trainer that wraps another).

    Attributes:
        decisions: every window's decision, in order, as written to `nextrl_decisions.jsonl`.
        costs: what has been spent.
    """

    def __init__(
        self,
        every: int = 10,
        method: str = "auto",
        *,
        validation: Sequence[Row] | Any = None,
        prompts: int = 64,
        config: ControllerConfig | None = None,
        adapt_lr: bool = True,
        leaps: bool = True,
        seed: int = 0,
        trainer: Any = None,
    ) -> None:
        if method != "auto":
            raise InputError(f"method '{method}' is unknown to the callback: choose auto")
        if prompts < 2:
            raise InputError(f"prompts must be at least 2 to compare candidates, not {prompts}")
        self._config = config or ControllerConfig(every=every)
        self._controller = Controller(self._config)
        self._validation = validation
        self._prompts = prompts
        self._adapt_lr, self._leaps, self._seed = adapt_lr, leaps, seed
        self._trainer = trainer
        self.decisions: list[dict[str, Any]] = []
        self.costs = Costs()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the trainer, the adapter and the validation rows."""
        self._trainer = self._trainer or _calling_trainer(self)
        self._rollouts = TrainerRollouts(self._trainer)
        self._adapter = LiveAdapter(kwargs["model"])
        self._rows = self._validation_rows()
        self._memory = _Memory(self._adapter.read())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the step's reward; at the end of a window decide and act."""
        self._memory.rewards += last_rewards(self._trainer, 1)
        if state.global_step % self._config.every:
            return
        began = time.perf_counter()
        decision = self._decide(state.global_step, kwargs["optimizer"])
        self._act(decision, kwargs["optimizer"], kwargs["lr_scheduler"])
        self.costs.search_seconds += time.perf_counter() - began
        self._record(decision, state.global_step, kwargs["optimizer"])

    def _decide(self, step: int, optimizer: Any) -> Decision:
        memory = self._memory
        end = self._adapter.read()
        moved = self._adapter.displacement(memory.start, end)
        persistence = None if memory.previous is None else cosine(moved, memory.previous)
        memory.previous = moved
        rate = float(optimizer.param_groups[0]["lr"])
        window = Window(step, persistence, tuple(memory.rewards), rate, step * self._per_step())
        rows = [self._rows[(memory.offset + i) % len(self._rows)] for i in range(self._prompts)]

        def score(alpha: float) -> Tensor:
            self._adapter.write(along(memory.start, end, alpha))
            try:
                return self._rollouts.rewards(rows, self._seed + step)
            finally:
                self._adapter.write(end)

        decision = self._controller.step(window, score)
        if decision.completions:
            memory.offset += self._prompts
        return decision

    def _per_step(self) -> int:
        """Fresh completions a step, over all processes; a buffered generation batch counts once."""
        args = self._trainer.args
        sampled = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return max(1, int(sampled) // int(getattr(args, "num_iterations", 1)))

    def _act(self, decision: Decision, optimizer: Any, scheduler: Any) -> None:
        if decision.alpha and self._leaps:
            self._adapter.write(along(self._memory.start, self._adapter.read(), decision.alpha))
            self._rollouts.mark_weights_changed()
            self._rollouts.drop_buffered()
        if self._adapt_lr and decision.rate_factor != 1.0:
            set_rate_factor(optimizer, scheduler, decision.rate_factor)
        self._memory.start = self._adapter.read()
        self._memory.rewards = []

    def _record(self, decision: Decision, step: int, optimizer: Any) -> None:
        self.costs.search_completions = self._rollouts.completions
        rate = float(optimizer.param_groups[0]["lr"])
        entry = {
            "step": step,
            "alpha": decision.alpha,
            "learning_rate": rate,
            "excess": decision.excess,
            "reason": decision.reason,
            "scores": {f"{a:g}": s for a, s in decision.scores.items()},
            "cost_completions": self.costs.search_completions,
        }
        self.decisions.append(entry)
        metrics = self._trainer._metrics["train"]
        metrics["leap/alpha"].append(decision.alpha)
        metrics["leap/lr"].append(rate)
        metrics["leap/cost_completions"].append(float(self.costs.search_completions))
        if decision.excess is not None:
            metrics["leap/excess_persistence"].append(decision.excess)
        if self._trainer.args.should_save:
            path = Path(self._trainer.args.output_dir) / "nextrl_decisions.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps(entry) + "\n")

    def _validation_rows(self) -> Sequence[Row]:
        given = (
            self._validation if self._validation is not None else getattr(self._trainer, "eval_dataset", None)
        )
        rows: Sequence[Row] = given if given is not None else _hold_back(self._trainer, self._prompts)
        if len(rows) < 2:
            raise InputError(f"validation has {len(rows)} rows: give at least 2, better {4 * self._prompts}")
        return rows


def _hold_back(trainer: Any, prompts: int) -> Sequence[Row]:
    """Rows that the trainer will not train on: the last of its dataset, taken out of the sampler's range.

    Raises:
        InputError: the dataset is a stream, or too small to give any away.
    """
    dataset, loader = trainer.train_dataset, trainer.callback_handler.train_dataloader
    batches: Any = getattr(loader, "batch_sampler", None)
    sampler: Any = getattr(batches, "sampler", getattr(loader, "sampler", None))
    if not hasattr(dataset, "__len__") or not hasattr(sampler, "num_samples"):
        raise InputError(
            "the training dataset cannot be split: give LeapCallback(validation=rows) held-out rows"
        )
    held = min(8 * prompts, len(dataset) // 10)
    if held < 2:
        raise InputError(f"the training dataset has {len(dataset)} rows: give LeapCallback(validation=rows)")
    sampler.num_samples = len(dataset) - held
    log.info("held back the last %d of %d training rows to validate leaps", held, len(dataset))
    return [dataset[i] for i in range(len(dataset) - held, len(dataset))]


def _calling_trainer(callback: TrainerCallback) -> Any:
    """The trainer whose callback list holds this callback, found on the call stack.

    Transformers hands a callback the model and the optimizer, never the trainer; scoring candidates needs the
    trainer's own generation and rewards.
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        handler = getattr(owner, "callback_handler", None)
        if handler is not None and callback in getattr(handler, "callbacks", []):
            return owner
        frame = frame.f_back
    raise InputError("LeapCallback found no trainer: pass it as LeapCallback(trainer=trainer)")
