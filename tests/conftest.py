"""Puts `tests/` on the path (for `lora_runs`), keeps torch on one thread, as many tests run side by side, and takes
back what a test registers."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from nextrl.registry import Registry

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def registered_for_one_test_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the methods, tasks and algorithms that a test has added, or the next test in its process sees them.

    What the package itself registers stays: a test may be the first to import the module that does so.
    """
    touched: list[Registry[Any]] = []
    really_add = Registry.add

    def add(self: Registry[Any], name: str, value: Any) -> None:
        touched.append(self)
        really_add(self, name, value)

    monkeypatch.setattr(Registry, "add", add)
    yield
    for registry in touched:
        registry._entries = {name: value for name, value in registry._entries.items() if _is_ours(value)}


def _is_ours(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).startswith("nextrl.")
