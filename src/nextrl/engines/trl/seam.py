"""The seam to TRL: every private name, and every undocumented behaviour, of its trainers that nextrl leans on.

All of it was read in the source of TRL 1.16.0. `Seam(trainer)` checks that each name exists and takes the arguments
that it is given here, and refuses a trainer where one does not: with `_buffered_inputs` or `_last_loaded_step` under
another name, a run would go on training on rollouts from before a leap, and nothing in a log would say so. What cannot
be checked before a call, such as the form of a result, is checked at every call. No other module of nextrl names a
private attribute of a trainer, and a test holds that.

Two kinds of trainers need two sets of names: GRPOTrainer and RLOOTrainer generate completions and hold rollouts,
SFTTrainer does not. A subclass may override any of it with a compatible signature.

The dataset's sampler, inside a chain of wrappers of accelerate's, is found here as well.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import math
import random
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import trl
from torch import Tensor

from nextrl.errors import InputError

log = logging.getLogger(__name__)

READ_IN = "1.16.0"
"""The version of TRL whose source was read."""

WORKS = "1.16"
"""The releases of TRL that are known to work."""


@dataclass(frozen=True)
class Method:
    """A trainer's method that nextrl calls.

    Attributes:
        name: the method's.
        arguments: TRL's names of the positional arguments that it is given, in order.
        options: names of its keyword arguments.
    """

    name: str
    arguments: tuple[str, ...]
    options: tuple[str, ...] = ()

    def problem(self, trainer: Any) -> str | None:
        """What keeps it from being called as nextrl calls it; None where nothing does."""
        method = getattr(trainer, self.name, None)
        if not callable(method):
            return f"has no method {self.name}"
        signature = inspect.signature(method)
        given, takes = (f"({', '.join(n)})" for n in ((*self.arguments, *self.options), signature.parameters))
        try:
            # Each name is bound as its own value, to see which parameter it would arrive at.
            bound = signature.bind(*self.arguments, **{option: option for option in self.options}).arguments
        except TypeError as error:
            return f"has a {self.name}{takes} that cannot be given {given} ({error})"
        # Parameters under names of their own are a subclass's business; TRL's names in another order are not.
        known = {*self.arguments, *self.options}
        if any(name in known and value in known and name != value for name, value in bound.items()):
            return f"has a {self.name}{takes} whose arguments are not in the order {given}"
        return None


@dataclass(frozen=True)
class Attribute:
    """An attribute that every instance of a trainer has, with whatever value, from its `__init__` on."""

    name: str

    def problem(self, trainer: Any) -> str | None:
        """That it is missing; None where it is there."""
        return None if hasattr(trainer, self.name) else f"has no attribute {self.name}"


PER_TOKEN = Method(
    "_get_per_token_logps_and_entropies",
    ("model", "input_ids", "attention_mask", "logits_to_keep"),
    ("batch_size",),
)

SCORE = Method("_generate_and_score_completions", ("inputs",))
REWARDS = Method("_calculate_rewards", ("inputs", "prompts", "completions", "completion_ids_list"))

# What scoring a candidate writes into a trainer: metrics, logs, and what reward functions log themselves.
_WRITTEN_BY_SCORING = ("_metrics", "_logs", "_pending_metrics", "_pending_extra_logs")

# What is bound anew for each batch besides: the tools and environments of its rows.
_REBOUND_BY_SCORING = (
    *_WRITTEN_BY_SCORING,
    "num_generations_eval",
    "_sync_tool_dicts",
    "_async_tool_dicts",
    "_batch_environments",
    "environments",
)

GENERATING: tuple[Method | Attribute, ...] = (
    SCORE,
    REWARDS,
    PER_TOKEN,
    Attribute("_buffered_inputs"),
    Attribute("_step"),
    *map(Attribute, _WRITTEN_BY_SCORING),
    Attribute("reward_weights"),
    Attribute("num_generations"),
    Attribute("num_generations_eval"),
    Attribute("use_vllm"),
)
"""Of GRPOTrainer and RLOOTrainer."""

ENGINE: tuple[Method | Attribute, ...] = (Attribute("_last_loaded_step"),)
"""Of a generating trainer with vLLM."""

SUPERVISED: tuple[Method | Attribute, ...] = (
    Method("_prepare_inputs", ("inputs",)),
    Attribute("_metrics"),
    Attribute("padding_free"),
)
"""Of SFTTrainer."""

_ROLLOUT_PARTS = ("prompt_ids", "completion_ids", "prompt_mask", "completion_mask")


def check(trainer: Any) -> None:
    """See that a trainer has everything that nextrl leans on; a newer TRL is mentioned once in the log.

    Raises:
        InputError: it is no GRPOTrainer, RLOOTrainer or SFTTrainer, or something is missing or changed.
    """
    for need in _needs(trainer):
        if problem := need.problem(trainer):
            raise _changed(trainer, problem)
    _mention_newer(trl.__version__)


def _needs(trainer: Any) -> tuple[Method | Attribute, ...]:
    if isinstance(trainer, trl.SFTTrainer):
        return SUPERVISED
    ours = isinstance(trainer, (trl.GRPOTrainer, trl.RLOOTrainer))
    if not ours and not all(hasattr(trainer, method.name) for method in (SCORE, REWARDS)):
        raise InputError(
            f"{type(trainer).__name__} generates no completions to score: LeapCallback needs TRL's "
            "GRPOTrainer or RLOOTrainer (or SFTTrainer, as a control)"
        )
    engine = ENGINE if getattr(trainer, "use_vllm", False) else ()
    return GENERATING + engine


def _changed(owner: Any, problem: str) -> InputError:
    """The one line for a trainer, or a model that it made its own, that is not as it was read."""
    return InputError(
        f"{type(owner).__name__} (TRL {trl.__version__} is installed) {problem}: leaps lean on it as TRL {READ_IN} "
        f"has it, and TRL {WORKS} is known to work; run `pip install 'trl=={WORKS}.*'`, or open an issue with this line"
    )


@functools.cache
def _mention_newer(installed: str) -> None:
    release = re.match(r"(\d+)\.(\d+)", installed)
    newest = tuple(int(number) for number in WORKS.split("."))
    if release and (int(release[1]), int(release[2])) > newest:
        log.warning(
            "TRL %s is newer than TRL %s, which nextrl was written against; all that leaps lean on is there",
            installed,
            READ_IN,
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
            if missing := [part for part in _ROLLOUT_PARTS if part not in batch]:
                raise _changed(self.trainer, f"holds rollouts without {missing[0]}")
        return list(buffered)

    @property
    def samples_next(self) -> bool:
        """Whether the optimizer step to come begins with fresh rollouts, all sampled at the present weights."""
        trainer = self.trainer
        batches = trainer.args.steps_per_generation * trainer.args.num_iterations
        return trainer._buffered_inputs is None or trainer._step % batches == 0

    def drop_buffered_rollouts(self) -> None:
        """Forget the rollouts that the trainer holds: it samples anew at its next step."""
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
        if not isinstance(batch, Mapping) or any(part not in batch for part in _ROLLOUT_PARTS):
            raise _changed(self.trainer, f"returns no rollouts from {SCORE.name}")
        if not graded.results:
            raise _changed(self.trainer, f"calls no {REWARDS.name} in {SCORE.name}")
        by_function = graded.results[-1]
        ids = graded.arguments[-1][len(REWARDS.arguments) - 1]
        if len(ids) != len(rows) or batch["completion_ids"].shape[:1] != (len(rows),):
            raise _changed(self.trainer, f"returns other completions from {SCORE.name} than one for each row")
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
        weights = self.trainer.reward_weights.double().cpu()
        if spread is not None:
            weights = weights / spread
        rewards: Tensor = (scored.by_function * weights).nansum(dim=1)
        if clip := getattr(self.trainer, "reward_clip_range", None):  # RLOO's
            rewards = rewards.clamp(min=clip[0], max=clip[1])
        rewards = rewards - scored.penalty
        rewards[scored.by_function.isnan().all(dim=1)] = math.nan
        return rewards

    def _check_rewards(self, by_function: Any) -> None:
        if not isinstance(by_function, Tensor) or by_function.shape[1:] != self.trainer.reward_weights.shape:
            raise _changed(self.trainer, f"returns no reward of each function from {REWARDS.name}")

    def _penalty(self, batch: Mapping[str, Any], passes: list[Any], n: int) -> Tensor:
        """(n,) float64 over all processes: beta times the log-ratio to the reference, which RLOO counts as a reward."""
        if not isinstance(self.trainer, trl.RLOOTrainer) or not self.trainer.beta:
            return torch.zeros(n, dtype=torch.float64)
        if len(passes) != 2:
            raise _changed(
                self.trainer, f"does not compute the policy's and the reference's {PER_TOKEN.name}"
            )
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
            raise _changed(self.trainer, f"measures no {missing[0]}")
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
            raise _changed(
                self.trainer, f"returns no (rows, {length}) log-probabilities from {PER_TOKEN.name}"
            )
        return logps

    def listen_to_logps(self, heard: Heard) -> Callable[[], None]:
        """Have `heard` called with what the training step's own forward passes find; returns what ends it.

        What the method returns is not changed. Passes that are given more than tokens (images) are left out.
        """

        def listening(found: Any, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
            more = [key for key, value in options.items() if value is not None and key not in _HARMLESS]
            if torch.is_grad_enabled() and len(arguments) == len(PER_TOKEN.arguments) and not more:
                _, ids, attention, length = arguments
                heard(self._logps_in(found, ids, length).detach(), ids, attention, length)

        return self._watch(PER_TOKEN, listening)

    def _watch(
        self, method: Method, seen: Callable[[Any, tuple[Any, ...], Mapping[str, Any]], None]
    ) -> Callable[[], None]:
        """Have `seen` called with (result, arguments, options) of each call of a method; returns what ends it."""
        trainer, name = self.trainer, method.name
        plain, own = getattr(trainer, name), vars(trainer).get(name)

        def watched(*arguments: Any, **options: Any) -> Any:
            result = plain(*arguments, **options)
            seen(result, arguments, options)
            return result

        def stop() -> None:
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
            raise _changed(self.trainer, "measures completions and no metric 'reward'")
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
        for name in _WRITTEN_BY_SCORING:
            if name in held:
                setattr(trainer, name, _copied(held[name]))
        if self.generates:
            trainer.num_generations_eval = trainer.num_generations
        try:
            yield
        finally:
            for name in _REBOUND_BY_SCORING:
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
        raise _changed(model, "has a fused head that takes no shift_labels")


def training_loader(trainer: Any) -> Any:
    """The loader of training batches, from the start of `train()` on: callbacks are handed the same one."""
    return trainer.callback_handler.train_dataloader


def dataset_sampler(loader: Any) -> Any:
    """The sampler of a loader's dataset, None where it has none (a stream)."""
    return getattr(_sampling(loader), "sampler", None)


def replace_dataset_sampler(loader: Any, sampler: Any) -> None:
    """Draw from another sampler of the same dataset, from the next epoch that begins on."""
    _sampling(loader).sampler = sampler


def draw_orders_again(loader: Any, epochs: int) -> None:
    """Bring the order of prompts to where it is after some epochs, for a run that goes on from a checkpoint.

    TRL's RepeatSampler shuffles with a generator of its own, one permutation of the dataset an epoch, and no checkpoint
    holds that generator.
    """
    sampler = dataset_sampler(loader)
    for _ in range(epochs):
        torch.randperm(sampler.num_samples, generator=sampler.generator)


def _sampling(loader: Any) -> Any:
    """What holds the dataset's sampler: the batch sampler inside all that accelerate wraps around it."""
    while getattr(loader, "batch_sampler", None) is not None:
        loader = loader.batch_sampler
    return loader
