"""What a verifiable task is: prompts with known answers, three disjoint splits, and a reward.

A task knows nothing of trainers, models or tokenizers: it deals in text. Engines turn `examples` into a
dataset and `reward` into a reward function; `evaluate.py` uses the same two.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

from nextrl.registry import Registry

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Example:
    """One prompt (text as the model sees it) and the answer that its completion is graded against."""

    prompt: str
    answer: str


@runtime_checkable
class Task(Protocol):
    """A verifiable task."""

    @property
    def name(self) -> str:
        """The name in the registry, as it stands in configs and result files."""

    @property
    def max_completion_length(self) -> int:
        """Tokens a completion may have, end-of-sequence token included."""

    def examples(self, split: Split) -> list[Example]:
        """All examples of a split, in a fixed order; the three splits share no prompt."""

    def reward(self, completion: str, answer: str) -> float:
        """Reward in [0, 1] of one completion (text without special tokens)."""


def split_of(prompt: str) -> Split:
    """The split that a prompt belongs to, by a hash that is the same on every machine and Python version.

    crc32 of the UTF-8 bytes modulo 10: 0 is test, 1 validation, the rest training.
    """
    bucket = zlib.crc32(prompt.encode()) % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


_TASKS: Registry[Callable[[], Task]] = Registry("task")


def register(name: str, build: Callable[[], Task]) -> None:
    """Make a task known under a name; `build` is called each time it is asked for."""
    _TASKS.add(name, build)


@dataclass(frozen=True)
class _Source:
    form: str
    matches: Callable[[str], bool]
    build: Callable[[str], Task]
    program: bool


_SOURCES: list[_Source] = []


def register_source(
    form: str, matches: Callable[[str], bool], build: Callable[[str], Task], *, program: bool = False
) -> None:
    """Make a family of tasks known, those whose names `matches`.

    Args:
        form: shows a user how such a name looks.
        program: their examples come out of somebody else's code, which may make other ones each time it is run.
    """
    _SOURCES.append(_Source(form, matches, build, program))


def names() -> list[str]:
    """Registered task names, sorted; families of tasks are not among them."""
    return sorted(_TASKS)


def from_program(name: str) -> bool:
    """Whether somebody else's code makes the examples of the task of that name."""
    return name not in _TASKS and any(source.program for source in _SOURCES if source.matches(name))


def get(name: str) -> Task:
    """Build the task of that name: a registered one, or one of a family (docs/tasks.md).

    Raises:
        InputError: no such task; the message offers the nearest name and lists all.
    """
    if name in _TASKS:
        return _TASKS.get(name)()
    for source in _SOURCES:
        if source.matches(name):
            return source.build(name)
    raise _TASKS.unknown(name, otherwise=", ".join(source.form for source in _SOURCES))
