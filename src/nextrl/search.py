"""The price of alpha: score candidate leaps on held-out prompts, pairwise, and accept one only past the noise.

Each candidate answers the same prompts with the same random numbers, so that the difference between two
candidates is far less noisy than either score: two policies that are close answer almost everywhere alike. The
candidates are not a fixed grid: the search starts where the last leap ended up, goes further while that pays,
and comes back when it does not. No model is in here, only a function that scores one alpha.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor

Score = Callable[[float], Tensor]
"""alpha -> rewards (n,) float64 on the shared prompts; entry i is always the same prompt."""


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
    """Rewards by candidate on the same prompts.

    Attributes:
        rewards: alpha -> (n,) float64; alpha 0 (stay put) is always among them once a search began.
        refused: alpha -> why the score function would not have it; such a candidate loses to every other.
        wasted: completions spent on refused candidates.
    """

    rewards: dict[float, Tensor] = field(default_factory=dict)
    refused: dict[float, str] = field(default_factory=dict)
    wasted: int = 0

    def __len__(self) -> int:
        """Candidates looked at, refused ones included."""
        return len(self.rewards) + len(self.refused)

    def add(self, alpha: float, score: Score) -> None:
        """Score one more candidate."""
        try:
            self.rewards[alpha] = score(alpha)
        except Refused as refusal:
            self.refused[alpha] = refusal.reason
            self.wasted += refusal.completions

    def mean(self, alpha: float) -> float:
        """Mean reward of a candidate."""
        return float(self.rewards[alpha].mean())

    def gain(self, alpha: float, over: float = 0.0) -> float:
        """Mean paired difference of a candidate over another (default: staying put); -inf if refused."""
        if alpha in self.refused:
            return -math.inf
        return float((self.rewards[alpha] - self.rewards[over]).mean())

    def error(self, alpha: float, over: float = 0.0) -> float:
        """Standard error of `gain`: deviation of the paired differences over sqrt(n)."""
        if alpha in self.refused:
            return 0.0
        difference = self.rewards[alpha] - self.rewards[over]
        return float(difference.std(unbiased=True)) / math.sqrt(len(difference))

    def better(self, alpha: float, level: float) -> bool:
        """Whether a candidate beats staying put by more than `level` standard errors."""
        return self.gain(alpha) > level * self.error(alpha) and self.gain(alpha) > 0.0

    def worse(self, alpha: float, level: float) -> bool:
        """Whether a candidate loses to staying put by more than `level` standard errors."""
        return -self.gain(alpha) > level * self.error(alpha) and self.gain(alpha) < 0.0

    def best(self, level: float) -> float:
        """The candidate with the best mean (the shorter on ties) if it beats staying put past the noise, else 0.0."""
        top = max(self.rewards, key=lambda a: (self.mean(a), -abs(a)))
        return top if top and self.better(top, level) else 0.0

    def completions(self) -> int:
        """Completions that the scores cost."""
        return sum(len(r) for r in self.rewards.values()) + self.wasted

    def means(self) -> dict[float, float]:
        """alpha -> mean reward, for logs."""
        return {a: self.mean(a) for a in sorted(self.rewards)}


def grid_search(score: Score, candidates: Iterable[float]) -> Scores:
    """Score alpha 0 and every candidate."""
    scores = Scores()
    for alpha in dict.fromkeys((0.0, *candidates)):
        scores.add(alpha, score)
    return scores
