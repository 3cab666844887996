"""`--base tiny` is the model that `nextrl eval tiny` loads, wherever a folder is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextrl.errors import InputError
from nextrl.leaps.merged_model import find_base
from nextrl.tasks.bases import folder, tiny


def test_a_shipped_model_is_found_by_its_name(tmp_path: Path) -> None:
    assert find_base("tiny") == tiny.shipped("chain")
    assert find_base("tiny:chain-wrong-rule") == tiny.shipped("chain-wrong-rule")
    assert find_base(tmp_path) == tmp_path
    assert folder(str(tmp_path)) is None


def test_a_task_without_a_base_is_named() -> None:
    with pytest.raises(InputError, match="no tiny base is shipped for task 'short-sums'"):
        find_base("tiny:short-sums")
