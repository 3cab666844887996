"""A user's own task file: the contract, and what breaking it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextrl import tasks
from nextrl.errors import InputError

GOOD = """
from dataclasses import dataclass

@dataclass
class Row:
    value: int

START = {"train": 0, "validation": 100, "test": 200}
max_completion_length = 7

def examples(split):
    rows = [Row(START[split] + i) for i in range(5)]
    return [{"prompt": f"{r.value}=", "answer": r.value} if r.value % 2 else (f"{r.value}=", r.value) for r in rows]

def reward(completion, answer):
    return completion.strip() == answer
"""


def _task(tmp_path: Path, text: str) -> str:
    path = tmp_path / "my_task.py"
    path.write_text(text)
    return str(path)


def test_a_file_is_a_task(tmp_path: Path) -> None:
    task = tasks.get(_task(tmp_path, GOOD))
    assert task.max_completion_length == 7
    assert [(e.prompt, e.answer) for e in task.examples("validation")][:2] == [
        ("100=", "100"),
        ("101=", "101"),
    ]
    assert (task.reward("100", "100"), task.reward("1", "100")) == (1.0, 0.0)
    assert isinstance(task, tasks.Task)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def reward", "def rewards", r"my_task\.py: no function 'reward'"),
        ("def examples", "def example", r"my_task\.py: no function 'examples'"),
        ("@dataclass\n", "@dataclass(\n", r"my_task\.py, line \d+: "),
        (
            "START = {",
            "START = missing or {",
            r"my_task\.py, line 8: cannot be run: NameError: name 'missing'",
        ),
        ('"test": 200', '"text": 200', r"my_task\.py, line 12: examples\('test'\) failed: KeyError: 'test'"),
        ('"test": 200', '"test": 100', r"the prompt '100=' is in both validation and test"),
        ("range(5)", "range(1)", "too few examples for the train split"),
        (
            '"answer": r.value',
            '"reply": r.value',
            r"examples\('train'\)\[1\] must be a dict with prompt and answer",
        ),
        ('(f"{r.value}=", r.value)', "(r.value, 1)", r"examples\('train'\)\[0\]: the prompt must be text"),
        (
            "max_completion_length = 7",
            "max_completion_length = '7'",
            "max_completion_length must be a whole number",
        ),
    ],
)
def test_a_broken_contract_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError, match=message) as error:
        tasks.get(_task(tmp_path, GOOD.replace(old, new)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["2.0", "-0.1", "None", "'yes'", "float('nan')"])
def test_a_reward_is_a_number_from_0_to_1(tmp_path: Path, value: str) -> None:
    task = tasks.get(_task(tmp_path, GOOD.replace("completion.strip() == answer", value)))
    with pytest.raises(InputError, match=r"reward\(\) must return a number from 0 to 1"):
        task.reward("1", "1")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        tasks.get(str(tmp_path / "none.py"))
