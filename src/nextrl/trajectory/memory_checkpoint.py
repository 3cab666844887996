"""A checkpoint of factors that are in memory: of a live run, or of weights reduced to factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nextrl.checkpoints.adapter import broken, finite
from nextrl.errors import InputError


@dataclass(frozen=True, eq=False)
class MemoryCheckpoint:
    """A checkpoint whose factors are tensors in memory; fields as `StoredCheckpoint` asks."""

    step: int
    tensors: Mapping[str, tuple[Tensor, Tensor]]
    scalings: float | Mapping[str, float]
    starts_at_zero: bool = True

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the adapted matrices, in the order given."""
        return tuple(self.tensors)

    def shape(self, module: str) -> tuple[int, int, int]:
        """(m, n, r)."""
        a, b = self.tensors[module]
        return b.shape[0], a.shape[1], a.shape[0]

    def scaling(self, module: str) -> float:
        """The scaling s of one module."""
        return self.scalings if isinstance(self.scalings, (int, float)) else self.scalings[module]

    def factors(self, module: str, *, check: bool = True) -> tuple[Tensor, Tensor]:
        """A (r, n) and B (m, r), copies of what was given, as fresh as what is read from a file.

        Raises:
            InputError: a value is NaN or Inf, or too large to be a weight (`check`).
        """
        a, b = self.tensors[module]
        if check and not (finite(a) and finite(b)):
            raise InputError(
                f"{broken(a, b)} in {module} at step {self.step} (counted from the start, or from the last leap): look "
                "at what training did there, and go on from a checkpoint before it"
            )
        return a.clone(), b.clone()

    def beyond(self, module: str) -> float:
        """The part of |W_t - W_base|^2 that the factors do not hold: nothing, of factors that were given."""
        return 0.0

    def dtypes_of(self, module: str) -> tuple[torch.dtype, torch.dtype]:
        """The dtypes of A and of B."""
        a, b = self.tensors[module]
        return a.dtype, b.dtype
