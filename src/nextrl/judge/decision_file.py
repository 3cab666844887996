"""`nextrl_decisions.jsonl`, read: what a run's policy decided, and what `auto` said last of its rate.

The engines write the file (`engines.decision_log`); it is read here, below them, since the recommender has to know of a
rate that `auto` has set.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import ValidationError

from nextrl.errors import InputError
from nextrl.files import NoSuchFile, parse_json, read_bytes
from nextrl.judge.decision import DecisionRecord
from nextrl.say import say
from nextrl.trajectory import trainer_log
from nextrl.trajectory.trajectory import Trajectory

log = logging.getLogger(__name__)

DECISIONS = "nextrl_decisions.jsonl"


def read(output_dir: Path, upto: int | None = None) -> list[DecisionRecord]:
    """The decisions that a folder holds, none where it has no such file; a killed process's half line is left out.

    Args:
        upto: leave out what was decided after this step.

    Raises:
        InputError: another line is none, or of an earlier step than the one before it, or it is no file.
    """
    path = output_dir / DECISIONS
    try:
        *lines, rest = read_bytes(path).split(b"\n")
    except NoSuchFile:
        return []
    if _complete(rest):  # an editor has removed the last line's end
        lines.append(rest)
    elif rest.strip():
        say(log, "%s: the last line is cut off, and left out", path)
    found: list[DecisionRecord] = []
    for number, text in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            made = _decision(text, where)
        except InputError as error:
            raise InputError(f"{error}; correct or remove that line") from None
        if found and made.step < found[-1].step:
            raise InputError(
                f"{where}: is of step {made.step}, and the line before it of step {found[-1].step}; remove "
                "those of the two that are not of this run"
            )
        found.append(made)
    return found if upto is None else [made for made in found if made.step <= upto]


def _complete(line: bytes) -> bool:
    """Whether a line is JSON, as no part of an object's text is."""
    try:
        parse_json(line, DECISIONS)
    except InputError:
        return False
    return True


def _decision(line: bytes, where: str) -> DecisionRecord:
    """The decision that a line holds, of the very types that are written: a number in quotation marks is none.

    Raises:
        InputError: it holds none; `where` is for messages.
    """
    value = parse_json(line, where)
    try:
        return DecisionRecord.model_validate(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(f"{where}: no decision ({field}{': ' if field else ''}{first['msg']})") from None


def last_of_auto(traj: Trajectory) -> DecisionRecord | None:
    """The last decision of `auto` up to the trajectory's last step; None where the run was not under it.

    Raises:
        InputError: the file beside the checkpoints cannot be read.
    """
    last = trainer_log.folder(traj)
    # A verl run keeps its adapters deeper than beside the file: there the folder that was named holds it.
    source = (
        traj.source if traj.source is not None and traj.source.is_dir() else None
    )  # a list of runs is a file
    for place in (None if last is None else last.parent, source):
        found = [] if place is None else read(place)
        if found:
            own = [d for d in found if d.method == "auto" and d.step <= traj.steps[-1]]
            return own[-1] if own else None
    return None
