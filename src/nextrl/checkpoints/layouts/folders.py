"""Adapter folders named by the user: a mapping step -> folder, a JSON file with one, or `RUN/step-N` and `RUN/N`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from nextrl.checkpoints.adapter import CONFIG
from nextrl.checkpoints.layouts.listing import numbered
from nextrl.checkpoints.run import Layout, Located
from nextrl.errors import InputError
from nextrl.files import MAX_STEP, read_json, usable_path

_FOLDER = re.compile(r"^(?:step[-_]?|adapter[-_])?(\d+)$")


def find(run: Path) -> Layout:
    """Subfolders named `N`, `stepN`, `step-N`, `step_N` or `adapter-N` that hold an adapter."""
    folders, problems = numbered(run, _FOLDER)
    located = tuple(Located(step, folder) for step, folder in folders if (folder / CONFIG).exists())
    return Layout("folders", located, tuple(problems) if located else ())


def listed(mapping: Mapping[int, Path]) -> Layout:
    """The folders of a mapping step -> adapter folder."""
    return Layout("folders", tuple(Located(step, mapping[step]) for step in sorted(mapping)))


def read_list(path: Path) -> Layout:
    """The same from a JSON file {"10": "path", ...}; relative paths count from the file's folder.

    Raises:
        InputError: no such mapping in the file.
    """
    raw = read_json(path)
    if not isinstance(raw, dict) or not all(
        key.isdecimal() and len(key) < 20 and int(key) <= MAX_STEP and isinstance(folder, str)
        for key, folder in raw.items()
    ):
        raise InputError(
            f'{path}: must map steps (up to {MAX_STEP:,}) to adapter folders, like {{"10": "runs/a", "20": "runs/b"}}'
        )
    if not raw:
        raise InputError(f'{path}: names no checkpoint; write steps and folders, like {{"10": "runs/a"}}')
    by_step: dict[int, Path] = {}
    for key, folder in raw.items():
        if int(key) in by_step:
            raise InputError(f"{path}: names step {int(key)} twice ({key}); keep one")
        by_step[int(key)] = path.parent / usable_path(folder)
    return listed(by_step)
