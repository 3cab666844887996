"""What docs/tasks.md shows is a task."""

from __future__ import annotations

import re
from pathlib import Path

from nextrl import tasks

DOCS = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()


def test_the_python_example_is_a_task(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", DOCS, re.DOTALL)
    assert code is not None
    (tmp_path / "my_task.py").write_text(code[1])
    task = tasks.get(str(tmp_path / "my_task.py"))
    assert task.max_completion_length == 8
    assert task.reward("901", task.examples("test")[0].answer) == 1.0


def test_the_tables_name_every_registered_task_and_verifier() -> None:
    from nextrl.tasks.verifiers import VERIFIERS

    missing = [name for name in (*tasks.names(), *VERIFIERS) if f"`{name}`" not in DOCS]
    assert not missing, f"add a row for {', '.join(missing)} to docs/tasks.md"
