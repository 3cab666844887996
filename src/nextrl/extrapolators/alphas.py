"""Step lengths of a method of the registry, searched or taken unseen (1 is the method's own horizon), and its step."""

from __future__ import annotations

PAPER_ALPHAS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
"""What the paper behind `next-paper` tries in its study of the step length."""

PAPER_ALPHA = 1.5
"""What it takes everywhere else, unseen (second-hand, as everything on the paper in this package)."""

PAPER_AT = 150
"""The step at which it leaps, once (second-hand)."""

WIDE_ALPHAS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""For every other method: a run far below its tuned learning rate wants up to 8, so the range goes beyond that."""


ALPHAS = (-0.5, *WIDE_ALPHAS)
"""What `LeapCallback` tries, where a step back is looked at, too."""


def fixed_alpha(method: str) -> float | None:
    """What a method of this name takes unseen where no alpha is given; None: it has no alpha of its own."""
    return PAPER_ALPHA if method == "next-paper" else None


def fixed_at(method: str) -> tuple[int, ...] | None:
    """The steps at which a method of this name leaps in a run where none are given; None: it has none of its own."""
    return (PAPER_AT,) if method == "next-paper" else None


def candidate_alphas(method: str) -> tuple[float, ...]:
    """What a search tries for a method of this name: NExt as published keeps the paper's own range."""
    return PAPER_ALPHAS if method == "next-paper" else WIDE_ALPHAS
