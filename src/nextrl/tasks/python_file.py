"""A task from a user's own Python file: `my_task.py` with `examples(split)` and `reward(completion, answer)`.

    def examples(split):                  # "train", "validation" or "test"
        return [{"prompt": "2+2=", "answer": "4"}, ...]      # or (prompt, answer) pairs
    def reward(completion, answer):       # in [0, 1]; True and False will do
        return completion.strip() == answer
    max_completion_length = 64            # tokens; 256 if left out

The file is run as any Python program is: name only files that you trust.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from nextrl.errors import InputError
from nextrl.tasks.base import Example, Split, register_source
from nextrl.tasks.jsonl import SPLITS, checked


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
            InputError: that is no number in [0, 1]. What the function itself raises goes through: its
                traceback names the line in the user's file.
        """
        value = self.score(completion, answer)
        try:
            reward = float(value)
        except (TypeError, ValueError):
            reward = math.nan
        if not 0.0 <= reward <= 1.0:
            raise InputError(f"{self.name}: reward() must return a number from 0 to 1, not {value!r}")
        return reward


def build(name: str) -> PythonTask:
    """The task that a Python file defines.

    Raises:
        InputError: no such file, it fails when run (named by line), or it does not keep to the contract.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"{path}: there is no such file, so no task")
    module = _run(path)
    for function in ("examples", "reward"):
        if not callable(getattr(module, function, None)):
            raise InputError(
                f"{path}: no function '{function}'; a task file defines examples(split) and reward(completion, answer)"
            )
    length = getattr(module, "max_completion_length", 256)
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise InputError(
            f"{path}: max_completion_length must be a whole number of at least 1, not {length!r}"
        )
    splits = {split: _examples(path, module, split) for split in SPLITS}
    _disjoint(path, splits)
    return PythonTask(name, length, module.reward, checked(str(path), splits))


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"nextrl_task_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: {error.msg}") from None
    except Exception as error:
        raise _failed(path, "cannot be run", error) from error
    return module


def _examples(path: Path, module: ModuleType, split: Split) -> list[Example]:
    try:
        rows = list(module.examples(split))
    except Exception as error:
        raise _failed(path, f"examples('{split}') failed", error) from error
    return [_example(f"{path}: examples('{split}')[{i}]", row) for i, row in enumerate(rows)]


def _failed(path: Path, what: str, error: Exception) -> InputError:
    """One line with the innermost line of the user's file in it; the full traceback stays chained to it."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
    where = f", line {lines[-1]}" if lines else ""
    return InputError(f"{path}{where}: {what}: {type(error).__name__}: {error}")


def _example(where: str, row: Any) -> Example:
    if isinstance(row, Example):
        return row
    if isinstance(row, dict) and {"prompt", "answer"} <= row.keys():
        row = (row["prompt"], row["answer"])
    if not isinstance(row, tuple | list) or len(row) != 2:
        raise InputError(f"{where} must be a dict with prompt and answer, or a pair of them, not {row!r:.80}")
    if not isinstance(row[0], str) or not row[0]:
        raise InputError(f"{where}: the prompt must be text that is not empty, not {row[0]!r:.80}")
    return Example(row[0], str(row[1]))


def _disjoint(path: Path, splits: dict[Split, list[Example]]) -> None:
    home: dict[str, Split] = {}
    for split, examples in splits.items():
        for example in examples:
            if home.setdefault(example.prompt, split) != split:
                raise InputError(
                    f"{path}: the prompt {example.prompt!r:.60} is in both {home[example.prompt]} and {split}; "
                    "the three splits must share none"
                )


register_source("FILE.py", lambda name: name.endswith(".py"), build)
