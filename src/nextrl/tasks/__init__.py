"""Verifiable tasks: one file a task, each registered under its name."""

from nextrl.tasks import chain as _chain  # noqa: F401  (registers itself)
from nextrl.tasks.base import Example, Split, Task, get, names, register, split_of

__all__ = ["Example", "Split", "Task", "get", "names", "register", "split_of"]
