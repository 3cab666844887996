"""Are the checkpoints of a folder those of one training? A run that went on from an earlier one leaves others behind.

Who resumes from checkpoint-100 after a collapse keeps 110 to 150 of the abandoned branch until the new one overwrites
them, or for ever where it saves at other steps. Each `trainer_state.json` holds the log of all steps before it, and a
resumed trainer goes on with the log that it loaded: within a branch logs agree to the last digit, two branches differ.

A training that is begun anew in the same folder, and ends before it logged anything, leaves the later checkpoints of
the first one. There the times of the files tell, if they are those of the training and not of a copy (`_as_saved`).
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from nextrl.checkpoints.adapter import AdapterCheckpoint
from nextrl.checkpoints.trainer_folder import OPTIMIZER, STATE, named_by_count, trainer_folders
from nextrl.errors import InputError
from nextrl.files import is_step, parse_json, read_bytes

_FIGURES = ("loss", "reward", "rewards/mean", "learning_rate")
_BEGIN, _END = b'"log_history": [', b"\n  ]"
"""Of the log in the text that transformers writes (read from transformers 5.24.0, `TrainerState.save_to_json`)."""

_ENTRY = re.compile(rb"\n    [^ }\]]")
"""How each of its entries begins there."""

_SAVED = ("training_args.bin", OPTIMIZER, "scheduler.pt", "rng_state.pth", STATE)
"""In which order a trainer writes after the adapter (transformers 4 and 5). By name `training_args.bin` is the last."""


class _Span(NamedTuple):
    """When the first and the last file of a checkpoint were written, in ns."""

    began: int
    ended: int


@dataclass(frozen=True)
class _Log:
    """What one checkpoint's trainer had logged, and when that was written; logs of one branch share their entries."""

    step: int
    written: int
    entries: Sequence[object]


@dataclass(frozen=True)
class _Text:
    """The same before it is parsed: the entries in the form in which transformers writes them, and their length.

    Attributes:
        counted: the optimizer steps that the trainer had taken by its own count.
    """

    step: int
    written: int
    history: bytes
    size: int
    counted: int


class _Difference(NamedTuple):
    step: int
    figure: str
    here: float
    there: float


class Strayed(NamedTuple):
    """Step -> (its trainer's state, what is wrong) of checkpoints that their trainers' logs speak against.

    Attributes:
        astray: those that are not of the branch that was written last. Where the times of the files do not tell which
            branch that is (copies have times of their own), all checkpoints after the branches parted.
        miscounted: those whose trainer counts other steps than their folder says.
    """

    astray: dict[int, tuple[Path, str]]
    miscounted: dict[int, tuple[Path, str]]


def strayed(opened: Sequence[AdapterCheckpoint]) -> Strayed:
    """What the logs that trainers left beside a run's checkpoints say against some of these."""
    places = {step: folder / STATE for step, folder in trainer_folders(opened).items()}
    adapters = {checkpoint.step: checkpoint.file.path for checkpoint in opened}
    branches, counted = _branches(places)
    astray = _astray(branches, places) or _overtaken(places, adapters)
    return Strayed(_told(astray, places), _told(_miscounted(counted), places))


def _told(found: Mapping[int, str], places: Mapping[int, Path]) -> dict[int, tuple[Path, str]]:
    return {step: (places[step], f"{places[step]}: {text}") for step, text in found.items()}


def _miscounted(counted: Mapping[int, int]) -> dict[int, str]:
    """Step -> what is wrong, where most others are named by the steps that their trainers counted.

    A run may be joined from several that count their own steps: what is counted then began after the others' last one.
    """
    if not named_by_count(counted):
        return {}
    last = max(step for step, count in counted.items() if count == step)
    return {
        step: f"counts {count} optimizer steps (global_step) in the checkpoint of step {step}; it is of another "
        "checkpoint or damaged, and not used: restore it, or remove it"
        for step, count in counted.items()
        if count != step and step - count < last
    }


def _astray(branches: Sequence[Sequence[_Text]], places: Mapping[int, Path]) -> dict[int, str]:
    """Step -> what is wrong, of checkpoints of another branch than the one that was written last."""
    logs = _logs(branches)
    if not logs or all(_difference(log, logs[-1]) is None for log in logs):
        return {}
    return _of_older_branches(logs, places) or _parted(logs)


def _overtaken(places: Mapping[int, Path], adapters: Mapping[int, Path]) -> dict[int, str]:
    """The same of checkpoints that were there before one of a lower step was written, and share no figure with it."""
    saved = {step: _as_saved(adapters[step], path) for step, path in places.items() if path.is_file()}
    spans = {step: span for step, span in saved.items() if span is not None}
    # Times of a copy, or of files that somebody has written since, tell nothing of any.
    if len(spans) < len(saved) or not any(_overtaking(spans, step) for step in spans):
        return {}
    texts = (text for step in spans if (text := _text(step, places[step])) and text.counted == step)
    figures = {log.step: _figures(log.entries).keys() for text in texts for log in _parsed([text])}
    spans = {step: spans[step] for step in figures}
    found: dict[int, str] = {}
    for step in spans:
        if not (later := _overtaking(spans, step)):
            continue
        # What the two may have in common, they had before.
        common = max((low for low in spans if low < min(later)), default=0)
        if not any(key[0] > common for key in figures[step] & figures[max(later)]):
            found[step] = (
                f"step {step} was written before step {max(later)}, so it is left of an earlier training in this "
                "folder, or of a branch that was given up, and no log tells the two apart; leave it out or move it "
                "away (--skip-bad-checkpoints leaves it out)"
            )
    return found


def _overtaking(spans: Mapping[int, _Span], step: int) -> list[int]:
    """Lower steps whose checkpoints were begun after this one's was there."""
    return [low for low, span in spans.items() if low < step and span.began > spans[step].ended]


def _as_saved(adapter: Path, state: Path) -> _Span | None:
    """When a checkpoint was written; None of times that no training has.

    A copy has its files in the order of their names, or as they lie on the disk, and of many at once. One that keeps
    the times (`cp -a`, rsync, tar) keeps their order, too.
    """
    after = (state.with_name(name) for name in _SAVED)
    try:
        times = [os.stat(path).st_mtime_ns for path in (adapter, *after) if path.exists()]
    except OSError:
        return None
    known = state.with_name(_SAVED[0]).exists()
    return _Span(times[0], times[-1]) if known and times == sorted(times) and times[0] < times[-1] else None


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
    shared = _shared(log.entries, other.entries)
    if shared in (len(log.entries), len(other.entries)):
        return None  # one is the beginning of the other, as within a branch
    figures, others = _figures(log.entries[shared:]), _figures(other.entries[shared:])
    for key in sorted(figures.keys() & others.keys()):
        here, there = figures[key], others[key]
        # As text, in which NaN is NaN; a figure that was logged twice agrees where one of its values does.
        apart = {repr(value) for value in here}.isdisjoint(repr(value) for value in there)
        if apart and key not in _figures(log.entries[:shared]):
            return _Difference(*key, here[0], there[0])
    return None


def _shared(entries: Sequence[object], others: Sequence[object]) -> int:
    """How many entries at the beginning are the same in both."""
    pairs = enumerate(zip(entries, others, strict=False))
    return next(
        (i for i, (one, other) in pairs if one is not other and one != other), min(len(entries), len(others))
    )


def _figures(entries: Sequence[object]) -> dict[tuple[int, str], list[float]]:
    """(step, figure) -> its values, more than one where it was logged twice."""
    figures: dict[tuple[int, str], list[float]] = {}
    for entry in entries:
        at = entry.get("step") if isinstance(entry, dict) else None
        if isinstance(entry, dict) and is_step(at):
            for figure in _FIGURES:
                value = entry.get(figure)
                if isinstance(value, int | float):
                    figures.setdefault((int(at), figure), []).append(float(value))
    return figures


def _in_order(logs: Sequence[_Log]) -> bool:
    return all(early.written < late.written for early, late in itertools.pairwise(logs))


def _branches(places: Mapping[int, Path]) -> tuple[list[list[_Text]], dict[int, int]]:
    """The logs of all checkpoints that have one, by branch, and step -> the optimizer steps that each of them counts.

    Most logs are, byte by byte, the beginning of a later one, which is the first of its branch: of the others the
    entries are dropped, a hundred of them are not held in memory. A log that counts other steps than the run (a run
    joined from several) is of no branch.
    """
    branches: list[list[_Text]] = []
    counted: dict[int, int] = {}
    for step, path in sorted(places.items(), reverse=True):
        if (text := _text(step, path)) is None:
            continue
        counted[step] = text.counted
        if text.counted != step:
            continue
        own = next((branch for branch in branches if branch[0].history.startswith(text.history)), None)
        if own is None:
            branches.append([text])
        else:
            own.append(replace(text, history=b""))
    return branches, counted


def _logs(branches: Sequence[Sequence[_Text]]) -> list[_Log]:
    """The logs, by step; none where all are of one branch.

    Only the longest of each branch is parsed, and in a run of one branch, as most are, not even that.
    """
    if len(branches) < 2:
        return []
    return sorted((log for branch in branches for log in _parsed(branch)), key=lambda log: log.step)


def _parsed(branch: Sequence[_Text]) -> list[_Log]:
    """The logs of a branch, from the entries of its longest one; none where that is damaged."""
    try:
        entries = parse_json(b"{" + branch[0].history + b"\n]}", "its log")["log_history"]
    except InputError:
        return []
    ends = [len(_ENTRY.findall(branch[0].history, 0, text.size)) for text in branch]
    return [_Log(text.step, text.written, entries[:end]) for text, end in zip(branch, ends, strict=True)]


def _text(step: int, path: Path) -> _Text | None:
    """A trainer's log; None without one."""
    try:
        data, written = read_bytes(path), os.stat(path).st_mtime_ns
        begin = data.find(_BEGIN)
        end = data.find(_END, begin)
        history = data[begin:end] if 0 <= begin < end else b""
        state = parse_json(data[:begin] + _BEGIN + data[end:] if history else data, str(path))
    except (InputError, OSError):
        return None
    log = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(log, list) or not is_step(counted := state.get("global_step")):
        return None
    history = history or _as_written(log)
    return _Text(step, written, history, len(history), int(counted))


def _as_written(log: Sequence[object]) -> bytes:
    """The entries of a log that somebody has written in another form, in that of transformers."""
    return _BEGIN + b",".join(b"\n    " + json.dumps(entry).encode() for entry in log)
