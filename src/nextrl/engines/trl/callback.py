"""`LeapCallback`: leaps in place inside a user's own TRL trainer.

One line in an existing script: `nextrl.attach(trainer, every=10)`. The callback lets its policy decide at the ends of
windows, moves the LoRA factors in place and scales the learning rate. The scheduler's shape, base weights and a
reference adapter stay as they are, and so do Adam's moments, but where something is taken back. What it remembers lies
in the trainer's checkpoints, so that a resumed run goes on as if it had never stopped.

This file is the order of events. What is decided is in `policies`, what candidates are worth in `candidate_scores`, how
a leap is carried out and taken back in `apply_leap`, what is left in a checkpoint in `checkpoint_state`. What ends the
windows is a `JudgedSession` under `auto`, a `LeapSession` under a named method.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nextrl.engines import decision_log, memory
from nextrl.engines.all_weights import trained_in
from nextrl.engines.candidate_scores import Row
from nextrl.engines.decision_log import Costs
from nextrl.engines.history import KEPT
from nextrl.engines.judged_session import JudgedSession
from nextrl.engines.leap_session import LeapSession
from nextrl.engines.live_adapter import LiveAdapter
from nextrl.engines.policies import Arguments, JudgingPolicy, LeapingPolicy, policy_of
from nextrl.engines.policies.arguments import refuse_unknown, trainer_itself
from nextrl.engines.ranks import Ranks
from nextrl.engines.schedules import heights_of
from nextrl.engines.session import Session
from nextrl.engines.trl.call_stack import calling_trainer, resumed_from
from nextrl.engines.trl.checkpoint_state import CheckpointState
from nextrl.engines.trl.instruments import instruments
from nextrl.engines.trl.live_run import LiveRun
from nextrl.engines.trl.seam import Seam
from nextrl.engines.trl.validation import validation_rows
from nextrl.errors import InputError
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.decision import DecisionRecord
from nextrl.say import say

log = logging.getLogger(__name__)


class LeapCallback(TrainerCallback):
    """A policy decides what becomes of the learning rate, what is taken back, and where the adapter leaps, in place.

    `auto` looks at single steps and at windows, on what training samples anyway; a named method searches or leaps at
    the ends of windows. `auto` works on an adapter or, where the model has none, on all weights; a named method needs
    one. What cannot work is refused when training begins (docs/options.md has the table).

    Args:
        every: optimizer steps per window (default: the configuration's, which is 10).
        method: "auto", which sets the rate and takes back what did harm, by what training samples anyway; or an
            extrapolator's name (`nextrl.extrapolators.names()`): fitted on the run's own checkpoints, one per window,
            kept in memory since the last leap. A named method leaps, and never changes the learning rate.
        at: the step, or the steps, at which a named method leaps; None at the end of every window, as soon as its
            horizon allows (`next-paper`: once, at step 150).
        horizon: steps ahead that a named method's alpha = 1 stands for (default: 50).
        params: a named method's own parameters by name (docs/extrapolators.md).
        alpha: a named method's alpha, taken unseen: no search, no completions. None searches `alphas`.
        alphas: a named method's candidates beside staying put; None for `extrapolators.alphas.ALPHAS`, or for the one
            that the method takes unseen (`next-paper`: 1.5).
        validation: rows (a list of dicts, a datasets.Dataset, a stream or a dict of them, with `prompt` and the reward
            functions' columns) to score a named method's candidates on; of an SFTTrainer, what auto judges by as well.
            Without it the trainer's eval_dataset serves, else rows held back from training.
        prompts: most completions of held-out prompts that a named method's candidate is scored on; a search begins with
            a quarter of them. Without it, and without `at`, searches take a tenth of the completions trained on at
            most.
        config: the dials of auto.
        policy: what decides, in place of all the arguments above but `validation`.
        adapt_lr: let the learning rate follow; False leaves single steps alone, too, and no cooldown ends the run.
        leaps: move the weights, forward or back; False keeps the learning rate only.
        rollback: take a leap forward back (adapter, rate, Adam's moments) when the training reward of the window after
            it falls, by the policy's `fall_errors` standard errors, below that of the window before.
        longest: a leap forward that is searched is refused if its completions are on average this many times as long as
            without it (default: 2).
        truncated: ... if the share of completions that do not end grows by more than this (default: a tenth).
        divergence: ... if it leaves the current policy by more than this, in nats per token (default: 1).
        keep: checkpoints of the adapter held in memory for a named method (default: 16).
        seed: seeds the search's rollouts.
        trainer: the trainer, where it cannot be found by itself (a trainer that wraps another).
        on_leap: called with (step, model, optimizer) after a leap that waited for its checkpoint.

    Attributes:
        decisions: every decision so far, in order, as `nextrl_decisions.jsonl` has them.
        costs: completions and seconds spent, and the steps that leaps claim to have skipped.

    Raises:
        InputError: an argument is not of its kind or out of range, contradicts another, or is used by nothing; and,
            when training begins: the trainer is none of TRL's that can be scored, or not as TRL's was read, or has
            another LeapCallback; the model has no single active LoRA adapter, or one that is no `W + s B A` (under
            `auto` it may have none, whose weights then have to lie whole on each process); the
            optimizer keeps weights of its own, or makes its own rate; no rows can be held back, or too few are given,
            or they lack columns; the run ends before the first of the steps to leap at; the run goes on after all of
            them without this callback's memory; a checkpoint's memory is damaged or of another version. While it
            trains: `auto` cannot mend steps to NaN or Inf, or the callback was added too late.
        StaleWeights: after a leap, if vLLM goes on sampling from the weights before it.
    """

    def __init__(
        self,
        every: int | None = None,
        method: str = "auto",
        *,
        at: int | Iterable[int] | None = None,
        horizon: int | None = None,
        params: Mapping[str, Any] | None = None,
        alpha: float | None = None,
        alphas: float | Iterable[float] | None = None,
        validation: Sequence[Row] | Any = None,
        prompts: int | None = None,
        config: ControllerConfig | None = None,
        policy: JudgingPolicy | LeapingPolicy | None = None,
        adapt_lr: bool = True,
        leaps: bool = True,
        rollback: bool = True,
        longest: float | None = None,
        truncated: float | None = None,
        divergence: float | None = None,
        keep: int | None = None,
        seed: int = 0,
        trainer: Any = None,
        on_leap: Callable[[int, Any, Any], None] | None = None,
    ) -> None:
        given = Arguments.of(
            every=every, method=method, at=at, horizon=horizon, params=params, alpha=alpha, alphas=alphas,
            validation=validation, prompts=prompts, config=config, policy=policy, adapt_lr=adapt_lr, leaps=leaps,
            rollback=rollback, longest=longest, truncated=truncated, divergence=divergence, keep=keep, seed=seed,
            trainer=trainer, on_leap=on_leap,
        )  # fmt: skip
        self._policy, self._guard = policy_of(given), given.guard
        self._validation = given.validation
        self._moves = {"adapt_lr": given.adapt_lr, "leaps": given.leaps}
        self._of_leaps: dict[str, Any] = {
            "rollback": given.rollback, "keep": KEPT if given.keep is None else given.keep, "seed": given.seed
        }  # fmt: skip
        self._trainer, self._on_leap = given.trainer, given.on_leap
        self._session: Session | None = None
        self._run: LiveRun | None = None
        self._kept: CheckpointState | None = None
        self._ended: int | None = None  # the step that was decided on

    def __repr__(self) -> str:
        if self._session is None or self._run is None:
            return f"LeapCallback({self._policy.method}, not trained yet)"
        step, rate, made = self._run.trainer.state.global_step, self._run.rate, len(self.decisions)
        return f"LeapCallback({self._policy.method}, step {step}, learning rate {rate:.3g}, {made} decisions)"

    @property
    def decisions(self) -> list[DecisionRecord]:
        """Every window's decision, in order, as written to `nextrl_decisions.jsonl`; a new list."""
        return list(self._session.decisions) if self._session else []

    @property
    def costs(self) -> Costs:
        """What has been spent."""
        return self._session.costs if self._session else Costs()

    @property
    def cooled(self) -> float:
        """Share of the rate that the end of the run left the latest step; 1.0 before that."""
        return self._session.cooled if self._session else 1.0

    def _running(self) -> Session:
        if self._session is None:
            raise InputError("LeapCallback was added while training runs: add it before trainer.train()")
        return self._session

    def _checkpoints(self) -> CheckpointState:
        self._running()
        assert self._kept is not None, "begun with the session"
        return self._kept

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the trainer, the adapter and the validation rows; take up a resumed run's memory.

        Raises:
            InputError: see the class.
        """
        if self._session is not None:  # an earlier training may have been cut off in the middle of a step
            self._session.run.tools.fresh.stop()
        if getattr(args, "enable_jit_checkpoint", False):
            raise InputError(
                "enable_jit_checkpoint=True saves in the middle of a step, past all callbacks, so that such a "
                "checkpoint would lack what LeapCallback remembers: set it to False, and save often (save_steps)"
            )
        trainer = self._training(state)
        replaced = _First.go_first(self, trainer.callback_handler)
        if sum(isinstance(callback, LeapCallback) for callback in trainer.callback_handler.callbacks) > 1:
            raise InputError(
                "this trainer has two LeapCallbacks, which would write over each other: keep one"
            )
        rows: Sequence[Row] = []
        keep_out: Callable[[], None] | None = None
        if self._policy.searches or not Seam(trainer).generates:
            rows, keep_out = validation_rows(trainer, self._validation, self._policy.acceptance.prompts)
        elif self._validation is not None:
            say(
                log,
                "validation= is not used: %s",
                "auto judges by the completions that training samples"
                if self._policy.method == "auto"
                else f"{self._policy.method} takes its alpha unseen",
            )
        model, ranks = kwargs["model"], Ranks(trainer.accelerator)
        adapter = trained_in(model) if self._policy.undoes else LiveAdapter(model)
        tools = instruments(trainer, rows, adapter, ranks)
        run = LiveRun(trainer, adapter, ranks, tools, kwargs["optimizer"], kwargs["lr_scheduler"])
        if any(self._moves.values()):  # else its functions are left alone as well
            run.heights = heights_of(run.scheduler, run.max_steps)
        resumed = _resumed(args, state)
        for before in (replaced, self):
            if before is not None:
                before._undo(run.optimizer, run.scheduler, resumed)
        left = math.prod(c._hand_over(run.optimizer) for c in (replaced, self) if c is not None)
        self._run, self._ended = run, None
        self._session = self._begun(run, rows, state.global_step)
        self._kept = CheckpointState(run, self._session)
        self._session.memory.factor = left
        if resumed is not None:
            self._kept.resume(resumed, state.global_step, args.should_save)
        # Nothing is taken from training for a run that is refused above, or in which nothing will be searched.
        if keep_out is not None and not self._session.never_searches:
            keep_out()
        if args.should_save:
            memory.settle_pending(Path(args.output_dir))
            decision_log.begin(Path(args.output_dir), self.decisions, anew=resumed is None)
        self._session.checkpoint_is_there(state.global_step)

    def _begun(self, run: LiveRun, rows: Sequence[Row], step: int) -> Session:
        """The session of a run that begins, or goes on, after this step."""
        policy = self._policy
        if policy.undoes:
            return JudgedSession(run, policy, step, **self._moves)
        options = {**self._moves, **self._of_leaps, "on_leap": self._on_leap and partial(self._leapt, run)}
        return LeapSession(run, policy, self._guard, rows, step, **options)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Decide what waited for a checkpoint; note the rate that the step is taken at."""
        session = self._running()
        session.checkpoint_is_there(state.global_step)
        session.step_begins(state.global_step)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See whether another callback has set the rate."""
        self._running().weights_updated(state.global_step)

    def end_step(self, state: TrainerState) -> None:
        """Note the step's reward; decide and act, at the end of a window or on the step alone."""
        self._running().step_ended(state.global_step)
        self._ended = state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Have a checkpoint's memory ready; in its turn, since callbacks before may ask for one or move weights."""
        session = self._running()
        if self._ended != state.global_step:  # another trainer's list is gone through than `trainer=`'s
            self.end_step(state)
        if session.memory.waiting:
            control.should_save = True
        self._prepare(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Have the memory ready for a checkpoint that is asked for here only (`save_strategy="epoch"`)."""
        self._prepare(args, state, control)

    def _prepare(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        if control.should_save:
            self._checkpoints().prepare(args, state.global_step)

    def deliver(self, args: TrainingArguments, state: TrainerState) -> None:
        """Put the memory into the checkpoint that the trainer has just written."""
        self._checkpoints().deliver(args, state.global_step)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the memory into the checkpoint, where another trainer's list is gone through than `trainer=`'s."""
        if self._checkpoints().delivered != state.global_step:
            self.deliver(args, state)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the rewards that the trainer forgets with this log, which anybody may have asked for."""
        if self._run is not None:
            self._run.tools.rewards.collect()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop listening to what is sampled."""
        self._running().train_ended()

    def _training(self, state: TrainerState) -> Any:
        """The trainer that calls: the one that was named, unless the callback was put into another one's list since.

        Raises:
            InputError: none was named, and none is among the callers.
        """
        named = self._trainer
        if named is not None and getattr(named, "state", state) is state:
            return named
        try:
            return calling_trainer(self)
        except InputError:
            if named is None:
                raise
            return named

    def _leapt(self, run: LiveRun, step: int) -> None:
        assert self._on_leap is not None
        self._on_leap(step, run.trainer.model, run.optimizer)

    def _undo(self, optimizer: Any, scheduler: Any, resumed: Path | None) -> None:
        """Take back what this callback's training has left in its optimizer's rate, now that another one begins.

        A training that begins anew keeps the rate that was found, without what the end of the run took where it was
        cut off there; one that is resumed from a checkpoint of the model alone begins at the configured rate.

        Args:
            optimizer, scheduler: of the training that begins.
        """
        if self._session is None or self._run is None:
            return
        kept = self._session.memory
        if self._run.optimizer is optimizer:
            self._run.scheduler = scheduler  # the trainer makes a new one from the optimizer's rates
            if resumed is not None:
                if not (resumed / "scheduler.pt").is_file():
                    self._run.multiply_rate(1.0 / kept.factor)
                kept.factor = kept.cooled = 1.0
        self._session.train_ended()

    def _hand_over(self, optimizer: Any) -> float:
        """By how much this callback's latest training has multiplied an optimizer's rate: the next training's now."""
        if self._session is None or self._run is None or self._run.optimizer is not optimizer:
            return 1.0
        kept = self._session.memory
        factor, kept.factor = kept.factor, 1.0
        return factor


def _resumed(args: TrainingArguments, state: TrainerState) -> Path | None:
    """The checkpoint that a training goes on from; None of one that begins."""
    return resumed_from(Path(args.output_dir), state.global_step) if state.global_step else None


class _First(TrainerCallback):
    """What is done before other callbacks look; first in a trainer's list, wherever its `LeapCallback` stands.

    Others may keep the weights that they find at a step's end (a reference model that is mixed with them, a running
    mean), so what is taken back is back by then. And they may copy a checkpoint elsewhere, which has to be whole.
    """

    def __init__(self, owner: LeapCallback, handler: Any) -> None:
        self._owner, self._handler = owner, handler

    @classmethod
    def go_first(cls, owner: LeapCallback, handler: Any) -> LeapCallback | None:
        """Stand before all others. The list is a new one: the handler may be going through it.

        Returns:
            The callback that was stood for here before, where it is another one.
        """
        before = [callback._owner for callback in handler.callbacks if isinstance(callback, cls)]
        others = [callback for callback in handler.callbacks if not isinstance(callback, cls)]
        handler.callbacks = [cls(owner, handler), *others]
        return next((one for one in before if one is not owner), None)

    @property
    def _serves(self) -> bool:
        """Whether the callback that it stands for is still there."""
        return self._owner in self._handler.callbacks

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Where the callback was removed, take back what it left in the rate."""
        if not self._serves:
            self._owner._undo(kwargs["optimizer"], kwargs["lr_scheduler"], _resumed(args, state))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Decide on the step; who asks for a checkpoint is known later, in the owner's own turn."""
        if self._serves:
            self._owner.end_step(state)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the memory into the checkpoint."""
        if self._serves:
            self._owner.deliver(args, state)


def attach(trainer: Any, every: int | None = None, **options: Any) -> LeapCallback:
    """Let nextrl set a TRL trainer's rate and take back what did harm; then `trainer.train()` as before.

    Args:
        trainer: TRL's GRPOTrainer, RLOOTrainer or SFTTrainer, with a LoRA adapter or (under `auto`) without one.
        every: optimizer steps per window.
        options: further arguments of `LeapCallback`.

    Returns:
        The callback, whose `decisions` and `costs` say what was done.

    Raises:
        InputError: an argument is wrong (see `LeapCallback`), or the trainer has one already.
    """
    trainer_itself("trainer", trainer)
    refuse_unknown(options)
    if any(isinstance(callback, LeapCallback) for callback in trainer.callback_handler.callbacks):
        raise InputError("this trainer has a LeapCallback already: attach it once")
    callback = LeapCallback(every, trainer=trainer, **options)
    trainer.add_callback(callback)
    return callback
