"""`nextrl.json`: where a written adapter or model came from. It is written last, so that it vouches for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nextrl.checkpoints.adapter import NOTE, AdapterCheckpoint
from nextrl.checkpoints.atomic import sha256, write_json
from nextrl.errors import InputError
from nextrl.trajectory.trajectory import Trajectory
from nextrl.version import VERSION


def write_provenance(traj: Trajectory, step: int, out: Path, details: Mapping[str, Any]) -> Path:
    """Write `out/nextrl.json`.

    Args:
        traj: the trajectory that was used; each of its files is named with its SHA-256.
        step: T.
        out: the folder that holds the result; its own tensor files are hashed too.
        details: method, alpha, horizon ... as the caller knows them; JSON values.
    """
    sources = {
        str(c.file.path): sha256(c.file.path)
        for c in traj.checkpoints
        if isinstance(c, AdapterCheckpoint) and c.step <= step
    }
    path = out / NOTE
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
    for pattern in ("adapter_config.json", "adapter_model.*", "*.safetensors", "pytorch_model*.bin"):
        for file in out.glob(pattern):
            raise InputError(f"{out}: already holds {file.name}, not written by nextrl; choose another --out")
