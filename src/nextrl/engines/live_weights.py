"""Trained parameters inside a live model, by name: read them, write them, hold others for a while, measure how far.

What judges a run by its own batches (`auto`) asks no more of a model than this, so that it works on an adapter
(`live_adapter.LiveAdapter`) and on all of a model's weights (`all_weights.AllWeights`). Optimizer state is never
touched, and the parameters keep their identity, so Adam's moments stay attached.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nextrl.engines import sharded
from nextrl.engines.fingerprint import Fingerprint, belongs, fingerprint
from nextrl.engines.interrupts import to_the_end
from nextrl.engines.moments import unsharded
from nextrl.errors import InputError

State = dict[str, Tensor]
"""Parameter's name (an adapter's: as PEFT saves it) -> tensor."""


class Weights(Protocol):
    """What is trained, as whoever decides on a run meets it: here (`LiveWeights`), or by name on verl's workers."""

    def read(self) -> State:
        """A copy of all of it."""

    def write(self, state: State) -> None:
        """Put a copy's values there, in place."""

    def holding(self, state: State) -> AbstractContextManager[None]:
        """Other values inside; afterwards those that were there before."""

    def along(self, start: State, stop: State, alpha: float) -> State:
        """`stop + alpha (stop - start)`."""

    def distance(self, start: State, stop: State) -> float:
        """Length of the way between two copies."""

    def finite(self) -> bool:
        """Whether there is neither NaN nor Inf in any of it."""


class LiveWeights:
    """Handle on some parameters of a model.

    Attributes:
        model: the model.
        parameters: name -> the live parameter.
    """

    def __init__(self, model: Any, parameters: dict[str, nn.Parameter]) -> None:
        self.model, self.parameters = model, parameters

    def read(self) -> State:
        """Copies of all of them, detached and whole, on their device and in their dtype (`sharded.read`)."""
        return sharded.read(self.parameters)

    def write(self, state: Mapping[str, Tensor]) -> None:
        """Copy values into the live parameters, in place; with several processes, the same ones on each.

        An interrupt leaves all of them written, unless they lie in pieces.

        Raises:
            InputError: a name or shape differs; nothing was written then.
        """
        for name, p in self.parameters.items():
            if name not in state:
                raise InputError(
                    f"the leap has no tensor for {name}: it was made from another adapter or model"
                )
            if state[name].shape != (expected := sharded.shape(p)):
                raise InputError(
                    f"{name} is {tuple(expected)} in the model, {tuple(state[name].shape)} in the leap"
                )
        to_the_end(partial(sharded.write, self.parameters, state), unsharded(self.parameters))
        sharded.forget_gathered(self.model)

    @contextmanager
    def holding(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        """Other values inside; afterwards those that were there before."""
        now = self.read()
        try:
            self.write(state)
            yield
        finally:
            self.write(now)

    def along(self, start: State, stop: State, alpha: float) -> State:
        """`stop + alpha (stop - start)`, see the function `along`."""
        return along(start, stop, alpha)

    def distance(self, start: State, stop: State) -> float:
        """Length of the way between two states, over all parameters."""
        squares = [(t.float() - start[name].float()).square().sum() for name, t in stop.items()]
        # Added up where the first of them lies: a GPU is waited for once, not for each tensor.
        return math.sqrt(float(torch.stack([s.to(squares[0].device) for s in squares]).double().sum()))

    def fingerprint(self) -> Fingerprint:
        """What tells these weights from others of the same names; asked on each process."""
        return fingerprint(self.read())

    def belongs(self, known: Mapping[str, Any] | None) -> bool:
        """Whether a fingerprint is of these weights (`fingerprint.belongs`); asked on each process."""
        return belongs(known, self.read())

    def finite(self) -> bool:
        """Whether there is neither NaN nor Inf in any of them."""
        return all_finite(self.read().values())


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether there is neither NaN nor Inf in any of some tensors; True of none. A GPU is waited for once."""
    found = [t.isfinite().all() for t in tensors]
    return not found or bool(torch.stack([f.to(found[0].device) for f in found]).all())


def along(start: State, stop: State, alpha: float) -> State:
    """`stop + alpha (stop - start)` of every tensor; of an adapter's, the leap inside A and B (2409.04206).

    In the dtype of `stop`: TRL may turn an adapter to half precision on the way (continuous batching).
    """
    return {name: torch.lerp(start[name].to(t.dtype), t, 1.0 + alpha) for name, t in stop.items()}


def shrinking_parts(start: State, stop: State) -> tuple[float, float, float]:
    """Squared length of a way, its inner product with the way from its start to 0, and that one's squared length."""
    # One tensor at a time: an embedding or a head is large, and twice that in float64.
    sums = [_parts(start[name].double().flatten(), t.double().flatten()) for name, t in stop.items()]
    way, inner, to_zero = torch.stack(sums).sum(0).tolist()
    return way, inner, to_zero


def _parts(here: Tensor, there: Tensor) -> Tensor:
    way = there - here
    return torch.stack([way @ way, -(way @ here), here @ here]).cpu()


def length_and_shrinking(way: float, inner: float, to_zero: float) -> tuple[float, float]:
    """Length of a way, and its cosine with the way from its start to 0, of `shrinking_parts` (summed over processes).

    The cosine is near 1 where nothing but weight decay moved the weights, and near 0 after a step along a gradient: in
    so many dimensions that has hardly anything in common with the weights themselves. NaN where there is no way.
    """
    return math.sqrt(way), inner / math.sqrt(way * to_zero) if way > 0.0 and to_zero > 0.0 else math.nan
