"""Scoring candidate adapters in a live model: write one, sample from it, put the old one back, ask the guard.

What samples is a trainer (`engines.trl.rollouts`, `likelihood`) or a model by itself (`engines.offline`): anything with
the methods of `Rollouts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from nextrl.engines.live_weights import State, Weights
from nextrl.judge.guard import Answers, Guard, pooled
from nextrl.judge.paired_search import SEED_STRIDE, GroupedScore, Refused, Score

Candidate = Callable[[float], State]
"""alpha -> the adapter's factors after that leap."""

Row = dict[str, Any]
"""One held-out example: `prompt` and the columns that the reward functions need (`input_ids` where it is a text)."""


class Rollouts(Protocol):
    """Scores held-out rows with the weights that a model now has.

    Attributes:
        completions: completions generated so far.
        group: rows beside each other that are the same one, as far as rewards need whole groups of completions; else 1.
        mean_length: mean length in tokens of the latest ones; NaN where unknown.
        truncated: share of the latest ones that did not end by themselves; NaN where unknown.
    """

    completions: int
    group: int
    mean_length: float
    truncated: float

    def rewards(self, rows: Sequence[Row], seed: int) -> Tensor:
        """Reward of one completion per row, (n,) float64: the same random numbers for the same rows and seed.

        NaN where it could not be graded.
        """

    def log_probabilities(self) -> Tensor | None:
        """Log-probability of each token of the latest completions under the present weights, (n, length) float32."""

    def divergence(self, candidate: Tensor | None, current: Tensor | None) -> float:
        """KL(candidate || current), nats per token, from `log_probabilities` of the candidate's own completions."""


def divergence_sums(candidate: Tensor, current: Tensor, mask: Tensor) -> Tensor:
    """(2,) sums over tokens of an unbiased estimate of KL(candidate || current), in nats, and of 1; they add up.

    The estimate is `r - 1 - log r`, r = p_current / p_candidate, on the candidate's own completions, and is never
    negative (Schulman, "Approximating KL Divergence", 2020, k3).

    Args:
        candidate, current: (n, length) log-probabilities of the completions' tokens.
        mask: (n, length), 1 at the tokens that count.
    """
    # Beyond e^20 it no longer matters how large r is.
    log_ratio = (current - candidate).clamp(max=20.0)
    return torch.stack([((log_ratio.exp() - 1.0 - log_ratio) * mask).sum(), mask.sum().float()])


def mean_divergence(sums: Tensor) -> float:
    """Nats per token from `divergence_sums`; infinite where the candidate has no probabilities at all."""
    total, tokens = sums
    mean = float(total / tokens.clamp_min(1.0))
    return mean if math.isfinite(mean) else math.inf


class CandidateScores:
    """Scores candidates on held-out rows, and measures how far they move the policy; the adapter is left as it was.

    Attributes:
        divergences: alpha -> nats per token by which a leap forward left the policy, of the latest search.
    """

    def __init__(self, adapter: Weights, rollouts: Rollouts, guard: Guard) -> None:
        self._adapter, self._rollouts, self._guard = adapter, rollouts, guard
        self.divergences: dict[float, float] = {}

    def scorer(
        self, candidate: Candidate, end: State, rows: Callable[[int, int], Sequence[Row]], seed: int
    ) -> Score:
        """Scores leaps from `end`; every candidate gets the same rows with the same random numbers.

        The score raises `Refused` where a leap forward breaks the guard's bounds.

        Args:
            candidate: the adapter as a function of alpha.
            end: the adapter that the leaps start from.
            rows: (start, stop) -> that stretch of the held-out rows.
            seed: of the random numbers.
        """
        # alpha -> where a stretch of the rows begins -> its answers
        seen: dict[float, dict[int, Answers]] = {}
        self.divergences = {}

        def score(alpha: float, start: int, stop: int) -> Tensor:
            rewards, answers = self._answer(
                candidate(alpha) if alpha else end, end, rows(start, stop), seed + SEED_STRIDE * start, alpha
            )
            stretches = seen.setdefault(alpha, {})
            stretches[start] = answers
            if alpha > 0.0:
                usual, leapt = pooled([seen[0.0][s] for s in stretches]), pooled(list(stretches.values()))
                self.divergences[alpha] = leapt.divergence
                if because := self._guard.objection(usual, leapt):
                    raise Refused(because, len(rewards))
            return rewards

        return GroupedScore(score, self._rollouts.group)

    def _answer(
        self, state: State, end: State, rows: Sequence[Row], seed: int, alpha: float
    ) -> tuple[Tensor, Answers]:
        """Rewards of one candidate on some rows, and what its completions were like.

        Its divergence needs the log-probabilities of its completions twice: under the candidate itself, and, once the
        adapter is put back, under the current policy.
        """
        rollouts, measured = self._rollouts, alpha > 0.0 and math.isfinite(self._guard.divergence)
        theirs = None
        try:
            self._adapter.write(state)
            rewards = rollouts.rewards(rows, seed)
            if measured:
                theirs = rollouts.log_probabilities()
        finally:
            self._adapter.write(end)
        ours = rollouts.log_probabilities() if measured else None
        # Staying put leaves nothing; what is not measured is not 0.
        left = rollouts.divergence(theirs, ours) if measured else math.nan if alpha > 0.0 else 0.0
        return rewards, Answers(rollouts.mean_length, rollouts.truncated, left, len(rewards))
