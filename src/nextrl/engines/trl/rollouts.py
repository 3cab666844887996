"""Rollouts on chosen prompts through a TRL trainer's own path: its generation, its reward functions, its weights.

Scoring must see what training sees, so a batch goes through the method that the trainer's own batches go through
(`_generate_and_score_completions`, in evaluation mode), with all that hangs on it: chat template, images, tools,
environments, `rollout_func` and its extra fields, vLLM or Hugging Face generate. What decides is the reward as it
reaches the advantage: weighted, clipped and penalised as the trainer does it. It leaves no trace: random states,
metrics and logs are put back, and a vLLM engine is told that its weights are stale, both before and after, since TRL
syncs it only when the step number changes.

As in training, each prompt is completed in a whole group of `num_generations`, for a reward function may compare the
completions of a group. Rows therefore come as the trainer's sampler yields them, each prompt so often (`InGroups`).

With several processes, each generates its share of the groups, and each gets the rewards of all rows.

Candidates share their random numbers under Hugging Face generate. vLLM draws its own random numbers; a search then
compares independent samples, and its standard errors, which are taken from the differences, are as much larger.
"""

from __future__ import annotations

import copy
import logging
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextrl.engines.candidate_scores import Row, divergence_sums, mean_divergence
from nextrl.engines.ranks import Ranks
from nextrl.engines.trl.seam import Scored, Seam
from nextrl.say import say
from nextrl.tasks.evaluate import inference, seeded

log = logging.getLogger(__name__)

# Distance between the seeds of two processes, so large that no other step and no other stage of a search has them.
_SEED_DISTANCE = 15_485_863
# Distance between the seeds of two batches of one scoring.
_BATCH_DISTANCE = 32_452_843
# Scorings whose spread of each reward function is kept: more than one search has.
_SPREADS = 16
# Steps without any reward that a run begins with before a line says so.
_SILENT = 5


class InGroups(Sequence[Row]):
    """Rows as a trainer's sampler yields them: each of them `group` times, one after the other.

    Two neighbours that are the same row are the same object.
    """

    def __init__(self, rows: Sequence[Row], group: int) -> None:
        self._rows, self._group = rows, group
        self._latest: tuple[int, Row] | None = None

    def __len__(self) -> int:
        return len(self._rows) * self._group

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        place = index % len(self) // self._group
        if self._latest is None or self._latest[0] != place:
            self._latest = place, self._rows[place]
        return self._latest[1]


class TrainerRollouts:
    """Scores rows of a dataset with the current weights of a trainer's model.

    Attributes:
        completions: completions generated so far, over all processes.
        unscored: those of them that no reward function graded.
        group: completions of each prompt.
        mean_length: mean completion length in tokens of the latest scoring, over all processes; NaN before any.
        truncated: share of its completions that did not end by themselves, over all processes; NaN before any.
    """

    def __init__(self, trainer: Any) -> None:
        """Check that the trainer can be asked for rollouts.

        Raises:
            InputError: it is no GRPO or RLOO trainer, or not as TRL's was read.
        """
        self._trainer, self._seam = trainer, Seam(trainer)
        self._ranks = Ranks(trainer.accelerator)
        self.group = self._seam.group
        self.completions = self.unscored = 0
        self.mean_length = self.truncated = math.nan
        self._latest: list[tuple[Tensor, Tensor, Tensor]] | None = None
        self._spreads: dict[int, Tensor] = {}

    def rewards(self, rows: Sequence[Row], seed: int) -> Tensor:
        """Reward of one completion per row: (n,) float64, as it reaches the advantage; NaN where nothing graded it.

        Rows that are the same object and stand beside each other are completions of one group. A group is always
        whole: where fewer rows of it are asked for, each gets the mean of its share of the completions.

        The same rows and seed give the same prompts and the same random numbers whatever the weights are. Where the
        trainer divides each reward function by its spread, the spread is that of the first scoring with this seed, so
        that all candidates are measured alike. Every process must call this with the same rows, and gets the rewards
        of all of them.
        """
        runs = _runs(rows, self.group)
        parts = _of_like_columns([row for row, _ in runs])
        self._seam.weights_changed()
        with self._seam.untouched(), inference(self._trainer.model):
            scored = [
                self._score([runs[place][0] for place in places], seed + _BATCH_DISTANCE * number)
                for number, places in enumerate(parts)
            ]
        self._seam.weights_changed()
        self._note(scored)
        spread = self._spread(scored, seed) if self._seam.normalises_each_function else None
        groups = torch.empty(len(runs), self.group, dtype=torch.float64)
        for places, part in zip(parts, scored, strict=True):
            # Where the groups do not divide among the processes, the last ones are repetitions.
            groups[places] = self._seam.combined(part, spread).view(-1, self.group)[: len(places)]
        return torch.cat([_shared_out(group, count) for group, (_, count) in zip(groups, runs, strict=True)])

    def _score(self, rows: Sequence[Row], seed: int) -> Scored:
        """A whole group of completions for each row; rows with the same columns."""
        # Processes that share one engine of vLLM draw its tokens together, each from its own random state.
        own_seed = seed + _SEED_DISTANCE * (self._ranks.rank // self._seam.ranks_per_engine)
        batch = [_own_copy(row) for row in self._ranks.share(rows) for _ in range(self.group)]
        # Custom rollouts and reward functions draw from these two; they are put back with the rest.
        random.seed(own_seed)
        np.random.seed(own_seed % 2**32)
        with seeded(own_seed):
            return self._seam.score(batch)

    def _note(self, scored: Sequence[Scored]) -> None:
        """Take down what the completions were like, and how many could not be graded."""
        counts = [len(part.by_function) for part in scored]
        total, unscored = sum(counts), sum(int(part.by_function.isnan().all(1).sum()) for part in scored)
        self.mean_length = sum(n * part.length for n, part in zip(counts, scored, strict=True)) / total
        self.truncated = sum(n * part.truncated for n, part in zip(counts, scored, strict=True)) / total
        tokens = [part.tokens for part in scored if part.tokens is not None]
        self._latest = tokens if len(tokens) == len(scored) else None
        if unscored and not self.unscored and self._ranks.leader:
            say(
                log,
                "no reward function graded %d of %d completions of held-out prompts: such completions are left out "
                "where leaps are compared",
                unscored,
                total,
            )
        self.completions += total
        self.unscored += unscored

    def _spread(self, scored: Sequence[Scored], seed: int) -> Tensor:
        """(functions,) float64: deviation of each reward function within groups, of the first scoring with a seed.

        TRL divides by each group's own; one figure over all groups says as much about which function weighs how
        much, and does not make a group whose completions happen to agree count ten thousand times.
        """
        if seed not in self._spreads:
            found = torch.cat(
                [part.by_function.view(-1, self.group, part.by_function.size(1)) for part in scored]
            )
            within = _variance(found, 1).nanmean(0)
            # A function that is constant in every group: as it differs between prompts, else as it is.
            within = torch.where(within > 0, within, _variance(found.flatten(0, 1), 0))
            self._spreads[seed] = torch.where(within > 0, within.sqrt(), 1.0) + 1e-4
            while len(self._spreads) > _SPREADS:
                del self._spreads[next(iter(self._spreads))]
        return self._spreads[seed]

    def log_probabilities(self) -> Tensor | None:
        """Log-probability of each token of the latest completions under the weights the model now has, in nats.

        (n, length) float32, 0 where there is no token; None before any scoring, and for rows with images.
        """
        if self._latest is None:
            return None
        return _stacked(
            [
                log_probabilities(self._trainer, ids, seen, own.size(1)) * own
                for ids, seen, own in self._latest
            ]
        )

    def divergence(self, candidate: Tensor | None, current: Tensor | None) -> float:
        """KL(candidate || current), nats per token, from `log_probabilities` of the candidate's own completions.

        Over all processes, each of which must call this.

        NaN where either is None, infinite where the candidate has no probabilities at all (`divergence_sums`).
        """
        if candidate is None or current is None or self._latest is None:
            return math.nan
        local = divergence_sums(candidate, current, _stacked([own for _, _, own in self._latest]))
        return mean_divergence(self._trainer.accelerator.reduce(local, reduction="sum"))


def _runs(rows: Sequence[Row], group: int) -> list[tuple[Row, int]]:
    """(row, how many of its group are asked for): neighbours that are the same object, `group` at most."""
    runs: list[tuple[Row, int]] = []
    for row in rows:
        if runs and runs[-1][0] is row and runs[-1][1] < group:
            runs[-1] = row, runs[-1][1] + 1
        else:
            runs.append((row, 1))
    return runs


def _of_like_columns(rows: Sequence[Row]) -> list[list[int]]:
    """Places of the rows, those with the same columns together: a trainer takes the columns of a batch's first row."""
    places: dict[frozenset[str], list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(frozenset(row), []).append(place)
    return list(places.values())


def _shared_out(group: Tensor, count: int) -> Tensor:
    """(count,) means of nearly equal parts of a group's rewards, what is NaN left out."""
    return torch.stack([part.nanmean() for part in group.tensor_split(count)])


def _own_copy(row: Row) -> Row:
    """A row that a trainer may add columns to; its prompt may be a list of messages."""
    return {**row, "prompt": copy.deepcopy(row["prompt"])} if "prompt" in row else dict(row)


def _variance(values: Tensor, dim: int) -> Tensor:
    """Unbiased variance of what is not NaN; NaN where that is fewer than two."""
    count = (~values.isnan()).sum(dim)
    squares = (values - values.nanmean(dim, keepdim=True)).square().nansum(dim)
    return torch.where(count > 1, squares / (count - 1).clamp_min(1), math.nan)


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Rows of several tensors (n, length), filled with 0 on the right to the longest."""
    longest = max(part.size(1) for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, longest - part.size(1))) for part in parts])


def log_probabilities(trainer: Any, ids: Tensor, attention: Tensor, length: int) -> Tensor:
    """The trainer's own log-probabilities of the last `length` tokens: (n, length) float32, without a trace in it."""
    seam = Seam(trainer)
    with seam.untouched(), inference(trainer.model):
        return seam.per_token_logps(ids, attention, length)


class RewardMeter:
    """Reads the training rewards that a trainer has measured, each once."""

    def __init__(self, trainer: Any, name: str = "reward", leader: bool = True) -> None:
        """`name` is the trainer's for the metric; the `leader` of several processes says where there is none."""
        self._seam, self._name = Seam(trainer), name
        self._list: list[float] = []
        self._read = 0
        self._fresh: list[float] = []
        self._leader, self._without = leader, 0  # steps since the run began, before there was any
        self.latest = math.nan
        self.sampled = False  # whether the latest call of `new` found anything new

    def new(self) -> float:
        """Mean reward of what was sampled since the last call; where nothing was (buffered rollouts), the last mean."""
        self.collect()
        fresh = [value for value in self._fresh if not math.isnan(value)]
        self._fresh, self.sampled = [], bool(fresh)
        if fresh:
            self.latest = sum(fresh) / len(fresh)
        self._tell_of_none()
        return self.latest

    def collect(self) -> None:
        """Take what is there, which the trainer is about to forget: a log, whoever asks for one, empties its lists."""
        values = self._seam.training_metric(self._name)
        self._fresh += map(float, values[self._read :] if values is self._list else values)
        self._mark()

    def mark(self) -> None:
        """Take what the trainer holds now as read (its lists are new objects after a log or a search)."""
        self._fresh = []
        self._mark()

    def _mark(self) -> None:
        self._list = self._seam.training_metric(self._name)
        self._read = len(self._list)

    def _tell_of_none(self) -> None:
        """Say once that a run has begun in which there is nothing to read."""
        self._without += int(math.isnan(self.latest))
        if self._without == _SILENT and math.isnan(self.latest) and self._leader:
            say(
                log,
                "the trainer measured no %s in its first %d steps, so that nothing is judged by it: see that %sthe "
                "trainer's log() calls that of its class",
                self._name,
                _SILENT,
                "a reward function returns numbers, and that " if self._name == "reward" else "",
            )
