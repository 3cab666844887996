"""The seam to TRL: every private name, and every undocumented behaviour, of its trainers that nextrl leans on.

All of it was read in the source of TRL 1.16.0. `Seam(trainer)` checks that each name exists and takes the arguments
that it is given here, and refuses a trainer where one does not: with `_buffered_inputs` or `_last_loaded_step` under
another name, a run would go on training on rollouts from before a leap, and nothing in a log would say so. What cannot
be checked before a call, such as the form of a result, is checked at every call. No other module of nextrl names a
private attribute of a trainer, and a test holds that.

Three kinds of trainers need three sets of names: GRPOTrainer and RLOOTrainer generate completions and hold rollouts,
GRPOTrainer alone has environments, SFTTrainer neither. A subclass may override any of it with a compatible signature.

The dataset's sampler, inside a chain of wrappers of accelerate's, is found here as well.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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

# What scoring a candidate writes into a trainer: metrics, logs, and what reward functions log themselves.
_WRITTEN_BY_SCORING = ("_metrics", "_logs", "_pending_metrics", "_pending_extra_logs")

GENERATING: tuple[Method | Attribute, ...] = (
    Method("_generate", ("prompts",)),
    Method("_calculate_rewards", ("inputs", "prompts", "completions", "completion_ids_list")),
    PER_TOKEN,
    Attribute("_buffered_inputs"),
    Attribute("_step"),
    Attribute("num_iterations"),
    *map(Attribute, _WRITTEN_BY_SCORING),
    Attribute("reward_weights"),
    Attribute("num_generations_eval"),
    Attribute("use_vllm"),
)
"""Of GRPOTrainer and RLOOTrainer."""

ENVIRONMENTS: tuple[Method | Attribute, ...] = (Attribute("environment_factories"),)
"""Of GRPOTrainer alone."""

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
    if not ours and not (hasattr(trainer, "_generate") and hasattr(trainer, "_calculate_rewards")):
        raise InputError(
            f"{type(trainer).__name__} generates no completions to score: LeapCallback needs TRL's "
            "GRPOTrainer or RLOOTrainer (or SFTTrainer, as a control)"
        )
    environments = ENVIRONMENTS if isinstance(trainer, trl.GRPOTrainer) else ()
    engine = ENGINE if getattr(trainer, "use_vllm", False) else ()
    return GENERATING + environments + engine


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
class Generated:
    """Completions of a trainer, one for each prompt.

    Attributes:
        prompt_ids, completion_ids: token ids of each prompt and each completion, unpadded.
        completions: as reward functions take them, texts or lists of messages.
        own_tokens: for each completion 1 where the model itself wrote the token, 0 where a tool did; None: all are.
    """

    prompt_ids: Sequence[Sequence[int]]
    completion_ids: Sequence[Sequence[int]]
    completions: Sequence[Any]
    own_tokens: Sequence[Sequence[int]] | None


Heard = Callable[[Tensor, Tensor, Tensor, int], None]
"""Called with log-probabilities (n, length), ids and attention mask (n, prompt + length), length."""

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
    def has_environments(self) -> bool:
        """Whether completions are episodes in environments, which a mere prompt does not start."""
        return getattr(self.trainer, "environment_factories", None) is not None

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
        batches = trainer.args.steps_per_generation * trainer.num_iterations
        return trainer._buffered_inputs is None or trainer._step % batches == 0

    def drop_buffered_rollouts(self) -> None:
        """Forget the rollouts that the trainer holds: it samples anew at its next step."""
        self.trainer._buffered_inputs = None

    def generate(self, prompts: list[Any]) -> Generated:
        """Completions of prompts, by the trainer's own path (chat template, tools, vLLM). A collective operation.

        Metrics are written, and the model's mode decides where: wrap it in `untouched()` and evaluation mode.
        """
        found = self.trainer._generate(prompts)
        # GRPO returns (prompt ids, ids, tool mask, completions, ...), RLOO the same three without the mask.
        if not isinstance(found, tuple) or len(found) < 3:
            raise _changed(self.trainer, f"returns a {type(found).__name__} from _generate")
        own, completions = (None, found[2]) if len(found) == 3 else (found[2], found[3])
        generated = Generated(found[0], found[1], completions, own)
        if not _is_generation(generated, len(prompts)):
            raise _changed(self.trainer, "returns other things from _generate than ids and completions")
        return generated

    def generation_lengths(self) -> tuple[float, float]:
        """(mean tokens per completion, share that did not end by themselves) of the latest evaluation rollouts.

        Over all processes.
        """
        metrics = self.trainer._metrics["eval"]
        names = ("completions/mean_length", "completions/clipped_ratio")
        if missing := [name for name in names if not metrics.get(name)]:
            raise _changed(self.trainer, f"measures no {missing[0]}")
        return float(metrics[names[0]][-1]), float(metrics[names[1]][-1])

    def rewards_of(self, rows: Sequence[Mapping[str, Any]], prompts: list[Any], made: Generated) -> Tensor:
        """(n,) float64 on the CPU: the sum of the reward functions by the trainer's weights, over all processes.

        In the order of the processes. A collective operation.
        """
        by_function = self.trainer._calculate_rewards(rows, prompts, made.completions, made.completion_ids)
        weights = self.trainer.reward_weights
        if not isinstance(by_function, Tensor) or by_function.shape[1:] != weights.shape:
            raise _changed(self.trainer, "returns no reward of each function from _calculate_rewards")
        rewards: Tensor = (by_function * weights.to(by_function.device).unsqueeze(0)).nansum(dim=1)
        return rewards.double().cpu()

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
        trainer, name = self.trainer, PER_TOKEN.name
        computed, own = getattr(trainer, name), vars(trainer).get(name)

        def listening(*arguments: Any, **options: Any) -> Any:
            found = computed(*arguments, **options)
            more = [key for key, value in options.items() if value is not None and key not in _HARMLESS]
            if torch.is_grad_enabled() and len(arguments) == len(PER_TOKEN.arguments) and not more:
                _, ids, attention, length = arguments
                heard(self._logps_in(found, ids, length).detach(), ids, attention, length)
            return found

        def stop() -> None:
            if own is None:
                delattr(trainer, name)
            else:
                setattr(trainer, name, own)

        setattr(trainer, name, listening)
        return stop

    def training_metric(self, name: str) -> list[float]:
        """What the trainer has measured under a name since it last logged; the list that it goes on to fill itself."""
        metrics = self.trainer._metrics["train"]
        # Each generation writes both; where only one is there, rewards have got another name.
        if name == "reward" and name not in metrics and "completions/mean_length" in metrics:
            raise _changed(self.trainer, "measures completions and no metric 'reward'")
        found: list[float] = metrics.get(name, [])
        return found

    def training_metrics(self) -> Mapping[str, list[float]]:
        """All of the above by name: what is appended here is averaged into the trainer's next log."""
        metrics: Mapping[str, list[float]] = self.trainer._metrics["train"]
        return metrics

    def prepared(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Tokenised rows as one batch for the model, on its device (SFT)."""
        batch: dict[str, Any] = self.trainer._prepare_inputs(self.trainer.data_collator(rows))
        return batch

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """The trainer's metrics, logs, token count and the random states outside torch as they were, afterwards.

        Inside, each prompt is one completion's: vLLM is handed every `num_generations_eval`-th prompt only, as a
        trainer's batch repeats each prompt that often, and would answer other rows than those that are graded.
        """
        trainer = self.trainer
        kept = {name: copy.deepcopy(getattr(trainer, name)) for name in _WRITTEN_BY_SCORING}
        tokens, generations = trainer.state.num_input_tokens_seen, trainer.num_generations_eval
        states = random.getstate(), np.random.get_state()
        trainer.num_generations_eval = 1
        try:
            yield
        finally:
            for name, value in kept.items():
                setattr(trainer, name, value)
            trainer.state.num_input_tokens_seen = tokens
            trainer.num_generations_eval = generations
            random.setstate(states[0])
            np.random.set_state(states[1])


def _is_generation(made: Generated, prompts: int) -> bool:
    """Whether it has ids and a completion for each prompt, each of its own kind."""
    ids = (made.prompt_ids, made.completion_ids)
    return (
        all(len(part) == prompts for part in (*ids, made.completions))
        # Floats would be log-probabilities.
        and not any(isinstance(token, float) for part in ids for row in part for token in row[:1])
        and all(
            isinstance(c, str) or (isinstance(c, list) and all(isinstance(m, Mapping) for m in c))
            for c in made.completions
        )
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
