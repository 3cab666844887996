"""The private names of TRL's trainers that the seam leans on, and the check that a trainer has them as they were read.

All of it was read in the source of TRL 1.16.0. With `_buffered_inputs` or `_last_loaded_step` under another name, a run
would go on training on rollouts from before a leap, and nothing in a log would say so: hence a trainer that lacks a
name, or whose method takes other arguments than it is given, is refused.

Two kinds of trainers need two sets of names: GRPOTrainer and RLOOTrainer generate completions and hold rollouts,
SFTTrainer does not. A subclass may override any of it with a compatible signature.
"""

from __future__ import annotations

import functools
import inspect
import logging
import re
from dataclasses import dataclass
from typing import Any

import trl

from nextrl.errors import InputError
from nextrl.say import say

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
WRITTEN_BY_SCORING = ("_metrics", "_logs", "_pending_metrics", "_pending_extra_logs")

# What is bound anew for each batch besides: the tools and environments of its rows.
REBOUND_BY_SCORING = (
    *WRITTEN_BY_SCORING,
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
    *map(Attribute, WRITTEN_BY_SCORING),
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

ROLLOUT_PARTS = ("prompt_ids", "completion_ids", "prompt_mask", "completion_mask")


def check(trainer: Any) -> None:
    """See that a trainer has everything that nextrl leans on; a newer TRL is mentioned once in the log.

    Raises:
        InputError: it is no GRPOTrainer, RLOOTrainer or SFTTrainer, or something is missing or changed.
    """
    for need in _needs(trainer):
        if problem := need.problem(trainer):
            raise changed(trainer, problem)
    _mention_newer(trl.__version__)


def _needs(trainer: Any) -> tuple[Method | Attribute, ...]:
    if isinstance(trainer, trl.SFTTrainer):
        # TRL builds others on it (GKD, GOLD), whose rows' likelihood is not what they train for.
        kind = next(one for one in type(trainer).__mro__ if one.__module__.partition(".")[0] == "trl")
        if kind is not trl.SFTTrainer:
            raise InputError(
                f"{kind.__name__} trains for something else than its rows' likelihood, which is all that could be "
                "judged: LeapCallback needs TRL's GRPOTrainer or RLOOTrainer (or SFTTrainer, as a control)"
            )
        return SUPERVISED
    ours = isinstance(trainer, (trl.GRPOTrainer, trl.RLOOTrainer))
    if not ours and not all(hasattr(trainer, method.name) for method in (SCORE, REWARDS)):
        raise InputError(
            f"{type(trainer).__name__} generates no completions to score: LeapCallback needs TRL's "
            "GRPOTrainer or RLOOTrainer (or SFTTrainer, as a control)"
        )
    engine = ENGINE if getattr(trainer, "use_vllm", False) else ()
    return GENERATING + engine


def changed(owner: Any, problem: str) -> InputError:
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
        say(
            log,
            "TRL %s is newer than TRL %s, which nextrl was written against; all that leaps lean on is there",
            installed,
            READ_IN,
        )
