"""The adapter on verl's workers, by the names of its copies.

verl's driver holds no tensor of the model. Where the session (`engines.session`, the one that TRL's callback runs on)
speaks of factors and moments, it is handed `Held`: the name of a copy that lies in shards on the workers.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class Held:
    """A copy on the workers, which forget it soon after nobody here speaks of it any more."""

    def __init__(self, key: int) -> None:
        self.key = key


class Workers:
    """The processes that hold the actor.

    Args:
        call: (forgotten copies, method of `Shards`, its arguments) -> what each process answers.
    """

    def __init__(self, call: Callable[..., Sequence[Any]]) -> None:
        self._call, self._keys = call, itertools.count()
        self._forgotten: list[int] = []

    def ask(self, method: str, *arguments: Any) -> Sequence[Any]:
        """Every process's answer."""
        forgotten, self._forgotten[:] = list(self._forgotten), []
        plain = [a.key if isinstance(a, Held) else a for a in arguments]
        return self._call(forgotten, method, *plain)

    def name(self) -> Held:
        """A name for a copy that is about to be made."""
        held = Held(next(self._keys))
        weakref.finalize(held, self._forgotten.append, held.key)
        return held

    def make(self, method: str, *arguments: Any) -> Held:
        """A copy that a method of `Shards` makes."""
        held = self.name()
        self.ask(method, held, *arguments)
        return held


class RemoteAdapter:
    """What the workers train, with the reading and writing of `LiveWeights`."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._present: Held | None = None

    def trained(self) -> None:
        """A step has changed the weights, or is about to."""
        self._present = None

    def read(self) -> Held:
        """The values as they are; copied once, however often they are asked for."""
        if self._present is None:
            self._present = self._workers.make("keep")
        return self._present

    def write(self, held: Held) -> None:
        """Write the values, bit for bit."""
        self._workers.ask("put", held)
        self._present = held

    def along(self, start: Held, stop: Held, alpha: float) -> Held:
        """`stop + alpha (stop - start)`."""
        return self._workers.make("keep_along", start, stop, alpha)

    def product(self, start: Held, stop: Held, other_start: Held, other_stop: Held) -> float:
        """Inner product of two ways between copies, over all that is trained and all processes."""
        return float(sum(self._workers.ask("product", start, stop, other_start, other_stop)))

    def distance(self, start: Held, stop: Held) -> float:
        """Length of the way between two copies."""
        return math.sqrt(self.product(start, stop, start, stop))

    def finite(self) -> bool:
        """Whether there is neither NaN nor Inf in any of them; nothing is copied for it."""
        return all(self._workers.ask("finite"))

    @contextmanager
    def holding(self, held: Held) -> Iterator[None]:
        """Other factors inside; afterwards those that were there before."""
        now = self.read()
        if held is now:
            yield
            return
        try:
            self.write(held)
            yield
        finally:
            self.write(now)
