"""What tests of runs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nextrl.tasks import base
from nextrl.tasks.chain import ChainTask


@pytest.fixture
def few_chain_prompts(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Gives the task `chain` so many training prompts, and few of any other split."""

    def few(training: int) -> None:
        class FewPrompts(ChainTask):
            def examples(self, split: Any) -> Any:
                return super().examples(split)[: training if split == "train" else 40]

        monkeypatch.setitem(base._TASKS._entries, "chain", FewPrompts)

    return few
