"""Which checkpoints are training, and where it begins: a leap among them is none, and what comes after starts from it.

A leap that was written into the run's folder says so in `nextrl.json` beside it. Its displacement is nobody's training,
so that a method which took it for some would leap along its own leap.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from nextrl.checkpoints.adapter import leapt
from nextrl.checkpoints.run import Located, Problem
from nextrl.errors import InputError


@dataclass(frozen=True)
class Stretch:
    """The stretch of a run that ends with its last checkpoint.

    Attributes:
        start: the step of the leap that it begins with, 0 without one.
        left_out: one for each checkpoint that is no part of it.
        damaged: one for each whose `nextrl.json` cannot be read, so that what it is is unknown.
    """

    start: int = 0
    left_out: list[Problem] = field(default_factory=list)
    damaged: list[Problem] = field(default_factory=list)


def stretch_of(located: Sequence[Located], wanted: Set[int]) -> Stretch:
    """Where a run begins, by the notes beside its checkpoints alone: those that are damaged count too.

    Args:
        located: all that were found, by step.
        wanted: steps of those that are asked for. The leap that they begin with need not be among them.
    """
    asked = [where for where in located if where.step in wanted]
    damaged: list[Problem] = []
    leaps: list[int] = []
    trained: list[int] = []
    for where in located:
        if not asked or where.step > asked[-1].step:
            break
        try:
            (leaps if leapt(where.folder) else trained).append(where.step)
        except InputError as error:
            if where.step in wanted:
                damaged.append(Problem(where.folder, str(error), where.step))
    if wanted.isdisjoint(trained):  # leaps alone: whoever asks for one by itself means it
        return Stretch(next((step for step in leaps if step in wanted), 0), [], damaged)
    start = max((step for step in leaps if step < trained[-1]), default=0)
    left_out = []
    for where in asked:
        if where.step in leaps and where.step > trained[-1]:
            why = "a leap wrote it (nextrl.json beside it), and nothing was trained from there"
        elif where.step < start:
            why = f"comes before the leap that wrote step {start}, from which the run begins anew"
        else:
            continue
        left_out.append(_left_out(where, why))
    return Stretch(start, left_out, damaged)


def stretch_from(start: int, located: Sequence[Located], wanted: Set[int]) -> Stretch:
    """The stretch that begins at a step of the caller's choice, whatever leaps wrote some of the checkpoints."""
    before = [where for where in located if where.step in wanted and where.step < start]
    return Stretch(start, [_left_out(where, f"comes before step {start}, the start") for where in before])


def _left_out(where: Located, why: str) -> Problem:
    return Problem(where.folder, f"{where.folder}: {why}", where.step, fatal=False)
