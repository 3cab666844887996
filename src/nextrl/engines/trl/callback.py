"""`LeapCallback`: leaps in place inside a user's own TRL trainer.

One line in an existing script: `trainer.add_callback(nextrl.LeapCallback(every=10, method="auto"))`. At the end of
each window it looks at what is free (persistence, training rewards), pays for a paired search on held-out prompts
where the controller asks for it, moves the LoRA factors in place and scales the learning rate. Adam's moments, the
scheduler's shape, base weights and a reference adapter stay as they are. What it remembers lies in the trainer's
checkpoints, so that a resumed run goes on as if it had never stopped.

This file is the order of events. What is decided is in `controller` (auto) and `named_leap`, what candidates are worth
in `candidate_scores`, what they may not do in `guard`, how a leap is taken back in `rollback`.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nextrl.engines.live_adapter import LiveAdapter, State, along, cosine
from nextrl.engines.ranks import Ranks
from nextrl.engines.trl import decision_log as callback_log
from nextrl.engines.trl import memory as callback_state
from nextrl.engines.trl.candidate_scores import Candidate, CandidateScores
from nextrl.engines.trl.decision_log import Costs
from nextrl.engines.trl.delivery import check_delivery
from nextrl.engines.trl.instruments import instruments
from nextrl.engines.trl.memory import Memory
from nextrl.engines.trl.named_leap import ALPHAS, NamedLeap
from nextrl.engines.trl.rollback import Snapshot, read_moments, whole, write_moments
from nextrl.engines.trl.rollouts import Row, set_rate_factor
from nextrl.engines.trl.seam import Seam
from nextrl.engines.trl.validation import validation_rows
from nextrl.errors import InputError
from nextrl.judge.controller import Controller, ControllerConfig, Decision, Window
from nextrl.judge.guard import Guard

log = logging.getLogger(__name__)

_MANY = 5  # steps a window from which on its last one hardly matters for how far it went


class LeapCallback(TrainerCallback):
    """Persistence screens, a paired search decides, the adapter leaps in place, the rate follows.

    Args:
        every: optimizer steps a window (default: the configuration's, which is 10).
        method: "auto", or an extrapolator's name (`nextrl.extrapolators.names()`): fitted on the run's own checkpoints,
            one a window, kept in memory since the last leap. A named method never changes the learning rate.
        at: steps at which a named method leaps; None at the end of every window, as soon as its horizon allows.
        horizon: steps ahead that a named method's alpha = 1 stands for.
        alpha: a named method's alpha, taken unseen: no search, no completions. None searches `alphas`.
        alphas: a named method's candidates beside staying put.
        validation: rows (a list of dicts or a datasets.Dataset, with `prompt` and the reward functions' columns) to
            score candidates on. Without it the trainer's eval_dataset serves, else rows held back from its training
            dataset.
        prompts: most held-out prompts a candidate is scored on; a search begins with a quarter of them.
        config: the controller's other dials. Without it Adam's beta1 is read from the optimizer.
        adapt_lr: let the learning rate follow what was validated.
        leaps: move the weights; False keeps the search and the learning rate only.
        rollback: take a leap forward back (adapter, rate, Adam's moments) when the training reward of the window after
            it falls, as far as `config.fall` and `config.fall_errors` say, below that of the window before.
        longest: a leap forward is refused if its completions are on average this many times as long as without it.
        truncated: ... if the share of completions that do not end grows by more than this.
        divergence: ... if it leaves the current policy by more than this, in nats a token.
        keep: checkpoints of the adapter held in memory for a named method.
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
        at: Sequence[int] | None = None,
        horizon: int = 50,
        alpha: float | None = None,
        alphas: Sequence[float] = ALPHAS,
        validation: Sequence[Row] | Any = None,
        prompts: int | None = None,
        config: ControllerConfig | None = None,
        adapt_lr: bool = True,
        leaps: bool = True,
        rollback: bool = True,
        longest: float = 2.0,
        truncated: float = 0.1,
        divergence: float = 1.0,
        keep: int = 15,
        seed: int = 0,
        trainer: Any = None,
    ) -> None:
        if prompts is not None and prompts < 2:
            raise InputError(f"prompts must be at least 2 to compare candidates, not {prompts}")
        if keep < 2:
            raise InputError(f"keep must be at least 2 checkpoints, not {keep}")
        if method == "auto" and (at is not None or alpha is not None):
            raise InputError("at= and alpha= belong to a named method: auto decides both by itself")
        self._read_beta1 = config is None
        config = config or ControllerConfig()
        self._config = config if every is None else replace(config, every=every)
        if prompts is not None:
            self._config = replace(self._config, stages=_stages(prompts))
        self._guard = Guard(longest, truncated, divergence)
        self._named_leap = partial(NamedLeap, method, horizon, alpha, alphas, at)
        self._is_named, self._searches = method != "auto", alpha is None
        self._horizon, self._keep = horizon, keep
        if self._is_named:
            self._new_named()
        self._validation = validation
        self._adapt_lr, self._leaps, self._rollback, self._seed = adapt_lr, leaps, rollback, seed
        self._trainer = trainer
        self.decisions: list[dict[str, Any]] = []
        self.costs = Costs()

    def _new_named(self) -> NamedLeap:
        return self._named_leap(self._config.stages, self._config.level, 0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the trainer, the adapter and the validation rows; take up a resumed run's memory."""
        self._trainer = self._trainer or _calling_trainer(self)
        self._ranks = Ranks(self._trainer.accelerator)
        self._adapter = LiveAdapter(kwargs["model"])
        self._rows: Sequence[Row] = []
        if self._searches:
            self._rows = validation_rows(self._trainer, self._validation, self._config.stages[-1])
            if len(self._rows) < self._config.stages[-1]:
                self._config = replace(self._config, stages=_stages(len(self._rows)))
        tools = instruments(self._trainer, self._rows)
        self._rollouts, self._rewards, self._distance = tools.rollouts, tools.rewards, tools.distance
        self._scores = CandidateScores(self._adapter, self._rollouts, self._guard)
        if self._read_beta1:
            self._config = replace(self._config, beta1=_beta1(kwargs["optimizer"]))
        self._controller = Controller(self._config)
        self._named = self._new_named() if self._is_named else None
        self.decisions, self.costs = [], Costs()
        self._memory = Memory(self._adapter.read())
        self._memory.history.most = self._keep
        self._leapt: tuple[State, State] | None = None
        self._begin_history(state.global_step)
        if state.global_step:
            self._resume(args, state.global_step, kwargs["optimizer"], kwargs["lr_scheduler"])
        if args.should_save:
            callback_state.forget_pending(Path(args.output_dir))
            callback_log.begin(Path(args.output_dir), self.decisions)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the rate that the step is taken at."""
        self._memory.rate = max(self._memory.rate, float(kwargs["optimizer"].param_groups[0]["lr"]))
        ends = (state.global_step + 1) % self._config.every == 0
        if ends and self._named is None and self._config.every >= _MANY:
            self._distance.listen()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the step's reward; at the end of a window decide and act."""
        self._distance.stop()
        self._memory.rewards.append(self._rewards.new())
        step = state.global_step
        if self._leapt is not None:
            check_delivery(self._trainer, self._adapter, *self._leapt)
            self._leapt = None
        if step % self._config.every == 0 or (self._named is not None and self._named.ends_window(step)):
            if self._memory.partial:
                self._begin_window()
                self._begin_history(step)
            else:
                self._end_window(step, kwargs["optimizer"], kwargs["lr_scheduler"])
        if control.should_save and args.should_save:
            # Before the trainer's own files: a kill in between must not leave a checkpoint without its memory.
            callback_state.write_pending(Path(args.output_dir), step, self._memory, self._rest())

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the memory into the checkpoint that the trainer has just written."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if args.should_save and folder.is_dir():
            # Another callback may have asked for a checkpoint after this one was asked whether there is one.
            if not callback_state.deliver_pending(folder):
                callback_state.write(folder, self._memory, self._rest())
            callback_state.forget_pending(Path(args.output_dir))

    def _rest(self) -> dict[str, Any]:
        return {
            "controller": self._controller.state(),
            "named": None if self._named is None else self._named.state(),
            "latest_reward": self._rewards.latest,
            "costs": asdict(self.costs),
            "decisions": self.decisions,
        }

    def _resume(self, args: TrainingArguments, step: int, optimizer: Any, scheduler: Any) -> None:
        folder = callback_state.resumed_from(Path(args.output_dir), step)
        found = callback_state.read(folder, self._memory.start)
        if found is None or found[1]["controller"]["config"]["every"] != self._config.every:
            why = "was saved with windows of another length"
            if found is None:
                why = (
                    f"holds no state of LeapCallback ({callback_state.missing(folder)} not there): it was saved "
                    "before the callback was added, or the run was killed while it was being saved"
                )
            log.warning("%s %s; leaps begin anew with the next full window", folder, why)
            self._memory.partial = step % self._config.every != 0
            return
        self._memory, rest = found
        self._memory.history.most = self._keep
        self._controller.restore(rest["controller"])
        if self._named is not None and rest["named"] is not None:
            self._named.restore(rest["named"])
        self._rewards.latest = rest["latest_reward"]
        self.costs, self.decisions = Costs(**rest["costs"]), list(rest["decisions"])
        self._rollouts.completions = self.costs.search_completions
        if not (folder / "scheduler.pt").is_file() and self._memory.factor != 1.0:
            # A checkpoint of the model alone: the trainer has just begun its schedule at the configured rate.
            set_rate_factor(optimizer, scheduler, self._memory.factor)

    def _end_window(self, step: int, optimizer: Any, scheduler: Any) -> None:
        began, memory, end = time.perf_counter(), self._memory, self._adapter.read()
        window, moved = self._look(step, end)
        before, memory.snapshot = memory.snapshot, None
        if before is not None and self._ranks.once(
            partial(before.fell, window, self._config.fall, self._config.fall_errors)
        ):
            decision = self._take_back(before, window, optimizer, scheduler)
        else:
            before, memory.previous = None, moved
            decision, candidate = self._decide(window, end)
            self._act(decision, candidate, window, optimizer, scheduler)
        self._begin_window()
        self._rewards.mark()
        self.costs.search_completions = self._rollouts.completions
        self.costs.search_seconds += time.perf_counter() - began
        self._record(decision, window, before, optimizer)

    def _look(self, step: int, end: State) -> tuple[Window, Any]:
        """What the window shows for free, and its displacement."""
        memory = self._memory
        moved = self._adapter.displacement(memory.start, end)
        persistence = None if memory.previous is None else cosine(moved, memory.previous)
        window = Window(step, persistence, tuple(memory.rewards), memory.rate, step * self._per_step())
        return window, moved

    def _decide(self, window: Window, end: State) -> tuple[Decision, Candidate]:
        memory = self._memory
        candidate: Candidate = partial(along, memory.start, end)
        if self._named is None:
            step = partial(self._controller.step, window)
            score = self._scorer(candidate, end, window.step)
            diverge, glance = self._scores.distances(candidate, end, self._distance)
            decision = self._agree(self._controller, step, score, diverge, glance)
        else:
            decision, candidate = self._ask(self._named, window, end, candidate)
        if decision.completions:
            memory.offset += self._config.stages[-1]
        return decision, candidate

    def _ask(
        self, named: NamedLeap, window: Window, end: State, candidate: Candidate
    ) -> tuple[Decision, Candidate]:
        """A named method's decision: fitted on the checkpoints since the last leap."""
        self._memory.history.add(window.step, end, window.reward)
        if because := named.resting(window.step):
            return named.stay(because), candidate
        try:
            candidate = named.fit(self._memory.history, self._adapter)
        except InputError as error:
            if named.at is not None:
                log.warning("no leap at step %d: %s", window.step, error)
            return named.stay(str(error)), candidate
        score = self._scorer(candidate, end, window.step)
        return self._agree(named, named.choose, score), candidate

    def _agree(self, who: Controller | NamedLeap, decide: Callable[..., Decision], *tools: Any) -> Decision:
        """Process 0's decision and what it remembers of it, on every process."""

        def once(*heard: Any) -> tuple[Decision, dict[str, Any]]:
            return decide(*heard), who.state()

        decision, state = self._ranks.once(once, *tools)
        if not self._ranks.leader:
            who.restore(state)
        return decision

    def _scorer(self, candidate: Candidate, end: State, step: int) -> Callable[[float, int, int], Any]:
        offset, most = self._memory.offset, self._config.stages[-1]

        def rows(start: int, stop: int) -> list[Row]:
            return [self._rows[(offset + i) % len(self._rows)] for i in range(start, min(stop, most))]

        return self._scores.scorer(candidate, end, rows, self._seed + step)

    def _per_step(self) -> int:
        """Fresh completions a step, over all processes; a buffered generation batch counts once."""
        args = self._trainer.args
        sampled = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return max(1, int(sampled) // int(getattr(args, "num_iterations", 1)))

    def _act(
        self, decision: Decision, candidate: Candidate, window: Window, optimizer: Any, scheduler: Any
    ) -> None:
        memory = self._memory
        if decision.alpha and self._leaps:
            before, steps = self._adapter.read(), decision.alpha * self._steps_of_one()
            if self._rollback and decision.alpha > 0.0 and whole(self._adapter.parameters):
                memory.snapshot = Snapshot(
                    window.step, decision.alpha, steps, memory.factor, window.reward, window.variance,
                    before, read_moments(optimizer),
                )  # fmt: skip
            self._move(self._ranks.same(candidate(decision.alpha)), before)
            self.costs.leapt_steps += steps
            self._begin_history(window.step)
        if self._adapt_lr and decision.rate_factor != 1.0:
            set_rate_factor(optimizer, scheduler, decision.rate_factor)
            memory.factor *= decision.rate_factor

    def _take_back(self, before: Snapshot, window: Window, optimizer: Any, scheduler: Any) -> Decision:
        """Put adapter, rate and moments back as they were before the last leap."""
        memory = self._memory
        self._move(before.state, self._adapter.read())
        write_moments(optimizer, before.moments)
        if memory.factor != before.factor:
            set_rate_factor(optimizer, scheduler, before.factor / memory.factor)
            memory.factor = before.factor
        self.costs.leapt_steps -= before.steps + window.step - before.step
        self._begin_history(window.step)
        why = f"the reward fell from {before.reward:.3g} to {window.reward:.3g} after the leap of step {before.step}"
        return Decision(0.0, 1.0, f"{why}: rolled back", None, {}, 0)

    def _move(self, state: State, before: State) -> None:
        self._adapter.write(state)
        self._rollouts.mark_weights_changed()
        self._rollouts.drop_buffered()
        if Seam(self._trainer).has_engine:
            self._leapt = (before, self._adapter.read())

    def _steps_of_one(self) -> int:
        """Optimizer steps that alpha = 1 stands for."""
        return self._horizon if self._is_named else self._config.every

    def _begin_window(self) -> None:
        memory = self._memory
        memory.start, memory.rewards, memory.rate, memory.partial = self._adapter.read(), [], 0.0, False

    def _begin_history(self, step: int) -> None:
        if self._named is not None:
            self._memory.history.begin(step, self._adapter.read())

    def _record(
        self, decision: Decision, window: Window, taken_back: Snapshot | None, optimizer: Any
    ) -> None:
        entry = {
            "step": window.step,
            "alpha": decision.alpha,
            "learning_rate": float(optimizer.param_groups[0]["lr"]),
            "persistence": window.persistence,
            "excess": decision.excess,
            "divergence": decision.divergence,
            "reason": decision.reason,
            "scores": {f"{a:g}": s for a, s in decision.scores.items()},
            "divergences": {f"{a:g}": d for a, d in self._scores.divergences.items() if decision.completions},
            "cost_completions": self.costs.search_completions,
            "saved_steps_estimate": self.costs.saved_steps(self._per_step()),
            "rolled_back": None if taken_back is None else taken_back.step,
        }
        self.decisions.append(entry)
        callback_log.show(Seam(self._trainer).training_metrics(), entry)
        if self._trainer.args.should_save:
            callback_log.append(Path(self._trainer.args.output_dir), entry)


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
