"""Where a run's adapters lie: one file per layout, found automatically.

`open_run` is the only way in. A reader is a function `find(run) -> Layout`; to add one, add a line to READERS.
Full-weight checkpoints are not adapters: `dense.py` reduces them to factors on request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from nextrl.checkpoints import dense
from nextrl.checkpoints.adapter import CONFIG, AdapterCheckpoint
from nextrl.checkpoints.consistency import disagreements
from nextrl.checkpoints.layouts import folders, openrlhf, trl, verl
from nextrl.checkpoints.run import Layout, Problem, StoredCheckpoint, no_checkpoint, repeated
from nextrl.checkpoints.stretch import stretch_from, stretch_of
from nextrl.errors import InputError
from nextrl.files import usable_path
from nextrl.registry import Registry

__all__ = ["READERS", "AdapterCheckpoint", "OpenedRun", "StoredCheckpoint", "detect", "open_run"]

READERS: Registry[Callable[[Path], Layout]] = Registry(
    "layout", {"trl": trl.find, "verl": verl.find, "openrlhf": openrlhf.find, "folders": folders.find}
)


@dataclass(frozen=True)
class OpenedRun:
    """A run with its checkpoints opened.

    Attributes:
        layout: name of the reader that found it.
        source: the directory (or list file), None for a mapping.
        checkpoints: those that could be opened, by step.
        problems: everything that is wrong, fatal or not.
        start: the step of the leap that the run, as far as it is here, begins with; 0 without one.
        left_out: checkpoints that are no part of it, and why: leaps that nothing was trained after, and all before the
            leap that it begins with.
    """

    layout: str
    source: Path | None
    checkpoints: tuple[AdapterCheckpoint, ...]
    problems: tuple[Problem, ...]
    start: int = 0
    left_out: tuple[Problem, ...] = ()


def open_run(
    source: Path | Mapping[int, Path],
    *,
    layout: str | None = None,
    steps: Sequence[int] | None = None,
    allow_pickle: bool = False,
    start: int | None = None,
) -> OpenedRun:
    """Find and open the checkpoints of a run; problems are collected, not raised.

    Args:
        steps: only these checkpoints, and that of the step at which the run begins, which is their W_0.
        start: where it begins, whatever leaps wrote some of them; by default what the notes beside them say.

    Raises:
        InputError: `source` is no run at all (missing, unknown layout, two layouts in one folder), or has no
            checkpoint of one of `steps`.
    """
    path = None if isinstance(source, Mapping) else source
    found = folders.listed(source) if isinstance(source, Mapping) else detect(source, layout)
    have = {where.step for where in found.located}
    missing = [step for step in steps or () if step not in have]
    if missing:
        raise no_checkpoint(missing[0], have, path or "")
    asked = have if steps is None else set(steps)
    stretch = stretch_of(found.located, asked) if start is None else stretch_from(start, found.located, asked)
    wanted = have if steps is None else {*steps, stretch.start}
    problems = [p for p in found.problems if steps is None or p.step in wanted]
    located = [where for where in found.located if where.step in wanted]
    apart = {problem.step for problem in stretch.left_out}
    problems = [*(p for p in problems if p.step not in apart), *stretch.damaged]
    unknown = {problem.step for problem in stretch.damaged}
    opened = []
    for where in located:
        if where.step in apart | unknown:
            continue
        if (why := dense.no_adapter(where.folder)) is not None:
            problems.append(Problem(where.folder, why, where.step))
            continue
        try:
            opened.append(
                AdapterCheckpoint.open(
                    where.step, where.folder, overrides=where.overrides, allow_pickle=allow_pickle
                )
            )
        except InputError as error:
            problems.append(Problem(where.folder, str(error), where.step))
    problems += repeated({checkpoint.step: [checkpoint.file.path] for checkpoint in opened})
    problems += disagreements(opened)
    return OpenedRun(found.name, path, tuple(opened), tuple(problems), stretch.start, tuple(stretch.left_out))


_LOOKED_AT = 100
"""Most folders of a level that are looked into for a run, where the folder that was named holds none."""


def detect(run: Path, layout: str | None = None) -> Layout:
    """The layout of a folder, by asking every reader (or the one named); a file is a list of folders.

    Raises:
        InputError: no such folder, unknown `layout`, nothing found, or two layouts found.
    """
    readers = {name: READERS.get(name) for name in (READERS.names() if layout is None else (layout,))}
    run = usable_path(run)
    if run.is_file():
        return folders.read_list(run)
    if not run.is_dir():
        raise InputError(f"{run}: no such directory; give the directory that holds the run's checkpoints")
    found = [result for find in readers.values() if (result := find(run)).found]
    if len(found) > 1:
        both = " and ".join(f"{result.name} ({_example(result)})" for result in found)
        raise InputError(f"{run}: holds two layouts, {both}; choose one with --layout")
    if not found:
        raise InputError(_nothing(run, readers))
    return found[0]


def _example(layout: Layout) -> str:
    return layout.located[0].folder.name if layout.located else layout.problems[0].path.name


def _nothing(run: Path, readers: Mapping[str, Callable[[Path], Layout]]) -> str:
    if full := dense.find(run):
        return f"{run}: holds {len(full)} full-weight checkpoints and no LoRA adapters; {dense.READ_BY}"
    if (run / CONFIG).exists():
        return f"{run}: is one adapter, not a run; give its parent, the directory of all checkpoints"
    if inner := _run_below(run, readers):
        return f"{run}: no LoRA checkpoints here, but in {inner}: give that folder"
    if listed := _adapters_below(run):
        step = min(listed)
        return (
            f"{run}: holds adapters in folders that no layout names ({len(listed)} of them); list them in a JSON file "
            f'there, each step with its folder, like {{"{step}": "{listed[step].as_posix()}", ...}}, and give that file'
        )
    return (
        f"{run}: no LoRA checkpoints found (layouts tried: {', '.join(readers)}); "
        "give the directory that holds checkpoint-N, global_step_N or global_stepN_hf folders"
    )


_DEPTH = 4
"""Levels below a run's folder at which another tool's adapters are looked for (`step_N/policy/weights/model`)."""


def _adapters_below(run: Path) -> dict[int, Path]:
    """Step -> folder, relative to the run's, of adapters whose path ends in a number and what follows it."""
    for depth in range(1, _DEPTH + 1):
        places = islice(run.glob("/".join(["*"] * depth + [CONFIG])), 10 * _LOOKED_AT)
        folders = sorted(place.parent.relative_to(run) for place in places)
        numbers = [(re.findall(r"\d+", folder.as_posix()), folder) for folder in folders]
        if found := {int(every[-1][-18:]): folder for every, folder in numbers if every}:
            return found
    return {}


def _run_below(run: Path, readers: Mapping[str, Callable[[Path], Layout]]) -> Path | None:
    """A folder one or two levels down that holds a run, as `nextrl run` (trajectory/) and `nextrl demo` leave them."""
    for pattern in ("*", "*/*"):
        for folder in islice(sorted(run.glob(pattern)), _LOOKED_AT):
            if folder.is_dir() and any(find(folder).found for find in readers.values()):
                return folder
    return None
