"""The price of alpha: score candidate leaps on held-out prompts, pairwise, and accept one only past the noise.

Each candidate answers the same prompts with the same random numbers, so that the difference between two
candidates is far less noisy than either score: two policies that are close answer almost everywhere alike. The
prompts come in stages: every candidate is seen on a few, and only those that could still win on more (successive
halving). No model is in here, only a function that scores one alpha on some of the prompts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nextrl.judge.few_samples import normal_of_t

Score = Callable[[float, int, int], Tensor]
"""(alpha, start, stop) -> rewards (stop - start,) float64 of the shared prompts start..stop - 1.

NaN where a prompt could not be scored: it is left out of every comparison with that candidate. A prompt has the same
random numbers for every alpha. The function is asked for alpha 0 on a stretch of prompts before it is asked for any
other alpha on it."""


SEED_STRIDE = 1_000_003
"""A score function seeds the prompts from `start` on with `seed + SEED_STRIDE * start`: so far apart that no two
stretches of prompts, of any two searches, share their random numbers."""


@dataclass(frozen=True)
class GroupedScore:
    """A `Score` whose prompts come in groups: `group` of them in a row are the same one, answered so often.

    Answers to one prompt share what a leap does to that prompt, so they are not independent (`Scores.error`).
    """

    score: Score
    group: int

    def __call__(self, alpha: float, start: int, stop: int) -> Tensor:
        return self.score(alpha, start, stop)


class Refused(Exception):
    """Raised by a score function for a candidate that must not be taken whatever its reward is.

    Attributes:
        reason: one clause for logs.
        completions: completions that finding out cost.
    """

    def __init__(self, reason: str, completions: int) -> None:
        super().__init__(reason)
        self.reason, self.completions = reason, completions


@dataclass
class Scores:
    """Rewards by candidate, on the first prompts of a shared list.

    Attributes:
        score: where rewards come from.
        rewards: alpha -> (n,) float64; n may differ between candidates. Alpha 0 (stay put) has the longest.
        refused: alpha -> why the score function would not have it; such a candidate loses to every other.
        wasted: completions spent on refused candidates.
    """

    score: Score
    rewards: dict[float, Tensor] = field(default_factory=dict)
    refused: dict[float, str] = field(default_factory=dict)
    wasted: int = 0
    _edges: list[int] = field(default_factory=lambda: [0], repr=False)

    def __len__(self) -> int:
        """Candidates looked at, refused ones and staying put included."""
        return len(self.rewards) + len(self.refused)

    def extend(self, alpha: float, prompts: int) -> None:
        """See a candidate on the first `prompts` prompts, asking only for those it has not been seen on."""
        if prompts > self._edges[-1]:
            self._edges.append(prompts)
            self._ask(0.0, *self._edges[-2:])
        # In the stretches in which staying put was asked: a stretch shares its random numbers, a part of it does not.
        for start, stop in itertools.pairwise(self._edges):
            if alpha and self.prompts(alpha) <= start < prompts and alpha not in self.refused:
                self._ask(alpha, start, stop)

    def _ask(self, alpha: float, start: int, stop: int) -> None:
        try:
            fresh = self.score(alpha, start, stop)
        except Refused as refusal:
            self.refused[alpha] = refusal.reason
            self.wasted += refusal.completions + len(self.rewards.pop(alpha, ()))
            return
        known = self.rewards.get(alpha)
        self.rewards[alpha] = fresh if known is None else torch.cat([known, fresh])

    def prompts(self, alpha: float) -> int:
        """Prompts a candidate has been seen on."""
        return len(self.rewards.get(alpha, ()))

    def mean(self, alpha: float) -> float:
        """Mean reward of a candidate; NaN where no prompt could be scored."""
        return float(self.rewards[alpha].nanmean())

    def unscored(self, alpha: float) -> int:
        """Prompts on which a candidate could not be compared with staying put."""
        return int(self._difference(alpha).isnan().sum())

    def not_scored(self) -> int:
        """Completions that the scores cost and that could not be scored, over all candidates that were not refused."""
        return sum(int(rewards.isnan().sum()) for rewards in self.rewards.values())

    def gain(self, alpha: float) -> float:
        """Mean paired difference of a candidate over staying put.

        -inf if it is refused, or if no prompt was scored for both.
        """
        if alpha in self.refused:
            return -math.inf
        gain = float(self._difference(alpha).nanmean())
        return -math.inf if math.isnan(gain) else gain

    def error(self, alpha: float) -> float:
        """Standard error of `gain`; inf where fewer than two prompts were scored for both.

        Where several answers are to one prompt (`GroupedScore`) it is that of the prompts' means, if that is larger.
        """
        if alpha in self.refused:
            return 0.0
        by_prompt = self._by_prompt(alpha)
        if len(by_prompt) < 2:
            return math.inf
        answers = self._difference(alpha)
        return max(_standard_error(by_prompt), _standard_error(answers[~answers.isnan()]))

    def _by_prompt(self, alpha: float) -> Tensor:
        """Mean difference of each prompt that was scored for both."""
        difference, group = self._difference(alpha), getattr(self.score, "group", 1)
        if group > 1:
            difference = torch.stack([answers.nanmean() for answers in torch.split(difference, group)])
        return difference[~difference.isnan()]

    def _difference(self, alpha: float) -> Tensor:
        shared = min(self.prompts(alpha), self.prompts(0.0))
        return self.rewards[alpha][:shared] - self.rewards[0.0][:shared]

    def better(self, alpha: float, level: float) -> bool:
        """Whether a candidate beats staying put by more than `level` standard errors, on the scale of a normal."""
        return self.gain(alpha) > 0.0 and self.evidence(alpha) > level

    def evidence(self, alpha: float) -> float:
        """How sure the gain over staying put is: Student's t of so many prompts, on the scale of a normal."""
        error = self.error(alpha)
        if not 0.0 < error < math.inf:
            return 0.0
        return normal_of_t(self.gain(alpha) / error, len(self._by_prompt(alpha)) - 1)

    def worse(self, alpha: float, level: float) -> bool:
        """Whether a candidate loses to staying put by more than `level` standard errors."""
        return -self.gain(alpha) > level * self.error(alpha) and self.gain(alpha) < 0.0

    def top(self) -> float:
        """The candidate with the largest gain, the shorter on ties; 0.0 where none gains."""
        return max(self.rewards, key=lambda a: (self.gain(a), -abs(a)))

    def best(self, level: float) -> float:
        """`top` if it beats staying put past the noise, else 0.0."""
        top = self.top()
        return top if top and self.better(top, level) else 0.0

    def completions(self) -> int:
        """Completions that the scores cost."""
        return sum(len(r) for r in self.rewards.values()) + self.wasted

    def means(self) -> dict[float, float]:
        """alpha -> mean reward, for logs."""
        return {a: self.mean(a) for a in sorted(self.rewards)}


def _standard_error(differences: Tensor) -> float:
    """Of the mean of two or more.

    Differences that are all alike are not known without error: it is at least what one more would make it that said the
    opposite of their mean size.
    """
    n = len(differences)
    spread, size = float(differences.var(unbiased=True)), float(differences.square().mean())
    return math.sqrt(max(spread / n, size / (n * (n + 1))))


def grid_search(score: Score, candidates: Iterable[float], prompts: int) -> Scores:
    """Score alpha 0 and every candidate on all of the prompts."""
    scores = Scores(score)
    for alpha in dict.fromkeys((0.0, *candidates)):
        scores.extend(alpha, prompts)
    return scores


def refine(scores: Scores, stages: Sequence[int], level: float) -> None:
    """See the candidate that gains most, and the longest that does not lose, on more prompts, until one is settled.

    Settled is a candidate that beats staying put past `level`, or one that answers every prompt of two stages as
    well as staying put does.

    Args:
        stages: numbers of prompts, ascending.
    """
    for prompts in stages:
        open_ = [a for a in scores.rewards if a and not scores.worse(a, 1.0)]
        if not open_ or scores.best(level):
            return
        contenders = {max(open_, key=scores.gain), max(open_)}
        if all(scores.prompts(a) > stages[0] and scores.error(a) == 0.0 for a in contenders):
            return
        for alpha in sorted(contenders):
            scores.extend(alpha, prompts)
