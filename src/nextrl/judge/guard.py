"""What a leap may not do to the policy, whatever its reward: run on, stop ending its answers, or leave for elsewhere.

A reward can be won by answers that nobody wants. Bounds are on the candidate beside staying put, on the same prompts,
measured on the completions that the search has paid for anyway.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nextrl.errors import InputError


@dataclass(frozen=True)
class Answers:
    """What one candidate's completions were like.

    Attributes:
        length: mean length in tokens; NaN where unknown.
        truncated: share that did not end by themselves (no end-of-sequence token), in [0, 1]; NaN where unknown.
        divergence: nats per token by which the candidate has left the current policy, KL(candidate || current) on the
            candidate's own completions; 0 for staying put, NaN where it was not measured.
        count: completions looked at; 0 where that is not known, and shares count as exact.
    """

    length: float
    truncated: float
    divergence: float = 0.0
    count: int = 0


def pooled(parts: Sequence[Answers]) -> Answers:
    """What one candidate's completions were like over several stretches of prompts, each weighted by its count."""
    count = sum(part.count for part in parts)

    def mean(name: str) -> float:
        return sum(part.count * float(getattr(part, name)) for part in parts) / count

    return Answers(mean("length"), mean("truncated"), mean("divergence"), count)


@dataclass(frozen=True)
class Guard:
    """Bounds that a leap forward has to keep. A step back is never refused: it is the way out.

    Attributes:
        longest: completions may be on average this many times as long as without the leap.
        truncated: the share of completions that do not end may grow by this much, and by two standard errors more (a
            sign of a broken format).
        divergence: nats per token by which a leap may leave the current policy.
    """

    longest: float = 2.0
    truncated: float = 0.1
    divergence: float = 1.0

    def __post_init__(self) -> None:
        if not self.longest > 1.0:  # so that NaN is refused, too
            raise InputError(
                f"longest must be above 1 (times the length without a leap), not {self.longest:g}"
            )
        if not 0.0 <= self.truncated <= 1.0:
            raise InputError(f"truncated must be a share of completions, 0 to 1, not {self.truncated:g}")
        if not self.divergence > 0.0:
            raise InputError(f"divergence must be above 0 nats per token, not {self.divergence:g}")

    def objection(self, usual: Answers, candidate: Answers) -> str | None:
        """Why a candidate must not be taken, as one clause; None where it may. A figure that is NaN never objects."""
        if candidate.length > self.longest * usual.length:
            return f"completions grow from {usual.length:.0f} to {candidate.length:.0f} tokens"
        if candidate.truncated > usual.truncated + self.truncated + 2.0 * _noise(usual, candidate):
            return (
                f"{candidate.truncated:.0%} of the completions do not end, {usual.truncated:.0%} without it"
            )
        if candidate.divergence > self.divergence:
            return f"it leaves the current policy by {candidate.divergence:.2g} nats per token"
        return None


def _noise(usual: Answers, candidate: Answers) -> float:
    """Standard error of the difference between two shares of completions that do not end."""
    return math.sqrt(sum(a.truncated * (1.0 - a.truncated) / a.count for a in (usual, candidate) if a.count))
