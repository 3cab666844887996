"""`nextrl_decisions.jsonl`, read: what a run's policy decided, and what `auto` said last of its rate.

The engines write the file (`engines.decision_log`); it is read here, below them, since the recommender has to know of a
rate that `auto` has set.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import ValidationError

from nextrl.errors import InputError
from nextrl.files import NoSuchFile, parse_json, read_text
from nextrl.judge.decision import DecisionRecord
from nextrl.say import say
from nextrl.trajectory import trainer_log
from nextrl.trajectory.trajectory import Trajectory

log = logging.getLogger(__name__)

DECISIONS = "nextrl_decisions.jsonl"


def read(output_dir: Path) -> list[DecisionRecord]:
    """The decisions that a folder holds, none where it has no such file; a killed process's half line is left out.

    Raises:
        InputError: another line is none, or it is no file.
    """
    path = output_dir / DECISIONS
    try:
        *lines, rest = read_text(path).split("\n")
    except NoSuchFile:
        return []
    found = []
    for number, text in enumerate(lines, 1):
        try:
            found.append(DecisionRecord.model_validate(parse_json(text.encode(), f"{path}, line {number}")))
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"{path}, line {number}: no decision ({first['loc']}: {first['msg']})") from None
    if rest:
        say(log, "%s: the last line is cut off, and left out", path)
    return found


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
