"""Adapter folders named by the user: a mapping step -> folder, a JSON file with one, or `RUN/step-N` and `RUN/N`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from nextrl.checkpoints.layouts.listing import numbered
from nextrl.checkpoints.run import Layout, Located
from nextrl.errors import InputError

_FOLDER = re.compile(r"^(?:step[-_]?|adapter[-_])?(\d+)$")


def find(run: Path) -> Layout:
    """Subfolders named `N`, `stepN`, `step-N`, `step_N` or `adapter-N` that hold an adapter."""
    folders, problems = numbered(run, _FOLDER)
    located = tuple(
        Located(step, folder) for step, folder in folders if (folder / "adapter_config.json").exists()
    )
    return Layout("folders", located, tuple(problems) if located else ())


def listed(mapping: Mapping[int, Path]) -> Layout:
    """The folders of a mapping step -> adapter folder."""
    return Layout("folders", tuple(Located(step, mapping[step]) for step in sorted(mapping)))


def read_list(path: Path) -> Layout:
    """The same from a JSON file {"10": "path", ...}; relative paths count from the file's folder.

    Raises:
        InputError: no such mapping in the file.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: not readable as JSON ({error}); it must map steps to adapter folders"
        ) from error
    if not isinstance(raw, dict) or not all(
        str(key).isdigit() and isinstance(v, str) for key, v in raw.items()
    ):
        raise InputError(
            f'{path}: must map steps to adapter folders, like {{"10": "runs/a", "20": "runs/b"}}'
        )
    return listed({int(step): path.parent / folder for step, folder in raw.items()})
