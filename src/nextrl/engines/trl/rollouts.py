"""Rollouts on chosen prompts through a TRL trainer's own path: its generation, its reward functions, its weights.

Scoring must see what training sees, so it goes through the trainer (Hugging Face generate or vLLM, chat template,
tools), not around it. It leaves no trace: random states, metrics and logs are put back, and a vLLM engine is told
that its weights are stale, both before and after, since TRL syncs it only when the step number changes.

Many processes each generate their share of the rows and all get all the rewards.

Candidates share their random numbers under Hugging Face generate. vLLM draws its own; the search then compares
independent samples, and its standard errors, taken from the differences, say so by themselves.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextrl.engines.ranks import Ranks
from nextrl.errors import InputError
from nextrl.tasks.evaluate import inference, seeded

Row = dict[str, Any]
"""One row of the trainer's dataset: `prompt` and whatever columns the reward functions need."""

# Between the seeds of two processes, so that they meet no other step's and no other stage's of a search.
_BESIDE = 15_485_863

# What scoring writes into a trainer: metrics and completion logs, and what reward functions log themselves.
_WRITTEN = ("_metrics", "_logs", "_pending_metrics", "_pending_extra_logs")


class TrainerRollouts:
    """Scores rows of a dataset with the current weights of a trainer's model.

    Attributes:
        completions: completions generated so far, over all processes.
        mean_length: mean completion length in tokens of the latest scoring, over all processes; NaN before any.
        truncated: share of its completions that did not end by themselves, over all processes; NaN before any.
    """

    def __init__(self, trainer: Any) -> None:
        """Check that the trainer can be asked for rollouts.

        Raises:
            InputError: it is no GRPO or RLOO trainer, or its rollouts need an environment.
        """
        if not all(hasattr(trainer, name) for name in ("_generate", "_calculate_rewards", "_metrics")):
            raise InputError(
                f"{type(trainer).__name__} generates no completions to score: LeapCallback needs TRL's "
                "GRPOTrainer or RLOOTrainer (or SFTTrainer, as a control)"
            )
        if getattr(trainer, "environment_factories", None) is not None:
            raise InputError(
                "LeapCallback cannot score rollouts in environments yet: leave it out of this run"
            )
        self._trainer = trainer
        self._ranks = Ranks(trainer.accelerator)
        self.completions = 0
        self.mean_length = self.truncated = math.nan
        self._latest: tuple[Tensor, Tensor, Tensor] | None = None

    def rewards(self, rows: Sequence[Row], seed: int) -> Tensor:
        """Reward of one completion a row: (n,) float64, weighted over the trainer's reward functions.

        The same rows and seed give the same prompts and the same random numbers whatever the weights are. Every
        process must call this with the same rows, and gets the rewards of all of them.
        """
        trainer, asked = self._trainer, len(rows)
        rows = [dict(row) for row in self._ranks.share(rows)]
        prompts = [row["prompt"] for row in rows]
        self.mark_weights_changed()
        with _untouched(trainer), inference(trainer.model), seeded(seed + _BESIDE * self._ranks.rank):
            generated = trainer._generate(prompts)
            ids, completions = _ids_and_completions(generated)
            by_function = trainer._calculate_rewards(rows, prompts, completions, ids)
            self.mean_length = float(trainer._metrics["eval"]["completions/mean_length"][-1])
            self.truncated = float(trainer._metrics["eval"]["completions/clipped_ratio"][-1])
        self._latest = None if _has_images(rows) else self._padded(generated)
        self.mark_weights_changed()
        weights = trainer.reward_weights.to(by_function.device).unsqueeze(0)
        # TRL gathers the rewards in the order of the processes; where rows did not divide, the last are repetitions.
        rewards: Tensor = (by_function * weights).nansum(dim=1).double().cpu()
        self.completions += len(rewards)
        return rewards[:asked]

    def log_probabilities(self) -> Tensor | None:
        """Log-probability of each token of the latest completions under the weights the model now has, in nats.

        (n, length) float32, 0 where there is no token; None before any scoring and for rows with images, which
        need more than tokens.
        """
        if self._latest is None:
            return None
        ids, attention, mask = self._latest
        return log_probabilities(self._trainer, ids, attention, mask.size(1)) * mask

    def divergence(self, candidate: Tensor | None, current: Tensor | None) -> float:
        """KL(candidate || current), nats a token, from `log_probabilities` of the candidate's own completions.

        Over all processes, each of which must call this.

        Estimated without bias as the mean over tokens of `r - 1 - log r`, r = p_current / p_candidate, which is never
        negative (Schulman, "Approximating KL Divergence", 2020, k3). NaN where either is None, infinite where the
        candidate has no probabilities at all.
        """
        if candidate is None or current is None or self._latest is None:
            return math.nan
        mask = self._latest[2]
        # r beyond e^20 says "elsewhere" whatever its size.
        log_ratio = (current - candidate).clamp(max=20.0)
        local = torch.stack([((log_ratio.exp() - 1.0 - log_ratio) * mask).sum(), mask.sum().float()])
        total, tokens = self._trainer.accelerator.reduce(local, reduction="sum")
        mean = float(total / tokens.clamp_min(1.0))
        return mean if math.isfinite(mean) else math.inf

    def _padded(self, generated: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
        """(ids, attention mask, mask of the model's own completion tokens): prompts padded left, completions right."""
        prompts, (completions, _) = generated[0], _ids_and_completions(generated)
        own = (
            generated[2]
            if len(generated) > 3 and generated[2] is not None
            else [[1] * len(c) for c in completions]
        )
        device, pad = self._trainer.accelerator.device, self._trainer.processing_class
        pad = getattr(pad, "tokenizer", pad).pad_token_id
        left, right = (max(len(x) for x in side) for side in (prompts, completions))
        rows = [
            ([pad] * (left - len(p)) + [*p], [*c] + [pad] * (right - len(c)))
            for p, c in zip(prompts, completions, strict=True)
        ]
        attended = [
            [0] * (left - len(p)) + [1] * (len(p) + len(c)) + [0] * (right - len(c))
            for p, c in zip(prompts, completions, strict=True)
        ]
        mask = [[*m] + [0] * (right - len(m)) for m in own]
        ids = torch.tensor([p + c for p, c in rows], device=device)
        return ids, torch.tensor(attended, device=device), torch.tensor(mask, device=device)

    def mark_weights_changed(self) -> None:
        """Make the next rollout deliver the current weights to vLLM, whatever the step number says."""
        if getattr(self._trainer, "use_vllm", False):
            self._trainer._last_loaded_step = -1

    def drop_buffered(self) -> None:
        """Forget rollouts sampled before a leap, which would be trained on after it."""
        self._trainer._buffered_inputs = None


def _ids_and_completions(generated: Sequence[Any]) -> tuple[Any, Any]:
    """GRPO's `_generate` returns (prompt ids, ids, tool mask, completions, ...), RLOO's the same without the mask."""
    return generated[1], generated[2] if len(generated) == 3 else generated[3]


def _has_images(rows: Sequence[Row]) -> bool:
    return any(key in row for row in rows for key in ("image", "images"))


def log_probabilities(trainer: Any, ids: Tensor, attention: Tensor, length: int) -> Tensor:
    """The trainer's own log-probabilities of the last `length` tokens: (n, length) float32, without a trace in it."""
    with _untouched(trainer), inference(trainer.model):
        found = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, attention, length, batch_size=trainer.args.per_device_train_batch_size
        )
    logps: Tensor = found[0].float()
    return logps


@contextmanager
def _untouched(trainer: Any) -> Iterator[None]:
    """The trainer's metrics, logs, token count and the random states outside torch as they were, afterwards.

    Inside, each prompt is one completion's: vLLM is handed every `num_generations_eval`-th prompt only, as a
    trainer's batch repeats each prompt that often, and would answer other rows than those that are graded.
    """
    kept = {name: copy.deepcopy(getattr(trainer, name)) for name in _WRITTEN if hasattr(trainer, name)}
    tokens, generations = trainer.state.num_input_tokens_seen, getattr(trainer, "num_generations_eval", None)
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


class RewardMeter:
    """Reads the training rewards that a trainer has measured, each once."""

    def __init__(self, trainer: Any, name: str = "reward") -> None:
        """`name` is the trainer's for the metric."""
        self._trainer, self._name = trainer, name
        self._list: list[float] = []
        self._read = 0
        self.latest = math.nan

    def new(self) -> float:
        """Mean reward of what was sampled since the last call; the last one again where nothing was (a buffer)."""
        values = self._trainer._metrics["train"].get(self._name, [])
        fresh = values[self._read :] if values is self._list else values
        fresh = [float(v) for v in fresh if not math.isnan(v)]
        if fresh:
            self.latest = sum(fresh) / len(fresh)
        self.mark()
        return self.latest

    def mark(self) -> None:
        """Take what the trainer holds now as read (its lists are new objects after a log or a search)."""
        self._list = self._trainer._metrics["train"].get(self._name, [])
        self._read = len(self._list)


def set_rate_factor(optimizer: torch.optim.Optimizer, scheduler: Any, factor: float) -> None:
    """Multiply the learning rate, base rates included, so that warm-up and decay keep their shape."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    scheduler = getattr(scheduler, "scheduler", scheduler)
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
        if "initial_lr" in group:
            group["initial_lr"] = group["initial_lr"] * factor
    _scale_schedule(scheduler, optimizer, factor)


def _scale_schedule(scheduler: Any, optimizer: torch.optim.Optimizer, factor: float) -> None:
    # A SequentialLR or ChainedScheduler holds others, each with base rates of its own.
    for inner in getattr(scheduler, "_schedulers", ()):
        _scale_schedule(inner, optimizer, factor)
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [base * factor for base in scheduler.base_lrs]
    if hasattr(scheduler, "_last_lr"):
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
