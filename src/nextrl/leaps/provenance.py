"""A leap's folder: weights and `nextrl.json`, which says where they came from, appear together or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nextrl.checkpoints.adapter import CONFIG, NOTE, AdapterCheckpoint
from nextrl.checkpoints.atomic import replacing_folder, sha256, write_json, writing
from nextrl.checkpoints.run import StoredCheckpoint
from nextrl.errors import InputError
from nextrl.files import read_json
from nextrl.trajectory.full_weights import FullCheckpoint
from nextrl.trajectory.trajectory import Trajectory
from nextrl.version import VERSION

CARD = "README.md"
WEIGHTS = (CONFIG, "adapter_model.*", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")


@contextlib.contextmanager
def leap_folder(out: Path, traj: Trajectory) -> Iterator[Path]:
    """A temporary folder that becomes `out` when everything in it is written; an older leap there stays until then.

    Only files that the older leap's `nextrl.json` lists are replaced or removed; the others are carried over.

    Args:
        traj: what the leap is made of; `out` may hold none of its checkpoints.

    Raises:
        InputError: `out` is somebody else's, was trained on since, holds the run, or cannot be written.
    """
    with writing(out):
        refuse_foreign_folder(out)
        _refuse_sources(out, traj)
    ours = _files_of(out) - ({CARD} if own_card(out) else set())
    with replacing_folder(out, lambda entry: entry.name in ours) as folder:
        yield folder
        for file in folder.iterdir():
            if file.name not in ours and os.path.lexists(out / file.name):
                raise InputError(
                    f"{out}: already holds {file.name}, not written by nextrl; move it or choose another --out"
                )


def own_card(out: Path) -> bool:
    """Whether a folder has a README.md that a user wrote, or changed since nextrl wrote it."""
    if not (out / CARD).is_file():
        return False
    note = _note(out)
    return note is None or note.get("card_sha256") != sha256(out / CARD)


def _note(out: Path) -> dict[str, Any] | None:
    """What a folder's note says; None where there is none, or none that can be read."""
    try:
        note = read_json(out / NOTE)
    except InputError:
        return None
    return note if isinstance(note, dict) else None


def _files_of(out: Path) -> set[str]:
    """Names of the files that nextrl wrote into a folder, its note among them."""
    listed = (_note(out) or {}).get("files")
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


def left_out_of(checkpoint: StoredCheckpoint) -> dict[str, str]:
    """What a note says of a full-weight run's tensors that moved and are not followed; nothing where there are none."""
    lines = checkpoint.left_out.lines() if isinstance(checkpoint, FullCheckpoint) else ()
    return {"left_out": "; ".join(lines)} if lines else {}


def refuse_foreign_folder(out: Path) -> None:
    """Refuse to write into a folder that holds somebody else's model or adapter.

    Raises:
        InputError: `out` is a file, holds weights without a `nextrl.json` that lists files, or weights of ours that are
            other ones since.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out must name a folder")
    digests = _digests(out)
    for pattern in WEIGHTS:
        for file in sorted(out.glob(pattern)):
            if digests is None:
                raise InputError(
                    f"{out}: already holds {file.name}, not written by nextrl; choose another --out"
                )
            if file.name in digests and sha256(file) != digests[file.name]:
                raise InputError(
                    f"{out}: {file.name} was changed since nextrl wrote it (its SHA-256 is not the one in {NOTE}), by "
                    "training perhaps; choose another --out"
                )


def _digests(out: Path) -> dict[str, str] | None:
    """File -> SHA-256 as a note of ours says; None where there is no such note, or none that can be read."""
    note = _note(out)
    if note is None or note.get("written_by") != "nextrl":
        return None
    digests = note.get("sha256")
    return {str(name): str(text) for name, text in digests.items()} if isinstance(digests, dict) else {}


def _refuse_sources(out: Path, traj: Trajectory) -> None:
    """Refuse a folder that holds the run: a trainer may be writing there while the whole of it is replaced."""
    place = Path(os.path.realpath(out))
    read = [c.folder for c in traj.checkpoints if isinstance(c, AdapterCheckpoint)]
    read += [c.model.folder for c in traj.checkpoints if isinstance(c, FullCheckpoint)]
    if traj.source is not None and traj.source.is_dir():
        read.append(traj.source)
    for source in read:
        real = Path(os.path.realpath(source))
        if place == real or place in real.parents:
            raise InputError(
                f"{out}: holds {source}, which the leap is made from, and would be replaced as a whole; choose another "
                "--out (a folder inside the run will do)"
            )
