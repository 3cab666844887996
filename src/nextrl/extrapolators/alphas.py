"""Step lengths, in units of a method's own horizon: what a search tries, and what NExt's paper takes."""

from __future__ import annotations

PAPER_ALPHAS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
"""What the paper behind `next-paper` tries in its study of the step length."""

PAPER_ALPHA = 1.5
"""What it takes everywhere else, unseen (second-hand, as everything on the paper in this package)."""

PAPER_AT = 150
"""The step at which it leaps, once (second-hand)."""

WIDE_ALPHAS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Of a method that names no others: a run far below its tuned learning rate wants up to 8, so it goes beyond that."""


ALPHAS = (-0.5, *WIDE_ALPHAS)
"""What `LeapCallback` tries, where a step back is looked at, too."""
