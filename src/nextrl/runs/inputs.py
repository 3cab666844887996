"""What a run is made of beside its config, so that a resume notices that it has become something else.

A config names a task and a model; both are files that somebody may edit, or a program that makes other examples each
time it is run. Digests of them lie in the run's folder.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nextrl.checkpoints.atomic import write_json
from nextrl.errors import InputError, one_line
from nextrl.files import parse_json, read_json, regular_file
from nextrl.runs import source_code
from nextrl.runs.layout import INPUTS
from nextrl.tasks import base
from nextrl.tasks.base import SPLITS, Task

_ENDS = 2**20  # bytes at either end of a file: a 7B has too many to be read at each start
# Bytes at the start and in the middle of each tensor: a merge changes some tensors and no file's size.
_PIECE = 2**12
_SHA256 = re.compile("[0-9a-f]{64}")
_MODEL_FILES = (
    "*.safetensors",
    "config.json",
    "generation_config.json",
    # What a tokenizer may be kept in, fast or slow, and what it makes of a chat.
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken", "tekken.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)
_EXAMPLES = "the task's examples"
HOW_TO_REPEAT = (
    "seed what shuffles them; where the order of a set is in them, export PYTHONHASHSEED=0 before each start"
)
_ANOTHER_PROCESS = """\
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from nextrl.runs import inputs
from nextrl.tasks import base
print(inputs.FOUND, inputs.examples(base.get(sys.argv[1])))
"""
FOUND = "nextrl found the examples"
"""Before the digest in what another process prints, since the program may print as well."""


def examples(task: Task) -> str:
    """SHA-256 of a task's examples, all splits in their order."""
    return _digest(_rows(task))


def check_repeatable(task_name: str, now: dict[str, str]) -> None:
    """See that a program makes the same examples in another process: a resume and another arm are such.

    A process of its own has its own hash seed and its own random state, unless the environment or the program sets
    them. Tasks that no program makes are let be.

    Args:
        task_name: of a task that could be read in this process.
        now: its `digests` here.

    Raises:
        InputError: they are others there, or cannot be made there.
    """
    if not base.from_program(task_name):
        return
    # -P: what lies in the working directory must not take the place of a module of Python's own.
    command = [sys.executable, "-P", "-c", _ANOTHER_PROCESS, task_name, json.dumps(sys.path)]
    there = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if there.returncode:
        last = (there.stderr.strip().splitlines() or [f"exit code {there.returncode}"])[-1]
        why = one_line(last.removeprefix("nextrl.errors.InputError: "))
        raise InputError(f"task {task_name}: its examples could not be made a second time: {why}")
    if f"{FOUND} {now[_EXAMPLES]}" not in there.stdout.splitlines():
        raise InputError(
            f"task {task_name}: its examples are others in each process, so that no run could be gone on with or "
            f"compared: {HOW_TO_REPEAT}"
        )


def digests(task: Task, task_name: str, model_name: str) -> dict[str, str]:
    """Name of a part -> its SHA-256: the task's examples, its code, and the model's files, where these are local.

    Raises:
        InputError: a file of these cannot be read.
    """
    found = {_EXAMPLES: examples(task)}
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
            again = f" (examples have to be the same each time: {HOW_TO_REPEAT})" if part == _EXAMPLES else ""
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
    for split in SPLITS:
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
