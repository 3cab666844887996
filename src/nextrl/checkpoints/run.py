"""A run found on disk: its checkpoints in order, and every problem met on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor


class StoredCheckpoint(Protocol):
    """What a trajectory needs of one checkpoint, wherever it lies."""

    @property
    def step(self) -> int: ...
    @property
    def modules(self) -> tuple[str, ...]: ...
    @property
    def starts_at_zero(self) -> bool: ...
    def shape(self, module: str) -> tuple[int, int, int]: ...
    def scaling(self, module: str) -> float: ...
    def factors(self, module: str) -> tuple[Tensor, Tensor]: ...


class Problem(NamedTuple):
    """Something wrong with one file, in one line that ends in what to do."""

    path: Path
    text: str
    step: int | None = None
    fatal: bool = True  # the checkpoint cannot be used; a gap between steps, say, is not fatal

    def __str__(self) -> str:
        return self.text


class Located(NamedTuple):
    """One checkpoint of a run, found but not opened."""

    step: int
    folder: Path


@dataclass(frozen=True)
class Layout:
    """Where a trainer puts its adapters: what a reader says of a folder.

    Attributes:
        name: "trl", "verl", "openrlhf", "peft-list" ...
        located: checkpoints by step.
        problems: what already the folder names tell (shards without an adapter, two folders for one step).
    """

    name: str
    located: tuple[Located, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def found(self) -> bool:
        """Whether the folder holds anything of this layout."""
        return bool(self.located or self.problems)
