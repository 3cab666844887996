"""What a run tells its user: one door, one beginning, and a logger that bears the name of the module that speaks."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest

from nextrl.say import say

SOURCE = Path(__file__).parents[1] / "src" / "nextrl"


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


@pytest.mark.parametrize(
    ("step", "line"),
    [(None, "nextrl: 2 of 3, 50%"), (7, "nextrl, step 7: 2 of 3, 50%"), (0, "nextrl, step 0: 2 of 3, 50%")],
)
def test_a_line_begins_with_who_speaks_and_of_which_step(
    caplog: pytest.LogCaptureFixture, step: int | None, line: str
) -> None:
    say(logging.getLogger("nextrl.some"), "%d of %d, %s", 2, 3, "50%", step=step)
    (record,) = caplog.records
    assert (record.getMessage(), record.levelno, record.name) == (line, logging.WARNING, "nextrl.some")
    assert record.pathname == __file__  # where it was said, not the door


def test_nothing_is_said_to_a_user_but_through_the_door() -> None:
    aside = [
        f"{path.relative_to(SOURCE)}:{call.lineno}"
        for path in SOURCE.rglob("*.py")
        if path.name != "say.py"
        for call in calls(path)
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in ("warning", "error", "critical", "exception", "warn")
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id in ("log", "logger", "logging", "warnings")
    ]
    assert aside == []


def test_a_logger_has_its_own_module_s_name() -> None:
    named = {
        ast.unparse(call.args[0])
        for path in SOURCE.rglob("*.py")
        for call in calls(path)
        if isinstance(call.func, ast.Attribute) and call.func.attr == "getLogger" and call.args
    }
    assert {name for name in named if "nextrl" in name} == set()
    assert "__name__" in named
