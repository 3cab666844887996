"""The dials of `auto`, in one place: `LeapCallback(config=...)` and `leap.controller` of a run's YAML set them."""

from __future__ import annotations

from dataclasses import dataclass

from nextrl.errors import InputError
from nextrl.judge.acceptance import Acceptance
from nextrl.judge.regime import DEFAULT_WINDOW
from nextrl.trajectory.persistence import DEFAULT_BETA1


@dataclass(frozen=True)
class SegmentConfig:
    """The dials of `auto`, each with the default that held on both lab tasks (docs/auto.md has the trials).

    Attributes:
        every: optimizer steps per window.
        beta1: Adam's first-moment decay, which sets the zero point of persistence; None takes the optimizer's own where
            a trainer is there to ask, and `persistence.DEFAULT_BETA1` elsewhere.
        screen: a search forward needs an excess above this.
        oscillates: a step back is looked at below this excess.
        straight: two windows in a row with an excess above this say that `target` is too small for this model.
        target: nats per token that a window should move the policy by, until the run shows that it bears more.
        far: divergence beyond which a window, or a leap, is too long; it grows with `target`.
        stages: held-out prompts that every candidate, and then the contenders, are scored on.
        level: standard errors of the paired difference by which a leap forward must beat staying put.
        fall: fall of a window's mean reward below the best windows so far that calls for a step back or an undo; for
            a best beyond 1 in size it counts as a share of that size.
        fall_errors: the same fall in standard errors, which it must exceed too.
        patience: most windows that a forward search waits after searches that changed nothing; it waits 1, 2, 4, ...
        share: completions that searches may take as a share of those trained on; a step back after a fall is exempt.
        advance: completions that searches may take before that; twice as many for what a straight path asks for.
        search: False never searches: the divergence alone sets the rate (a control; no leap, no completions).
    """

    every: int = DEFAULT_WINDOW
    beta1: float | None = None
    screen: float = 0.25
    oscillates: float = -0.4
    straight: float = 0.6
    target: float = 0.02
    far: float = 0.1
    stages: tuple[int, ...] = (16, 32, 64)
    level: float = 2.0
    fall: float = 0.08
    fall_errors: float = 2.5
    patience: int = 8
    share: float = 0.0125
    advance: int = 192
    search: bool = True

    @property
    def memory(self) -> float:
        """`beta1`, or the default where it is not known; 0 is an optimizer without any memory."""
        return DEFAULT_BETA1 if self.beta1 is None else self.beta1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"every must be at least 1 step, not {self.every}")
        if self.beta1 is not None and not 0.0 <= self.beta1 < 1.0:
            raise InputError(f"beta1 must be from 0 to below 1, not {self.beta1}")
        if not 0.0 < self.target <= self.far:
            raise InputError(f"target must be above 0 and at most far, not {self.target} and {self.far}")
        Acceptance(self.stages, self.level)  # refuses stages that are none
        if self.patience < 1:
            raise InputError(f"patience must be at least 1 window, not {self.patience}")
