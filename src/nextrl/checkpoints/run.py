"""A run found on disk: its checkpoints in order, and every problem met on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from nextrl.errors import InputError, one_line


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
    def factors(self, module: str, *, check: bool = True) -> tuple[Tensor, Tensor]: ...
    def dtypes_of(self, module: str) -> tuple[torch.dtype, torch.dtype]: ...


def knows_start(first: StoredCheckpoint, start: int) -> bool:
    """Whether W_0 of a stretch is known: its checkpoint is there, or it is the base model (B_0 A_0 = 0).

    Args:
        first: the stretch's first checkpoint.
        start: the step at which the stretch began.
    """
    return first.step == start or (start == 0 and first.starts_at_zero)


def no_checkpoint(step: int, there: Iterable[int], where: object = "") -> InputError:
    """The error for a step that a run has no checkpoint of, with those that it has.

    Args:
        where: the run, where it lies on disk.
    """
    begun = f"{where}: " if where else ""
    return InputError(
        f"{begun}no checkpoint at step {step}; there are {', '.join(map(str, sorted(there))) or 'none'}"
    )


class Problem(NamedTuple):
    """Something wrong with one file, in one line that names the file and ends in what to do.

    Attributes:
        step: of the checkpoint concerned, where it is one.
        fatal: the checkpoint cannot be used; a gap between steps, say, is not fatal.
    """

    path: Path
    text: str
    step: int | None = None
    fatal: bool = True

    def __str__(self) -> str:
        return one_line(self.text)


def repeated(files: Mapping[int, Iterable[Path]]) -> list[Problem]:
    """A problem of each step whose files are those of another step, too: links, or one folder listed twice.

    Equal values in files of their own are none: a step that was taken back leaves such.

    Args:
        files: step -> its files of weights.
    """
    steps: dict[frozenset[tuple[int, int]], list[tuple[int, Path]]] = {}
    for step, paths in files.items():
        there = [path for path in paths if path.exists()]
        if there:
            found = frozenset((s.st_dev, s.st_ino) for s in map(Path.stat, there))
            steps.setdefault(found, []).append((step, there[0]))
    return [
        Problem(
            path,
            f"{path}: the same file under steps {' and '.join(str(other) for other, _ in same)}, so that which step "
            "it is of is unknown; remove the link, or correct the list",
            step,
        )
        for same in steps.values()
        if len(same) > 1
        for step, path in same
    ]


@dataclass(frozen=True)
class Located:
    """One checkpoint of a run, found but not opened.

    Attributes:
        overrides: fields of `adapter_config.json` that the layout knows better (verl's lora_alpha).
    """

    step: int
    folder: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """What a reader says of a folder.

    Attributes:
        name: "trl", "verl", "openrlhf", "folders".
        located: checkpoints by step.
        problems: what the names of folders alone tell (shards without an adapter, a broken link).
    """

    name: str
    located: tuple[Located, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def found(self) -> bool:
        """Whether the folder holds anything of this layout."""
        return bool(self.located or self.problems)
