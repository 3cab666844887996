"""The seam to TRL: every private name, and every undocumented behaviour, of its trainers that nextrl leans on.

`Seam(trainer)` checks that each name exists and takes the arguments that it is given here (`seam_names`), and refuses a
trainer where one does not. What cannot be checked before a call, such as the form of a result, is checked at every
call. No other module of nextrl names a private attribute of a trainer, and a test holds that.
"""

from __future__ import annotations

import copy
import inspect
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import trl
from torch import Tensor

from nextrl.engines.trl.seam_names import (
    PER_TOKEN,
    REBOUND_BY_SCORING,
    REWARDS,
    ROLLOUT_PARTS,
    SCORE,
    WRITTEN_BY_SCORING,
    Method,
    changed,
    check,
)


@dataclass(frozen=True)
class Scored:
    """Completions of a trainer, one for each of its rows, graded as it grades them.

    Attributes:
        by_function: (n, functions) float64 on the CPU over all processes, in their order: what each reward function
            returned, NaN where it returned None.
        penalty: (n,) float64 alike: what the trainer takes off the weighted rewards before it makes advantages of them.
        length: mean tokens per completion, over all processes.
        truncated: share of the completions that did not end by themselves, over all processes.
        tokens: this process's ids (n, prompt + completion), attention mask alike, and mask (n, completion) of the
            tokens that the model itself wrote; None where a forward pass needs more than tokens (images).
    """

    by_function: Tensor
    penalty: Tensor
    length: float
    truncated: float
    tokens: tuple[Tensor, Tensor, Tensor] | None


Heard = Callable[[Tensor, Tensor, Tensor, int], None]
"""Called with log-probabilities (n, length), ids and attention mask (n, prompt + length), length."""

Seen = Callable[[Any, tuple[Any, ...], Mapping[str, Any]], None]
"""Called with the result, the arguments and the options of a call."""

# Options of the method of log-probabilities that do not change what it computes.
_HARMLESS = frozenset({"batch_size", "compute_entropy", "compute_aux_loss"})


class Seam:
    """One trainer of TRL's, as far as nextrl leans on what TRL does not document.

    Attributes:
        trainer: the trainer itself.
        generates: whether it samples completions (GRPO, RLOO), or is trained on texts (SFT).
    """

    def __init__(self, trainer: Any) -> None:
        """Check the trainer (`check`).

        Raises:
            InputError: it is no trainer that nextrl knows, or not as it was read.
        """
        check(trainer)
        self.trainer = trainer
        self.generates = not isinstance(trainer, trl.SFTTrainer)

    @property
    def has_engine(self) -> bool:
        """Whether vLLM samples, from a copy of the weights."""
        return bool(getattr(self.trainer, "use_vllm", False))

    @property
    def ranks_per_engine(self) -> int:
        """Processes that hold one engine together: `vllm_tensor_parallel_size` in colocate mode, else 1."""
        args = self.trainer.args
        shared = self.has_engine and getattr(args, "vllm_mode", "") == "colocate"
        return int(getattr(args, "vllm_tensor_parallel_size", 1)) if shared else 1

    @property
    def packs_rows(self) -> bool:
        """Whether the collator makes one row of all rows of a batch (SFT)."""
        return bool(self.trainer.padding_free)

    def weights_changed(self) -> None:
        """Have vLLM take over the current weights before it next samples.

        TRL does so only where `state.global_step` differs from the step at which it last did.
        """
        if self.has_engine:
            self.trainer._last_loaded_step = -1

    def buffered_rollouts(self) -> list[Mapping[str, Any]]:
        """The rollouts that the trainer holds, a batch for each of its next training steps; empty before the first.

        Each has at least `prompt_ids`, `prompt_mask` (n, prompt), `completion_ids`, `completion_mask` (n, completion).
        """
        buffered = self.trainer._buffered_inputs or []
        for batch in buffered:
            if missing := [part for part in ROLLOUT_PARTS if part not in batch]:
                raise changed(self.trainer, f"holds rollouts without {missing[0]}")
        return list(buffered)

    @property
    def samples_next(self) -> bool:
        """Whether the optimizer step to come begins with fresh rollouts, all sampled at the present weights."""
        trainer = self.trainer
        batches = trainer.args.steps_per_generation * trainer.args.num_iterations
        return trainer._buffered_inputs is None or trainer._step % batches == 0

    def drop_buffered_rollouts(self) -> None:
        """Forget the rollouts that the trainer holds: it samples anew at its next step. SFT holds none."""
        if self.generates:
            self.trainer._buffered_inputs = None

    @property
    def group(self) -> int:
        """Completions of one prompt in a training batch, beside each other; 1 where nothing is generated."""
        return int(self.trainer.num_generations) if self.generates else 1

    @property
    def normalises_each_function(self) -> bool:
        """Whether each reward function is divided by its spread within the groups before they are added up."""
        return getattr(self.trainer, "multi_objective_aggregation", None) == "normalize_then_sum"

    def score(self, rows: list[dict[str, Any]]) -> Scored:
        """Complete and grade rows as the trainer does with a batch of its own. A collective operation.

        It goes through all that the trainer does with a batch: images, tools, environments, `rollout_func` and what
        that adds to the rows. Metrics are written, and the model's mode decides where: wrap it in `untouched()` and
        evaluation mode.

        Args:
            rows: this process's, each prompt `group` times one after the other; all with the same columns, equally
                many on each process. The trainer may add columns to them.
        """
        graded, passes = _Calls(self._check_rewards), _Calls()
        with self._watched(REWARDS, graded), self._watched(PER_TOKEN, passes):
            batch = getattr(self.trainer, SCORE.name)(rows)
        if not isinstance(batch, Mapping) or any(part not in batch for part in ROLLOUT_PARTS):
            raise changed(self.trainer, f"returns no rollouts from {SCORE.name}")
        if not graded.results:
            raise changed(self.trainer, f"calls no {REWARDS.name} in {SCORE.name}")
        by_function = graded.results[-1]
        ids = graded.arguments[-1][len(REWARDS.arguments) - 1]
        if len(ids) != len(rows) or batch["completion_ids"].shape[:1] != (len(rows),):
            raise changed(self.trainer, f"returns other completions from {SCORE.name} than one for each row")
        return Scored(
            by_function.double().cpu(),
            self._penalty(batch, passes.results, len(by_function)),
            *self._generation_lengths(),
            None if "num_images" in batch else _tokens(batch, [len(completion) for completion in ids]),
        )

    def combined(self, scored: Scored, spread: Tensor | None = None) -> Tensor:
        """(n,) float64: the reward of each completion as it reaches the advantage, NaN where no function graded it.

        Args:
            spread: (functions,) what each function is divided by before they are added up; None for nothing.
        """
        return self._weighted(scored.by_function, spread) - scored.penalty

    def _weighted(self, by_function: Tensor, spread: Tensor | None = None) -> Tensor:
        """(n,) what functions returned (n, functions) added up; NaN where none returned anything."""
        weights = self.trainer.reward_weights.double().cpu()
        if spread is not None:
            weights = weights / spread
        rewards: Tensor = (by_function * weights).nansum(dim=1)
        if clip := getattr(self.trainer, "reward_clip_range", None):  # RLOO's
            rewards = rewards.clamp(min=clip[0], max=clip[1])
        rewards[by_function.isnan().all(dim=1)] = math.nan
        return rewards

    def without_residue(self, advantages: Tensor) -> Tensor:
        """Advantages of the latest rollouts, exactly 0 where all completions of the group earned the same.

        A mean of equal rewards differs from them by a last digit of float32, of which the division by the group's
        deviation, another last digit, makes an advantage of up to 1.
        """
        if self._penalised:  # the log-ratio to the reference tells completions apart
            return advantages
        logs = self.trainer._logs
        if not {"rewards", "advantages"} <= logs.keys():
            raise changed(self.trainer, "keeps no rewards and advantages of its latest rollouts in _logs")
        columns, known = list(logs["rewards"].values()), list(logs["advantages"])
        if len(columns) != len(self.trainer.reward_weights) or any(len(c) != len(known) for c in columns):
            return advantages  # functions of one name share a column
        if len(known) != self.trainer.args.generation_batch_size:
            return advantages  # these are not the rollouts of one batch alone
        by_function = torch.tensor(columns, dtype=torch.float64).T
        dead = self._alike(by_function).repeat_interleave(self.group)
        residue = torch.tensor(known, dtype=torch.float64)[dead].to(advantages)
        return torch.where(torch.isin(advantages, residue), 0.0, advantages)

    def _alike(self, by_function: Tensor) -> Tensor:
        """(groups,) whether all completions of a group earned the same, from what functions returned (n, functions)."""
        rewards, digits = by_function, torch.zeros(len(by_function), 1, dtype=torch.float64)
        if not self.normalises_each_function:
            rewards = self._weighted(by_function).unsqueeze(1)
            # Sums of different terms may differ by their rounding alone.
            each = (by_function * self.trainer.reward_weights.double().cpu()).abs()
            digits = (
                (by_function.shape[1] - 1) * torch.finfo(torch.float32).eps * each.nansum(1, keepdim=True)
            )
        most, least, digits = (
            t.view(len(t) // self.group, self.group, t.shape[1]).amax(1)
            for t in (rewards.nan_to_num(-math.inf), -rewards.nan_to_num(math.inf), digits)
        )
        return (most + least <= digits).all(1)

    @property
    def _penalised(self) -> bool:
        """Whether beta times the log-ratio to the reference is taken off the reward."""
        return isinstance(self.trainer, trl.RLOOTrainer) and bool(self.trainer.beta)

    def _check_rewards(self, by_function: Any) -> None:
        if not isinstance(by_function, Tensor) or by_function.shape[1:] != self.trainer.reward_weights.shape:
            raise changed(self.trainer, f"returns no reward of each function from {REWARDS.name}")

    def _penalty(self, batch: Mapping[str, Any], passes: list[Any], n: int) -> Tensor:
        """(n,) float64 over all processes: beta times the log-ratio to the reference, which RLOO counts as a reward."""
        if not self._penalised:
            return torch.zeros(n, dtype=torch.float64)
        if len(passes) != 2:
            raise changed(self.trainer, f"does not compute the policy's and the reference's {PER_TOKEN.name}")
        # Its first pass is the policy's, its second the reference's.
        policy, reference = (
            self._logps_in(found, batch["completion_ids"], batch["completion_ids"].size(1))
            for found in passes
        )
        divergence = ((policy - reference) * batch["completion_mask"]).sum(1)
        gathered: Tensor = self.trainer.accelerator.gather(divergence)
        return float(self.trainer.beta) * gathered.double().cpu()

    def _generation_lengths(self) -> tuple[float, float]:
        """(mean tokens per completion, share that did not end by themselves) of the latest evaluation rollouts.

        Over all processes.
        """
        metrics = self.trainer._metrics["eval"]
        names = ("completions/mean_length", "completions/clipped_ratio")
        if missing := [name for name in names if not metrics.get(name)]:
            raise changed(self.trainer, f"measures no {missing[0]}")
        return float(metrics[names[0]][-1]), float(metrics[names[1]][-1])

    def per_token_logps(self, ids: Tensor, attention: Tensor, length: int) -> Tensor:
        """(n, length) float32: log-probabilities of the last `length` tokens, at the trainer's temperature, nats."""
        trainer = self.trainer
        found = getattr(trainer, PER_TOKEN.name)(
            trainer.model, ids, attention, length, batch_size=trainer.args.per_device_train_batch_size
        )
        return self._logps_in(found, ids, length).float()

    def _logps_in(self, found: Any, ids: Tensor, length: int) -> Tensor:
        """The log-probabilities in what the trainer's method returns, a tuple that begins with them."""
        logps = found[0] if isinstance(found, tuple) else None
        if not isinstance(logps, Tensor) or logps.shape != (len(ids), length):
            raise changed(
                self.trainer, f"returns no (rows, {length}) log-probabilities from {PER_TOKEN.name}"
            )
        return logps

    def listen_to_logps(self, heard: Heard) -> Callable[[], None]:
        """Have `heard` called with what the training step's own forward passes find; returns what ends it.

        What the method returns is not changed. Passes that are given more than tokens (images) are left out. A step
        that breaks off is told to nobody: a pass of any other step, or of another run, ends it as well.
        """
        state, step = self.trainer.state, self.trainer.state.global_step

        def listening(found: Any, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
            if self.trainer.state is not state or state.global_step != step:
                stop()
                return
            more = [key for key, value in options.items() if value is not None and key not in _HARMLESS]
            if torch.is_grad_enabled() and len(arguments) == len(PER_TOKEN.arguments) and not more:
                _, ids, attention, length = arguments
                heard(self._logps_in(found, ids, length).detach(), ids, attention, length)

        stop = self._watch(PER_TOKEN, listening)
        return stop

    def _watch(self, method: Method, seen: Seen) -> Callable[[], None]:
        """Have `seen` called with (result, arguments, options) of each call of a method; returns what ends it, once."""
        trainer, name = self.trainer, method.name
        plain, own = getattr(trainer, name), vars(trainer).get(name)
        watching = True

        def watched(*arguments: Any, **options: Any) -> Any:
            result = plain(*arguments, **options)
            seen(result, arguments, options)
            return result

        def stop() -> None:
            nonlocal watching
            if not watching:
                return
            watching = False
            if own is None:
                delattr(trainer, name)
            else:
                setattr(trainer, name, own)

        setattr(trainer, name, watched)
        return stop

    @contextmanager
    def _watched(self, method: Method, calls: _Calls) -> Iterator[None]:
        stop = self._watch(method, calls.add)
        try:
            yield
        finally:
            stop()

    def training_metric(self, name: str) -> list[float]:
        """What the trainer has measured under a name since it last logged; the list that it goes on to fill itself."""
        metrics = self.trainer._metrics["train"]
        # Each generation writes both; where only one is there, rewards have got another name.
        if name == "reward" and name not in metrics and "completions/mean_length" in metrics:
            raise changed(self.trainer, "measures completions and no metric 'reward'")
        found: list[float] = metrics.get(name, [])
        return found

    def training_metrics(self) -> MutableMapping[str, list[float]]:
        """All of the above by name: the mean of each list is in the trainer's next log."""
        metrics: MutableMapping[str, list[float]] = self.trainer._metrics["train"]
        return metrics

    def prepared(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Tokenised rows as one batch for the model, on its device (SFT)."""
        batch: dict[str, Any] = self.trainer._prepare_inputs(self.trainer.data_collator(rows))
        return batch

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """The trainer and the random states outside torch as they were, afterwards.

        Inside, metrics and logs are copies, and groups are as large as in training, whatever evaluation makes of them:
        reward functions may compare the completions of a group. Whatever else is bound anew (tools and environments of
        the batch) is put back; what a trainer of TRL's holds besides is not written in evaluation mode.
        """
        trainer = self.trainer
        held = dict(vars(trainer))
        tokens, states = trainer.state.num_input_tokens_seen, (random.getstate(), np.random.get_state())
        for name in WRITTEN_BY_SCORING:
            if name in held:
                setattr(trainer, name, _copied(held[name]))
        if self.generates:
            trainer.num_generations_eval = trainer.num_generations
        try:
            yield
        finally:
            for name in REBOUND_BY_SCORING:
                if name in held:
                    setattr(trainer, name, held[name])
                else:
                    vars(trainer).pop(name, None)
            trainer.state.num_input_tokens_seen = tokens
            random.setstate(states[0])
            np.random.set_state(states[1])


class _Calls:
    """What a method was called with and what it returned, in order."""

    def __init__(self, check: Callable[[Any], None] = lambda result: None) -> None:
        self.results: list[Any] = []
        self.arguments: list[tuple[Any, ...]] = []
        self._check = check

    def add(self, result: Any, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        """Note one call, whose result passes the check."""
        self._check(result)
        self.results.append(result)
        self.arguments.append((*arguments, *options.values()))


def _copied(written: Any) -> Any:
    """Nested dictionaries and lists copied, so that they can be written to; what they hold is the same."""
    if isinstance(written, dict):
        made = copy.copy(written)
        made.update((key, _copied(value)) for key, value in written.items())
        return made
    return copy.copy(written) if isinstance(written, (list, deque)) else written


def _tokens(batch: Mapping[str, Any], lengths: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, attention mask, mask of the model's own tokens) of a batch, see `Scored.tokens`.

    A trainer may mask whole completions that were truncated; they are there all the same.
    """
    completions = batch["completion_ids"]
    places = torch.arange(completions.size(1), device=completions.device)
    present = (places < torch.tensor(lengths, device=completions.device).unsqueeze(1)).long()
    own = present
    if "tool_mask" in batch:
        mask = batch["tool_mask"].long() * present
        own = torch.where(mask.any(dim=1, keepdim=True), mask, present)
    return (
        torch.cat([batch["prompt_ids"], completions], dim=1),
        torch.cat([batch["prompt_mask"], present], dim=1),
        own,
    )


def check_fused_head(model: Any) -> None:
    """See that a model's fused head, which a trainer gave it, takes labels that are shifted already.

    Args:
        model: the causal language model inside any PEFT wrapper; one without a fused head passes.

    Raises:
        InputError: the head does not take them.
    """
    # TRL's head shows the signature of the forward that it replaced; its own is below.
    takes = inspect.signature(model.forward, follow_wrapped=False).parameters
    if "fused_lm_head" in takes and "shift_labels" not in takes:
        raise changed(model, "has a fused head that takes no shift_labels")
