"""`LeapCallback`: leaps in place inside a user's own TRL trainer.

One line in an existing script: `trainer.add_callback(nextrl.LeapCallback(every=10, method="auto"))`. At the end of
each window it looks at what is free (persistence, training rewards), pays for a paired search on held-out prompts
where the controller asks for it, moves the LoRA factors in place and scales the learning rate. Adam's moments, the
scheduler's shape, base weights and a reference adapter stay as they are. What it remembers lies in the trainer's
checkpoints, so that a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nextrl import callback_state
from nextrl.adapter import LiveAdapter, State, along, cosine
from nextrl.atomic import write_bytes
from nextrl.callback_state import Memory
from nextrl.controller import Controller, ControllerConfig, Decision, Window
from nextrl.engines.ranks import Ranks
from nextrl.engines.trl_divergence import RolloutDivergence
from nextrl.engines.trl_rollouts import RewardMeter, Row, TrainerRollouts, set_rate_factor
from nextrl.engines.trl_validation import validation_rows
from nextrl.errors import InputError
from nextrl.search import Refused, Score

log = logging.getLogger(__name__)

DECISIONS = "nextrl_decisions.jsonl"
_STRIDE = 1_000_003  # keeps the seeds of one search's stages apart from those of any other step's


@dataclass
class Costs:
    """What the callback has cost so far: completions generated and seconds spent, searches included."""

    search_completions: int = 0
    search_seconds: float = 0.0


class LeapCallback(TrainerCallback):
    """Persistence screens, a paired search decides, the adapter leaps in place, the rate follows.

    Args:
        every: optimizer steps a window (default: the configuration's, which is 10).
        method: "auto".
        validation: rows (a list of dicts or a datasets.Dataset, with `prompt` and the reward functions' columns) to
            score candidates on. Without it the trainer's eval_dataset serves, else rows held back from its training
            dataset.
        prompts: most held-out prompts a candidate is scored on; a search begins with a quarter of them.
        config: the controller's other dials. Without it Adam's beta1 is read from the optimizer.
        adapt_lr: let the learning rate follow what was validated.
        leaps: move the weights; False keeps the search and the learning rate only.
        longest: a leap forward is refused if its completions are on average this many times as long as without it.
        seed: seeds the search's rollouts.
        trainer: the trainer, where it cannot be found by itself (a trainer that wraps another).

    Attributes:
        decisions: every window's decision, in order, as written to `nextrl_decisions.jsonl`.
        costs: what has been spent.
    """

    def __init__(
        self,
        every: int | None = None,
        method: str = "auto",
        *,
        validation: Sequence[Row] | Any = None,
        prompts: int | None = None,
        config: ControllerConfig | None = None,
        adapt_lr: bool = True,
        leaps: bool = True,
        longest: float = 2.0,
        seed: int = 0,
        trainer: Any = None,
    ) -> None:
        if method != "auto":
            raise InputError(f"method '{method}' is unknown to the callback: choose auto")
        if prompts is not None and prompts < 2:
            raise InputError(f"prompts must be at least 2 to compare candidates, not {prompts}")
        if longest <= 1.0:
            raise InputError(f"longest must be above 1 (times the length without a leap), not {longest:g}")
        self._read_beta1 = config is None
        config = config or ControllerConfig()
        self._config = config if every is None else replace(config, every=every)
        if prompts is not None:
            self._config = replace(self._config, stages=_stages(prompts))
        self._validation = validation
        self._adapt_lr, self._leaps, self._longest, self._seed = adapt_lr, leaps, longest, seed
        self._trainer = trainer
        self.decisions: list[dict[str, Any]] = []
        self.costs = Costs()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the trainer, the adapter and the validation rows; take up a resumed run's memory."""
        self._trainer = self._trainer or _calling_trainer(self)
        self._rollouts, self._rewards = TrainerRollouts(self._trainer), RewardMeter(self._trainer)
        self._ranks = Ranks(self._trainer.accelerator)
        self._divergence = RolloutDivergence(self._trainer)
        self._adapter = LiveAdapter(kwargs["model"])
        self._rows = validation_rows(self._trainer, self._validation, self._config.stages[-1])
        if len(self._rows) < self._config.stages[-1]:
            self._config = replace(self._config, stages=_stages(len(self._rows)))
        if self._read_beta1:
            self._config = replace(self._config, beta1=_beta1(kwargs["optimizer"]))
        self._controller = Controller(self._config)
        self.decisions, self.costs = [], Costs()
        self._memory = Memory(self._adapter.read())
        if state.global_step:
            self._resume(args, state.global_step, kwargs["optimizer"], kwargs["lr_scheduler"])
        if args.should_save:
            lines = "".join(json.dumps(entry) + "\n" for entry in self.decisions)
            write_bytes(Path(args.output_dir) / DECISIONS, lines.encode())

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the rate that the step is taken at."""
        self._memory.rate = max(self._memory.rate, float(kwargs["optimizer"].param_groups[0]["lr"]))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the step's reward; at the end of a window decide and act."""
        self._memory.rewards.append(self._rewards.new())
        if state.global_step % self._config.every:
            return
        if self._memory.partial:
            self._begin_window()
            return
        began = time.perf_counter()
        decision, persistence = self._decide(state.global_step)
        self._act(decision, kwargs["optimizer"], kwargs["lr_scheduler"])
        self._rewards.mark()
        self.costs.search_seconds += time.perf_counter() - began
        self._record(decision, persistence, state.global_step, kwargs["optimizer"])

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the memory into the checkpoint that the trainer has just written."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not args.should_save or not folder.is_dir():
            return
        rest = {
            "controller": self._controller.state(),
            "latest_reward": self._rewards.latest,
            "costs": asdict(self.costs),
            "decisions": self.decisions,
        }
        callback_state.write(folder, self._memory, rest)

    def _resume(self, args: TrainingArguments, step: int, optimizer: Any, scheduler: Any) -> None:
        folder = callback_state.resumed_from(Path(args.output_dir), step)
        found = callback_state.read(folder, self._memory.start)
        every = self._config.every
        if found is None or found[1]["controller"]["config"]["every"] != every:
            why = (
                "holds no state of LeapCallback"
                if found is None
                else "was saved with windows of another length"
            )
            log.warning("%s %s: leaps begin anew with the next full window", folder, why)
            self._memory.partial = step % every != 0
            return
        self._memory, rest = found
        self._controller.restore(rest["controller"])
        self._rewards.latest = rest["latest_reward"]
        self.costs, self.decisions = Costs(**rest["costs"]), list(rest["decisions"])
        self._rollouts.completions = self.costs.search_completions
        if not (folder / "scheduler.pt").is_file() and self._memory.factor != 1.0:
            # A checkpoint of the model alone: the trainer has just begun its schedule at the configured rate.
            set_rate_factor(optimizer, scheduler, self._memory.factor)

    def _decide(self, step: int) -> tuple[Decision, float | None]:
        memory = self._memory
        end = self._adapter.read()
        moved = self._adapter.displacement(memory.start, end)
        persistence = None if memory.previous is None else cosine(moved, memory.previous)
        memory.previous = moved
        window = Window(step, persistence, tuple(memory.rewards), memory.rate, step * self._per_step())

        def decide(score: Score, diverge: Callable[[float], float]) -> tuple[Decision, dict[str, Any]]:
            return self._controller.step(window, score, diverge), self._controller.state()

        decision, state = self._ranks.once(decide, self._scorer(end, self._seed + step), self._diverge(end))
        if not self._ranks.leader:
            self._controller.restore(state)
        if decision.completions:
            memory.offset += self._config.stages[-1]
        return decision, persistence

    def _scorer(self, end: State, seed: int) -> Score:
        """Scores a leap from `end`, always on the same rows with the same random numbers, and puts `end` back."""
        count = len(self._rows)
        rows = [self._rows[(self._memory.offset + i) % count] for i in range(self._config.stages[-1])]
        usual: dict[int, float] = {}

        def score(alpha: float, start: int, stop: int) -> Tensor:
            self._adapter.write(along(self._memory.start, end, alpha))
            try:
                rewards = self._rollouts.rewards(rows[start:stop], seed + _STRIDE * start)
            finally:
                self._adapter.write(end)
            length = self._rollouts.mean_length
            if alpha == 0.0:
                usual[start] = length
            elif alpha > 0.0 and length > self._longest * usual[start]:
                raise Refused(
                    f"completions grow from {usual[start]:.0f} to {length:.0f} tokens", len(rewards)
                )
            return rewards

        return score

    def _diverge(self, end: State) -> Callable[[float], float]:
        """Divergence a token of a leap from `end` on the latest rollouts; puts `end` back."""
        anchored = self._divergence.anchor()

        def diverge(alpha: float) -> float:
            if not anchored:
                return math.nan
            self._adapter.write(along(self._memory.start, end, alpha))
            try:
                return self._divergence.now()
            finally:
                self._adapter.write(end)

        return diverge

    def _per_step(self) -> int:
        """Fresh completions a step, over all processes; a buffered generation batch counts once."""
        args = self._trainer.args
        sampled = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return max(1, int(sampled) // int(getattr(args, "num_iterations", 1)))

    def _act(self, decision: Decision, optimizer: Any, scheduler: Any) -> None:
        if decision.alpha and self._leaps:
            leap = along(self._memory.start, self._adapter.read(), decision.alpha)
            self._adapter.write(self._ranks.same(leap))
            self._rollouts.mark_weights_changed()
            self._rollouts.drop_buffered()
        if self._adapt_lr and decision.rate_factor != 1.0:
            set_rate_factor(optimizer, scheduler, decision.rate_factor)
            self._memory.factor *= decision.rate_factor
        self._begin_window()

    def _begin_window(self) -> None:
        memory = self._memory
        memory.start, memory.rewards, memory.rate, memory.partial = self._adapter.read(), [], 0.0, False

    def _record(self, decision: Decision, persistence: float | None, step: int, optimizer: Any) -> None:
        self.costs.search_completions = self._rollouts.completions
        rate = float(optimizer.param_groups[0]["lr"])
        entry = {
            "step": step,
            "alpha": decision.alpha,
            "learning_rate": rate,
            "persistence": persistence,
            "excess": decision.excess,
            "divergence": decision.divergence,
            "reason": decision.reason,
            "scores": {f"{a:g}": s for a, s in decision.scores.items()},
            "cost_completions": self.costs.search_completions,
        }
        self.decisions.append(entry)
        metrics = self._trainer._metrics["train"]
        metrics["leap/alpha"].append(decision.alpha)
        metrics["leap/lr"].append(rate)
        metrics["leap/cost_completions"].append(float(self.costs.search_completions))
        if persistence is not None:
            metrics["leap/persistence"].append(persistence)
        if decision.excess is not None:
            metrics["leap/excess_persistence"].append(decision.excess)
        if decision.divergence is not None:
            metrics["leap/divergence"].append(decision.divergence)
        if self._trainer.args.should_save:
            with (Path(self._trainer.args.output_dir) / DECISIONS).open("a") as file:
                file.write(json.dumps(entry) + "\n")


def _stages(prompts: int) -> tuple[int, ...]:
    """Held-out prompts by stage of a search that ends at `prompts`: a quarter, half, all."""
    return tuple(sorted({max(2, prompts // 4), max(2, prompts // 2), prompts}))


def _beta1(optimizer: Any) -> float:
    """Memory of the optimizer's first moment: Adam's beta1, SGD's momentum, 0 where there is none."""
    group = getattr(optimizer, "optimizer", optimizer).param_groups[0]
    betas = group.get("betas")
    return float(betas[0] if betas else group.get("momentum", 0.0))


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
