"""Are the checkpoints of a folder those of one training? A run that went on from an earlier one leaves others behind.

Who resumes from checkpoint-100 after a collapse keeps 110 to 150 of the abandoned branch until the new one overwrites
them, or for ever where it saves at other steps. Each `trainer_state.json` holds the log of all steps before it, and a
resumed trainer goes on with the log that it loaded: within a branch logs agree to the last digit, two branches differ.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nextrl.checkpoints.adapter import AdapterCheckpoint
from nextrl.checkpoints.trainer_folder import STATE, trainer_folders
from nextrl.errors import InputError
from nextrl.files import is_step, parse_json, read_bytes

_FIGURES = ("loss", "reward", "rewards/mean", "learning_rate")
_BEGIN, _END = b'"log_history": [', b"\n  ]"
"""Of the log in the text that transformers writes (read from transformers 5.24.0, `TrainerState.save_to_json`)."""


@dataclass(frozen=True)
class _Log:
    """What one checkpoint's trainer had logged: (step, figure) -> its values, more than one where it logged twice."""

    step: int
    written: int
    figures: dict[tuple[int, str], list[float]]


class _Difference(NamedTuple):
    step: int
    figure: str
    here: float
    there: float


def strayed(opened: Sequence[AdapterCheckpoint]) -> dict[int, tuple[Path, str]]:
    """Step -> (its trainer's state, what is wrong) of checkpoints that are not of the branch that was written last.

    Where the times of the files do not tell which branch that is (copies have times of their own), all checkpoints
    after the branches parted are named.
    """
    places = {step: folder / STATE for step, folder in trainer_folders(opened).items()}
    if _one_text(list(places.values())):
        return {}
    logs = [log for step, path in places.items() if (log := _log(step, path)) is not None]
    if not logs or all(_difference(log, logs[-1]) is None for log in logs):
        return {}
    found = _of_older_branches(logs, places)
    return {
        step: (places[step], f"{places[step]}: {text}") for step, text in (found or _parted(logs)).items()
    }


def _of_older_branches(logs: Sequence[_Log], places: Mapping[int, Path]) -> dict[int, str]:
    """Step -> what is wrong, by the branch that was written last; nothing where the times do not tell it."""
    newest = max(logs, key=lambda log: (log.written, log.step))
    differences = {log.step: _difference(log, newest) for log in logs}
    old = [log for log in logs if log.step > newest.step or differences[log.step]]
    own = [log for log in logs if log not in old]
    # A folder copied in the order of its steps has times that rise with them whatever is in it; so a checkpoint of the
    # run must have come after one of the other branch that has a higher step.
    overtaken = any(late.written > early.written for early in old for late in own if early.step > late.step)
    if not overtaken or _by_name(logs, places) or not _as_trained(own, old, differences):
        return {}
    return {
        log.step: f"{_said(log, newest, differences[log.step])}; leave it out or move it away "
        "(--skip-bad-checkpoints leaves it out)"
        for log in old
    }


def _as_trained(
    own: Sequence[_Log], old: Sequence[_Log], differences: Mapping[int, _Difference | None]
) -> bool:
    """Whether the times can be those of the training: what the branches share came first, then what was abandoned.

    A copy's times are others. By name, checkpoint-100 comes before checkpoint-20, which both branches have.
    """
    for log in old:
        parted = differences[log.step]
        if parted and any((log.written < other.written) != (other.step >= parted.step) for other in own):
            return False
    return _in_order(own) and _in_order(old)


def _by_name(logs: Sequence[_Log], places: Mapping[int, Path]) -> bool:
    """Whether the files were written in the order of their names, or backwards, as a copy is."""
    names = [str(places[log.step]) for log in sorted(logs, key=lambda log: log.written)]
    return names in (sorted(names), sorted(names, reverse=True))


def _parted(logs: Sequence[_Log]) -> dict[int, str]:
    """The same of all checkpoints of all branches, from the first step at which two of them differ."""
    last = logs[-1]
    differences = {log.step: parted for log in logs if (parted := _difference(log, last)) is not None}
    other = next(log for log in logs if log.step in differences)
    begin = min(difference.step for difference in differences.values())
    found: dict[int, str] = {}
    for log in logs:
        if log.step >= begin:
            than = last if log.step in differences else other
            found[log.step] = (
                f"{_said(log, than, _difference(log, than))}, and the files' times do not tell which the run went on "
                "with; move those of the abandoned one away (--skip-bad-checkpoints leaves out both)"
            )
    return found


def _said(log: _Log, other: _Log, difference: _Difference | None) -> str:
    text = f"step {log.step} is of another branch than step {other.step}"
    if difference is None:
        return f"{text}, which was written later"
    step, figure, here, there = difference
    return f"{text}: its log has {figure} {here:.6g} at step {step}, there it is {there:.6g}"


def _difference(log: _Log, other: _Log) -> _Difference | None:
    """The first figure that both logs have and that is not the same in them."""
    for key in sorted(log.figures.keys() & other.figures.keys()):
        here, there = log.figures[key], other.figures[key]
        # As text, in which NaN is NaN; a figure that was logged twice agrees where one of its values does.
        if {repr(value) for value in here}.isdisjoint(repr(value) for value in there):
            return _Difference(*key, here[0], there[0])
    return None


def _in_order(logs: Sequence[_Log]) -> bool:
    return all(early.written < late.written for early, late in itertools.pairwise(logs))


def _one_text(paths: Sequence[Path]) -> bool:
    """Whether each log is, byte by byte, the beginning of the last one: so it is in most runs, and none is parsed."""
    last: bytes | None = None
    for path in reversed(paths):
        try:
            history = _history(read_bytes(path))
        except InputError:
            continue  # there is none
        last = history if last is None else last
        if history is None or last is None or not last.startswith(history):
            return False
    return True


def _history(text: bytes) -> bytes | None:
    """The entries of the log, as they are written; None where the file is not as transformers writes it."""
    begin = text.find(_BEGIN)
    end = text.find(_END, begin)
    return text[begin:end] if 0 <= begin < end else None


def _log(step: int, path: Path) -> _Log | None:
    """A trainer's log; None without one, or where it counts other steps than the run (a run joined from several)."""
    try:
        state = parse_json(read_bytes(path), str(path))
        written = os.stat(path).st_mtime_ns
    except (InputError, OSError):
        return None
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list) or state.get("global_step") != step:
        return None
    figures: dict[tuple[int, str], list[float]] = {}
    for entry in history:
        at = entry.get("step") if isinstance(entry, dict) else None
        if is_step(at):
            for figure in _FIGURES:
                value = entry.get(figure)
                if isinstance(value, int | float):
                    figures.setdefault((int(at), figure), []).append(float(value))
    return _Log(step, written, figures)
