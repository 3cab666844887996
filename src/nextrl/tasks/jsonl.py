"""A task from a `.jsonl` file: one object per line with `prompt` and `answer`, graded by a named verifier.

Named `data.jsonl` (verifier `exact`), `data.jsonl:math`, or with options `data.jsonl:number?tokens=64`. A
line may say its `split`; the others are split by the hash of the prompt. Further keys are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextrl.errors import InputError, shown
from nextrl.files import is_number, parse_json, read_bytes, usable_path
from nextrl.tasks import verifiers
from nextrl.tasks.base import SPLITS, Example, Split, register_source, split_of
from nextrl.tasks.task_name import MAX_LENGTH, parse

_NAME = re.compile(r"(?P<file>.*\.jsonl)(?::(?P<verifier>[^:]*))?")
MAX_BYTES = 2**28


@dataclass(frozen=True)
class JsonlTask:
    """`Task` of a file's prompts; reward 1 where the verifier says right, else 0."""

    name: str
    max_completion_length: int
    verifier: verifiers.Verifier
    splits: dict[Split, list[Example]] = field(repr=False)

    def examples(self, split: Split) -> list[Example]:
        """Examples of a split in the file's order, each prompt once."""
        return list(self.splits[split])

    def reward(self, completion: str, answer: str) -> float:
        """1.0 or 0.0, as the verifier says."""
        return float(self.verifier(completion, answer))


def build(name: str) -> JsonlTask:
    """The task of a name like `data.jsonl:math?tokens=64`.

    Raises:
        InputError: no such file or verifier, a line that cannot be used (the message has its number), or a split that
            would be empty.
    """
    parts = parse(name)
    parts.only("tokens")
    match = _NAME.fullmatch(parts.source)
    if match is None:
        raise InputError(f"task '{name}' is no FILE.jsonl:VERIFIER")
    verifier = verifiers.get(match["verifier"] if match["verifier"] is not None else "exact")
    path = usable_path(match["file"])
    return JsonlTask(name, parts.integer("tokens", 256, 1, MAX_LENGTH), verifier, _splits(path))


def _splits(path: Path) -> dict[Split, list[Example]]:
    splits: dict[Split, list[Example]] = {split: [] for split in SPLITS}
    seen: dict[str, tuple[int, str, Split]] = {}
    for line, row in _rows(path):
        example, split = _example(path, line, row)
        before = seen.get(example.prompt)
        if before is None:
            splits[split].append(example)
            seen[example.prompt] = (line, example.answer, split)
        elif before[1:] != (example.answer, split):
            raise InputError(
                f"{path}, line {line}: the prompt of line {before[0]} again, with another answer or split; keep one"
            )
    return checked(str(path), splits)


def checked(source: str, splits: dict[Split, list[Example]]) -> dict[Split, list[Example]]:
    """The splits, if each has the 2 examples that a comparison needs at least.

    Raises:
        InputError: one has not.
    """
    for split, examples in splits.items():
        if len(examples) < 2:
            count = ", ".join(f"{len(v)} {k}" for k, v in splits.items())
            raise InputError(
                f"{source}: too few examples for the {split} split ({count}): give more (a tenth each goes to "
                "validation and test, by a hash of the prompt), or name each one's split"
            )
    return splits


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every line that is not blank."""
    found = False
    for line, raw in enumerate(read_bytes(path, MAX_BYTES).splitlines(), 1):
        if not raw.strip():
            continue
        found = True
        row = parse_json(raw, f"{path}, line {line}")
        if not isinstance(row, dict):
            raise InputError(f'{path}, line {line}: not an object; write {{"prompt": ..., "answer": ...}}')
        yield line, row
    if not found:
        raise InputError(f"{path} is empty: write one object with prompt and answer per line")


def _example(path: Path, line: int, row: dict[str, Any]) -> tuple[Example, Split]:
    for key in ("prompt", "answer"):
        if key not in row:
            raise InputError(f"{path}, line {line}: no '{key}' (it has {', '.join(row) or 'no keys'})")
    prompt, answer = row["prompt"], row["answer"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"{path}, line {line}: 'prompt' must be text that is not empty")
    if (
        isinstance(answer, bool)
        or not (isinstance(answer, str) or is_number(answer))
        or not str(answer).strip()
    ):
        raise InputError(f"{path}, line {line}: 'answer' must be text that is not empty, or a number")
    split = row.get("split", split_of(prompt))
    if split not in SPLITS:
        raise InputError(
            f"{path}, line {line}: 'split' must be one of {', '.join(SPLITS)}, not {shown(split)}"
        )
    return Example(prompt, str(answer)), split


def is_jsonl(name: str) -> bool:
    """Whether a task's name is a file of this kind."""
    return _NAME.fullmatch(name.partition("?")[0]) is not None


register_source("FILE.jsonl:VERIFIER", is_jsonl, build)
