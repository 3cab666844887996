"""A task from a user's own Python file: `my_task.py` with `examples(split)` and `reward(completion, answer)`.

    def examples(split):                  # "train", "validation" or "test"
        return [{"prompt": "2+2=", "answer": "4"}, ...]      # or (prompt, answer) pairs
    def reward(completion, answer):       # in [0, 1]; True and False will do
        return completion.strip() == answer
    max_completion_length = 64            # tokens; 256 if left out

The file is run as any Python program is: name only files that you trust.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import math
import numbers
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

from nextrl.errors import InputError, one_line, shown
from nextrl.files import NoSuchFile, encodable, regular_file, usable_path
from nextrl.tasks.base import SPLITS, Example, Split, register_source
from nextrl.tasks.jsonl import checked
from nextrl.tasks.task_name import MAX_LENGTH

MAX_EXAMPLES = 1_000_000
"""Of a split; an `examples` that never ends would fill the memory."""


@dataclass(frozen=True)
class PythonTask:
    """`Task` whose examples and reward are a user's functions."""

    name: str
    max_completion_length: int
    score: Callable[[str, str], Any]
    splits: dict[Split, list[Example]] = field(repr=False)

    def examples(self, split: Split) -> list[Example]:
        """Examples of a split as the file's `examples(split)` gave them."""
        return list(self.splits[split])

    def reward(self, completion: str, answer: str) -> float:
        """What the file's `reward` says.

        Raises:
            InputError: it raised (the message names its line, a log has its traceback), or what it returned is no
                number in [0, 1].
        """
        path = Path(self.name).expanduser()
        with _theirs(path, "reward() failed"):
            value = self.score(completion, answer)
        with _theirs(path, "what reward() returned cannot be read as a number"):
            try:
                reward = float(value)
            except (TypeError, ValueError, OverflowError):
                reward = math.nan
        if not 0.0 <= reward <= 1.0:
            with _theirs(path, "what reward() returned cannot be shown"):  # a `repr` may call sys.exit
                told = shown(value)
            raise InputError(f"{self.name}: reward() must return a number from 0 to 1, not {told}")
        return reward


def build(name: str) -> PythonTask:
    """The task that a Python file defines.

    Raises:
        InputError: no such file, it fails when run (named by line), or it does not keep to the contract.
    """
    try:
        path = regular_file(usable_path(name))
    except NoSuchFile:
        raise InputError(f"{name}: there is no such file, so no task") from None
    status = path.stat()
    return _built(name, path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=8)
def _built(name: str, path: Path, written: int, size: int) -> PythonTask:
    """The task of a file as it is now: run once per process, so that what it shuffles is the same for all who ask."""
    module = _run(path)
    # A module may have a __getattr__ of its own.
    with _theirs(path, "cannot be asked for examples and reward"):
        asked = {name: getattr(module, name, None) for name in ("examples", "reward")}
        length = getattr(module, "max_completion_length", 256)
    for function, found in asked.items():
        if not callable(found):
            raise InputError(
                f"{path}: no function '{function}'; a task file defines examples(split) and reward(completion, answer)"
            )
    if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= MAX_LENGTH:
        with _theirs(path, "max_completion_length cannot be shown"):
            told = shown(length)
        raise InputError(
            f"{path}: max_completion_length must be a whole number from 1 to {MAX_LENGTH}, not {told}"
        )
    splits = {split: _examples(path, module, split) for split in SPLITS}
    _disjoint(path, splits)
    return PythonTask(name, length, module.reward, checked(str(path), splits))


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"nextrl_task_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    if (folder := str(path.absolute().parent)) not in sys.path:
        # For what the file imports, now or in its reward; last, so that nothing installed is hidden by a file there.
        sys.path.append(folder)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up
    with _theirs(path, "cannot be run"):
        spec.loader.exec_module(module)
    return module


def _examples(path: Path, module: ModuleType, split: Split) -> list[Example]:
    with _theirs(path, f"examples('{split}') failed"):
        rows = list(itertools.islice(iter(module.examples(split)), MAX_EXAMPLES + 1))
    if len(rows) > MAX_EXAMPLES:
        raise InputError(f"{path}: examples('{split}') gives more than {MAX_EXAMPLES:,}: give fewer")
    found = []
    for i, row in enumerate(rows):
        where = f"{path}: examples('{split}')[{i}]"
        with _theirs(path, f"examples('{split}')[{i}] cannot be read"):
            found.append(_example(where, row))
    return found


@contextlib.contextmanager
def _theirs(path: Path, what: str) -> Iterator[None]:
    """Around whatever runs a user's code: all that it raises is one line, but Ctrl-C, which is nobody's mistake.

    `sys.exit` in a reward is a mistake like any other, and so is an exception whose text cannot be made. A limit on
    recursion that it lowered is lifted again, or our own calls would meet it; one that it raised stays.

    Raises:
        InputError: the innermost line of the user's file is in it, and the log that has their traceback.
    """
    limit = sys.getrecursionlimit()
    try:
        try:
            yield
        finally:
            sys.setrecursionlimit(max(limit, sys.getrecursionlimit()))
    except (KeyboardInterrupt, InputError):
        raise
    except BaseException as error:
        # Of the file itself; one that its code raises, by `eval` of a completion, is a failure like any other.
        if isinstance(error, SyntaxError) and error.filename == str(path):
            raise InputError(f"{path}, line {error.lineno}: {error.msg}") from None
        raise _failed(path, what, error) from error


def _failed(path: Path, what: str, error: BaseException) -> InputError:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if Path(f.filename) == path]
    where = f", line {lines[-1]}" if lines else ""
    # The traceback module's own way of making the text survives an exception whose `__str__` raises.
    said = "".join(traceback.format_exception_only(error))
    return InputError(f"{path}{where}: {what}: {one_line(said)}{_logged(frames, said)}")


def _logged(frames: traceback.StackSummary, said: str) -> str:
    """Keep the traceback in a file of the system's temporary folder; a clause that names it, or nothing."""
    text = "".join(["Traceback (most recent call last):\n", *frames.format(), said])
    try:
        handle, name = tempfile.mkstemp(prefix="nextrl-", suffix=".log")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return ""
    return f" (their traceback: {name})"


def _example(where: str, row: Any) -> Example:
    if isinstance(row, Example):
        return row
    if isinstance(row, dict) and {"prompt", "answer"} <= row.keys():
        row = (row["prompt"], row["answer"])
    if not isinstance(row, tuple | list) or len(row) != 2:
        raise InputError(
            f"{where} must be a dict with prompt and answer, or a pair of them, not {shown(row)}"
        )
    if not isinstance(row[0], str) or not row[0]:
        raise InputError(f"{where}: the prompt must be text that is not empty, not {shown(row[0])}")
    if not isinstance(row[1], str | numbers.Real | Decimal):
        raise InputError(
            f"{where}: the answer must be text or a number, not {shown(row[1])}: write it as text (json.dumps), and "
            "read it in reward()"
        )
    answer = str(row[1])
    if not encodable(row[0]) or not encodable(answer):
        raise InputError(f"{where}: holds half a surrogate pair, which is no text")
    return Example(row[0], answer)


def _disjoint(path: Path, splits: dict[Split, list[Example]]) -> None:
    home: dict[str, Split] = {}
    for split, examples in splits.items():
        for example in examples:
            if home.setdefault(example.prompt, split) != split:
                raise InputError(
                    f"{path}: the prompt {example.prompt!r:.60} is in both {home[example.prompt]} and {split}; "
                    "the three splits must share none"
                )


register_source("FILE.py", lambda name: name.endswith(".py"), build, program=True)
