"""List a run's folder safely: numbered entries in order of their step, dead links and link loops as problems."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from nextrl.checkpoints.run import Problem
from nextrl.errors import InputError
from nextrl.files import MAX_STEP

TRAINER_FOLDER = re.compile(r"^checkpoint-(\d+)$")
"""How transformers' Trainer, and TRL with it, names its checkpoints (transformers 5.24.0, PREFIX_CHECKPOINT_DIR)."""


class Numbered(NamedTuple):
    """A folder whose name carries a step."""

    step: int
    folder: Path


def numbered(run: Path, pattern: re.Pattern[str]) -> tuple[list[Numbered], list[Problem]]:
    """Folders of `run` whose name matches `pattern` (its first group is the step), by step, and problems.

    Raises:
        InputError: `run` itself cannot be listed.
    """
    try:
        entries = sorted(run.iterdir())
    except OSError as error:
        raise InputError(
            f"{run}: cannot be listed ({error.strerror}); check the path and its rights"
        ) from error
    found: list[Numbered] = []
    problems: list[Problem] = []
    for entry in entries:
        match = pattern.fullmatch(entry.name)
        if match is None:
            continue
        step = int(match[1])
        if step > MAX_STEP:
            problems.append(
                Problem(entry, f"{entry}: no run has {step} steps; rename or remove the folder", step)
            )
        elif entry.is_symlink() and (why := _dead_link(entry)):
            problems.append(
                Problem(entry, f"{entry}: {why}; remove the link or point it at the folder", step)
            )
        elif entry.is_dir():
            found.append(Numbered(step, entry))
    return _once(sorted(found), problems), problems


def _once(found: list[Numbered], problems: list[Problem]) -> list[Numbered]:
    """One folder for each step; a second one (`checkpoint-010`) is a problem."""
    by_step: dict[int, Numbered] = {}
    for entry in found:
        first = by_step.setdefault(entry.step, entry)
        if first is not entry:
            text = f"{entry.folder}: step {entry.step} is {first.folder.name} already; remove one of the two"
            problems.append(Problem(entry.folder, text, entry.step))
    return list(by_step.values())


def trainer_checkpoint(run: Path, step: int) -> Path:
    """Where a Trainer that writes to `run` puts its checkpoint of `step`; whether it is there is not asked."""
    return run / f"checkpoint-{step}"


def trainer_checkpoints(run: Path) -> list[Numbered]:
    """The `checkpoint-N` folders of `run` by step; none where `run` is not there (yet).

    Whether they are whole is not asked, and what only looks like one (`checkpoint-best`, a file) is passed over.

    Raises:
        InputError: `run` cannot be listed.
    """
    return numbered(run, TRAINER_FOLDER)[0] if run.exists() else []


def _dead_link(entry: Path) -> str | None:
    try:
        entry.resolve(strict=True)
    except FileNotFoundError:
        return "a link that points nowhere"
    except (OSError, RuntimeError):  # RuntimeError is Python < 3.13's word for a loop
        return "a link that leads back to itself"
    return None
