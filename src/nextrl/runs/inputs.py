"""What a run is made of beside its config, so that a resume notices that it has become something else.

A config names a task and a model; both are files that somebody may edit, or a program that makes other examples each
time it is run. Digests of them lie in the run's folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nextrl.checkpoints.atomic import write_json
from nextrl.errors import InputError
from nextrl.files import parse_json, read_json, regular_file
from nextrl.runs import source_code
from nextrl.runs.layout import INPUTS
from nextrl.tasks.base import Split, Task

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_ENDS = 2**20  # bytes at either end of a file: a 7B has too many to be read at each start
_PIECE = (
    2**12
)  # bytes at the start and in the middle of each tensor: a merge changes some tensors and no file's size
_SHA256 = re.compile("[0-9a-f]{64}")
_MODEL_FILES = ("*.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")


def digests(task: Task, task_name: str, model_name: str) -> dict[str, str]:
    """Name of a part -> its SHA-256: the task's examples, its code, and the model's files, where these are local.

    Raises:
        InputError: a file of these cannot be read.
    """
    found = {"the task's examples": _digest(_rows(task))}
    if task_name.endswith(".py") and (file := Path(task_name).expanduser()).is_file():
        found["the task's code"] = _digest(source_code.code(file))
    if (folder := Path(model_name).expanduser()).is_dir():
        found["the model's weights and settings"] = _digest(_model(folder))
    return found


def check(out: Path, now: dict[str, str]) -> None:
    """See that the run in a folder goes on with what it began with; one that kept no digests is let be.

    Raises:
        InputError: a part of it has changed.
    """
    path = out / INPUTS
    if not path.is_file():
        return
    before = read_json(path)
    for part, digest in now.items():
        if isinstance(before, dict) and before.get(part, digest) != digest:
            again = (
                " (examples have to be the same each time: seed what shuffles them; where the order of a set is in "
                "them, they are so only under one PYTHONHASHSEED)"
                if "examples" in part
                else ""
            )
            raise InputError(
                f"{out}: {part} changed since this run began{again}: restore them, choose another output_dir, or "
                f"remove {path} to go on all the same"
            )


def kept(out: Path) -> bool:
    """Whether a folder holds digests, and not a file of somebody else's that has their name."""
    try:
        found = read_json(out / INPUTS)
    except InputError:
        return False
    return (
        isinstance(found, dict)
        and bool(found)
        and all(_SHA256.fullmatch(str(digest)) for digest in found.values())
    )


def keep(out: Path, now: dict[str, str]) -> None:
    """Write the digests into a run's folder."""
    write_json(out / INPUTS, now)


def _rows(task: Task) -> Iterator[bytes]:
    for split in _SPLITS:
        for example in task.examples(split):
            yield json.dumps([split, example.prompt, example.answer]).encode()


def _model(folder: Path) -> Iterator[bytes]:
    for pattern in _MODEL_FILES:
        for path in sorted(folder.glob(pattern)):
            yield path.name.encode()
            with regular_file(path).open("rb") as file:
                size = file.seek(0, 2)
                yield str(size).encode()
                ends = [(0, _ENDS), (max(0, size - _ENDS), _ENDS)]
                for start, length in [
                    *ends,
                    *(_tensors(file, size) if path.suffix == ".safetensors" else ()),
                ]:
                    file.seek(start)
                    yield file.read(length)


def _tensors(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """(first byte, bytes) of two pieces of each tensor in a safetensors file; none where its header cannot be read."""
    file.seek(0)
    begin = 8 + int.from_bytes(file.read(8), "little")
    try:
        header = parse_json(file.read(begin - 8), file.name) if begin <= size else None
    except InputError:
        return
    for name, entry in sorted(header.items()) if isinstance(header, dict) else ():
        match entry:
            case {"data_offsets": [int(first), int(last)]} if name != "__metadata__" and 0 <= first < last:
                for start in (first, (first + last) // 2):
                    yield begin + start, min(_PIECE, last - start)


def _digest(parts: Iterator[bytes]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "big"))
        sha.update(part)
    return sha.hexdigest()
