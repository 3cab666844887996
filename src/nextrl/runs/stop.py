"""SIGTERM and Ctrl-C as a wish: the run saves and stops after the step it is in."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class StopSignal:
    """Inside this context the first SIGTERM or SIGINT is only noted; a second one ends the process at once.

    Attributes:
        received: the signal's number, 0 before any.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether to stop."""
        return self.received != 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = number
