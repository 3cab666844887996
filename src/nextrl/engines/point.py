"""A run at one of its steps, as far as it can be put back there."""

from __future__ import annotations

from dataclasses import dataclass

from nextrl.engines.live_weights import State
from nextrl.engines.moments import Moments


@dataclass(frozen=True)
class Point:
    """What is remembered of a run to go back to.

    Attributes:
        state: what is trained.
        moments: the optimizer's state; empty where nothing will go back here, or it cannot be put back.
        step: optimizer steps taken so far.
    """

    state: State
    moments: Moments
    step: int
