"""Verifiable tasks: one file per task or family of tasks, each registered under its name (docs/tasks.md)."""

from nextrl.tasks import chain as _chain  # noqa: F401  (registers itself, as do those below)
from nextrl.tasks import gym as _gym  # noqa: F401
from nextrl.tasks import jsonl as _jsonl  # noqa: F401
from nextrl.tasks import python_file as _python_file  # noqa: F401
from nextrl.tasks import short_sums as _short_sums  # noqa: F401
from nextrl.tasks.base import Example, Split, Task, get, names, register, register_source, split_of

__all__ = ["Example", "Split", "Task", "get", "names", "register", "register_source", "split_of"]
