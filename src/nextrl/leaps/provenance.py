"""A leap's folder: weights and `nextrl.json`, which says where they came from, appear together or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nextrl.checkpoints.adapter import NOTE, AdapterCheckpoint
from nextrl.checkpoints.atomic import replacing_folder, sha256, write_json, writing
from nextrl.errors import InputError
from nextrl.files import read_json
from nextrl.trajectory.trajectory import Trajectory
from nextrl.version import VERSION

CARD = "README.md"
WEIGHTS = (
    "adapter_config.json",
    "adapter_model.*",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
)


@contextlib.contextmanager
def leap_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` when everything in it is written; an older leap there stays until then.

    What else a user keeps in an older leap's folder is carried over.

    Raises:
        InputError: `out` is somebody else's, or cannot be written.
    """
    with writing(out):
        refuse_foreign_folder(out)
    ours = _files_of(out / NOTE) - ({CARD} if own_card(out) else set())

    def replaced(entry: Path) -> bool:
        return entry.name in ours or any(entry.match(pattern) for pattern in WEIGHTS)

    with replacing_folder(out, replaced) as folder:
        yield folder


def own_card(out: Path) -> bool:
    """Whether a folder has a README.md that a user wrote, or changed since nextrl wrote it."""
    if not (out / CARD).is_file():
        return False
    try:
        note = read_json(out / NOTE)
    except InputError:
        return True
    return not isinstance(note, dict) or note.get("card_sha256") != sha256(out / CARD)


def _files_of(note: Path) -> set[str]:
    """Names of the files that nextrl wrote beside a note, and the note's own."""
    try:
        value = read_json(note)
    except InputError:
        return {NOTE}
    listed = value.get("files") if isinstance(value, dict) else None
    return {NOTE, *(name for name in (listed if isinstance(listed, list) else ()) if isinstance(name, str))}


def write_provenance(traj: Trajectory, step: int, out: Path, details: Mapping[str, Any]) -> Path:
    """Write `out/nextrl.json`.

    Args:
        traj: the trajectory that was used; each of its files is named with its SHA-256.
        step: T.
        out: the folder that holds the result and nothing else; its own tensor files are hashed too.
        details: method, alpha, horizon ... as the caller knows them; JSON values.
    """
    sources = {
        str(c.file.path): sha256(c.file.path)
        for c in traj.checkpoints
        if isinstance(c, AdapterCheckpoint) and c.step <= step
    }
    path = out / NOTE
    files = sorted(file.name for file in out.iterdir() if file.name != NOTE)
    write_json(
        path,
        {
            "written_by": "nextrl",
            "version": VERSION,
            "run": None if traj.source is None else str(traj.source),
            "layout": traj.layout,
            "from_step": step,
            **details,
            "source_sha256": sources,
            "files": files,
            **({"card_sha256": sha256(out / CARD)} if (out / CARD).is_file() else {}),
            "sha256": {file.name: sha256(file) for file in sorted(out.glob("*.safetensors"))},
        },
    )
    return path


def refuse_foreign_folder(out: Path) -> None:
    """Refuse to write into a folder that holds somebody else's model or adapter.

    Raises:
        InputError: `out` is a file, or holds weights without a `nextrl.json`.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out must name a folder")
    if (out / NOTE).exists():
        return
    for pattern in WEIGHTS:
        for file in out.glob(pattern):
            raise InputError(f"{out}: already holds {file.name}, not written by nextrl; choose another --out")
