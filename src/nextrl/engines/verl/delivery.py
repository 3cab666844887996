"""Whether verl's rollout servers sampled the first batch after a change from the weights after it: arithmetic alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

STALE, ERRORS = 0.5, 4.0
"""Rollouts are stale whose `Delivery.slope` lies above this by so many standard errors.

The slope is 0 where they followed a change, and 1 where they did not. The actor's own passes round differently, which
draws both towards a half, and not past it, where the change is small beside that: then nothing can be told.
"""


@dataclass(frozen=True)
class Delivery:
    """Where the first rollouts after a change lie between the policy after it and the one before.

    Attributes:
        to_new, to_old: mean absolute difference of their log-probabilities from each, nats per token.
        slope, error: of (sampled - new) on (old - new) over the sampled tokens, both about their means, and its
            standard error with completions for independent. What shifts all of them cancels; so does most of what a
            truncated distribution adds (`top_p`: vLLM gives probabilities that sum to 1 over what it samples from),
            which lies between 0 and -log top_p.
        below_new, below_old: mean of how far they lie below each, nats per token. A truncated distribution has only
            larger probabilities than the whole one: it lies below no policy that it was made of.
    """

    to_new: float
    to_old: float
    slope: float
    error: float
    below_new: float
    below_old: float

    @property
    def stale(self) -> bool:
        """Whether the slope shows that they did not follow. NaN, where no rollout says anything, shows nothing."""
        return self.slope - ERRORS * self.error > STALE

    @property
    def surely_stale(self) -> bool:
        """Whether this shows under any truncation, too (`top_k`), which can bring the slope anywhere by itself."""
        return self.stale and self.below_old < STALE * self.below_new


def delivery(sampled: Tensor, new: Tensor, old: Tensor, known: Tensor) -> Delivery:
    """Compare rollouts with two policies.

    Args:
        sampled: (n, L) log-probabilities as the rollout servers reported them.
        new, old: (n, L) under the weights after the change, and before it.
        known: (n, L), whether a token counts.
    """
    rows = known.nonzero()[:, 0]
    change, off = (old - new)[known], (sampled - new)[known]
    x, y = change - change.mean(), off - off.mean()
    squares = x.square().sum()
    slope = (x * y).sum() / squares
    # The sandwich estimator with clusters (Cameron & Miller 2015, eq. 11; second-hand).
    scores = torch.zeros(len(known), dtype=x.dtype).index_add(0, rows, x * (y - slope * x))
    clusters = int(known.any(1).sum())
    error = (scores.square().sum() * clusters / (clusters - 1)).sqrt() / squares if clusters > 1 else math.inf
    return Delivery(
        float(off.abs().mean()), float((off - change).abs().mean()), float(slope), float(error),
        float((-off).clamp_min(0.0).mean()), float((change - off).clamp_min(0.0).mean()),
    )  # fmt: skip
