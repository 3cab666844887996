"""Rollouts on chosen prompts through a TRL trainer's own path: its generation, its reward functions, its weights.

Scoring must see what training sees, so it goes through the trainer (Hugging Face generate or vLLM, chat template,
tools), not around it. It leaves no trace: random states, metrics and logs are put back, and a vLLM engine is told
that its weights are stale, both before and after, since TRL syncs it only when the step number changes.

With several processes, each generates its share of the rows, and each gets the rewards of all rows.

Candidates share their random numbers under Hugging Face generate. vLLM draws its own random numbers; a search then
compares independent samples, and its standard errors, which are taken from the differences, are as much larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nextrl.engines.candidate_scores import Row, divergence_sums, mean_divergence
from nextrl.engines.ranks import Ranks
from nextrl.engines.trl.seam import Generated, Seam
from nextrl.errors import InputError
from nextrl.tasks.evaluate import inference, seeded

# Distance between the seeds of two processes, so large that no other step and no other stage of a search has them.
_SEED_DISTANCE = 15_485_863


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
            InputError: it is no GRPO or RLOO trainer, not as TRL's was read, or its rollouts need an environment.
        """
        self._trainer, self._seam = trainer, Seam(trainer)
        if self._seam.has_environments:
            raise InputError(
                "LeapCallback cannot score rollouts in environments yet: leave it out of this run"
            )
        self._ranks = Ranks(trainer.accelerator)
        self.completions = 0
        self.mean_length = self.truncated = math.nan
        self._latest: tuple[Tensor, Tensor, Tensor] | None = None

    def rewards(self, rows: Sequence[Row], seed: int) -> Tensor:
        """Reward of one completion per row: (n,) float64, weighted over the trainer's reward functions.

        The same rows and seed give the same prompts and the same random numbers whatever the weights are. Every
        process must call this with the same rows, and gets the rewards of all of them.
        """
        seam, asked = self._seam, len(rows)
        rows = [dict(row) for row in self._ranks.share(rows)]
        prompts = [row["prompt"] for row in rows]
        self.mark_weights_changed()
        own_seed = seed + _SEED_DISTANCE * self._ranks.rank
        with seam.untouched(), inference(self._trainer.model), seeded(own_seed):
            generated = seam.generate(prompts)
            rewards = seam.rewards_of(rows, prompts, generated)
            self.mean_length, self.truncated = seam.generation_lengths()
        self._latest = None if _has_images(rows) else self._padded(generated)
        self.mark_weights_changed()
        self.completions += len(rewards)
        # Where the rows do not divide among the processes, the last rewards are of repetitions.
        return rewards[:asked]

    def log_probabilities(self) -> Tensor | None:
        """Log-probability of each token of the latest completions under the weights the model now has, in nats.

        (n, length) float32, 0 where there is no token; None before any scoring, and for rows with images.
        """
        if self._latest is None:
            return None
        ids, attention, mask = self._latest
        return log_probabilities(self._trainer, ids, attention, mask.size(1)) * mask

    def divergence(self, candidate: Tensor | None, current: Tensor | None) -> float:
        """KL(candidate || current), nats per token, from `log_probabilities` of the candidate's own completions.

        Over all processes, each of which must call this.

        NaN where either is None, infinite where the candidate has no probabilities at all (`divergence_sums`).
        """
        if candidate is None or current is None or self._latest is None:
            return math.nan
        local = divergence_sums(candidate, current, self._latest[2])
        return mean_divergence(self._trainer.accelerator.reduce(local, reduction="sum"))

    def _padded(self, generated: Generated) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts padded on the left and completions on the right, as in a training batch.

        Returns:
            (ids (n, prompt + completion), attention mask alike, mask of the model's own tokens (n, completion)).
        """
        prompts, completions = generated.prompt_ids, generated.completion_ids
        own = generated.own_tokens
        if own is None:
            own = [[1] * len(completion) for completion in completions]
        processing = self._trainer.processing_class
        pad = getattr(processing, "tokenizer", processing).pad_token_id
        ids = [
            before + after
            for before, after in zip(_fill(prompts, pad, left=True), _fill(completions, pad), strict=True)
        ]
        attended = [
            before + after
            for before, after in zip(
                _fill([[1] * len(p) for p in prompts], 0, left=True),
                _fill([[1] * len(c) for c in completions], 0),
                strict=True,
            )
        ]
        device = self._trainer.accelerator.device
        return (
            torch.tensor(ids, device=device),
            torch.tensor(attended, device=device),
            torch.tensor(_fill(own, 0), device=device),
        )

    def mark_weights_changed(self) -> None:
        """Make the next rollout deliver the current weights to vLLM, whatever the step number says."""
        self._seam.weights_changed()

    def drop_buffered(self) -> None:
        """Forget rollouts sampled before a leap, which would be trained on after it."""
        self._seam.drop_buffered_rollouts()


def _fill(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> list[list[int]]:
    """All rows as long as the longest, filled up with a value on one side."""
    longest = max(len(row) for row in rows)
    fills = [[value] * (longest - len(row)) for row in rows]
    return [[*fill, *row] if left else [*row, *fill] for fill, row in zip(fills, rows, strict=True)]


def _has_images(rows: Sequence[Row]) -> bool:
    return any(key in row for row in rows for key in ("image", "images"))


def log_probabilities(trainer: Any, ids: Tensor, attention: Tensor, length: int) -> Tensor:
    """The trainer's own log-probabilities of the last `length` tokens: (n, length) float32, without a trace in it."""
    seam = Seam(trainer)
    with seam.untouched(), inference(trainer.model):
        return seam.per_token_logps(ids, attention, length)


class RewardMeter:
    """Reads the training rewards that a trainer has measured, each once."""

    def __init__(self, trainer: Any, name: str = "reward") -> None:
        """`name` is the trainer's for the metric."""
        self._seam, self._name = Seam(trainer), name
        self._list: list[float] = []
        self._read = 0
        self.latest = math.nan

    def new(self) -> float:
        """Mean reward of what was sampled since the last call; where nothing was (buffered rollouts), the last mean."""
        values = self._seam.training_metric(self._name)
        fresh = values[self._read :] if values is self._list else values
        fresh = [float(v) for v in fresh if not math.isnan(v)]
        if fresh:
            self.latest = sum(fresh) / len(fresh)
        self.mark()
        return self.latest

    def mark(self) -> None:
        """Take what the trainer holds now as read (its lists are new objects after a log or a search)."""
        self._list = self._seam.training_metric(self._name)
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
