"""A user's own task file: the contract, and what breaking it is told."""

from __future__ import annotations

import sys
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


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('no')", r"line 16: reward\(\) failed: ValueError: no"),
        ("import sys; sys.exit(0)", r"line 16: reward\(\) failed: SystemExit: 0"),
        ("raise BaseException", r"line 16: reward\(\) failed: BaseException"),
        (
            "raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})",
            r"line 16: reward\(\) failed: .*Odd",
        ),
        (
            "return type('Odd', (), {'__repr__': lambda self: 1 / 0})()",
            r"number from 0 to 1, not <Odd instance",
        ),
        (
            "return type('Odd', (), {'__float__': lambda self: exit(3)})()",
            r"cannot be read as a number: SystemExit",
        ),
        ("return 10**5000", "number from 0 to 1, not a number of about 5000 digits"),
        ("return [1.0]", r"number from 0 to 1, not \[1\.0\]"),
        ("raise OSError(28, 'No space left')", r"reward\(\) failed: OSError"),
    ],
)
def test_what_a_user_s_code_raises_is_one_line_with_its_place(
    tmp_path: Path, body: str, message: str
) -> None:
    task = tasks.get(_task(tmp_path, GOOD.replace("return completion.strip() == answer", body)))
    with pytest.raises(InputError, match=message) as error:
        task.reward("1", "1")
    assert "\n" not in str(error.value)
    if "their traceback: " in str(error.value):
        log = Path(str(error.value).rpartition("their traceback: ")[2].rstrip(")"))
        assert "in reward" in log.read_text()
        log.unlink()


LOWERS_THE_LIMIT = """import sys
    for limit in range(9, 900):
        try:
            sys.setrecursionlimit(limit)
            break
        except RecursionError:
            continue
    sys.setrecursionlimit(limit + 9)
    return"""


def test_a_syntax_error_of_a_completion_is_the_reward_s_and_not_the_file_s(tmp_path: Path) -> None:
    task = tasks.get(_task(tmp_path, GOOD.replace("completion.strip()", "eval(completion)")))
    with pytest.raises(InputError, match=r"line 16: reward\(\) failed: .*SyntaxError.*their traceback"):
        task.reward("3 +", "3")


def test_a_limit_on_recursion_that_a_reward_lowers_is_lifted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = sys.getrecursionlimit()
    text = GOOD.replace("return completion", LOWERS_THE_LIMIT + " answer == '1' or 1 / 0 or completion")
    task = tasks.get(_task(tmp_path, text))
    try:
        assert task.reward("1", "1") == 1.0
        assert sys.getrecursionlimit() == before
        with pytest.raises(InputError, match=r"my_task\.py, line \d+: reward\(\) failed: ZeroDivisionError"):
            task.reward("1", "2")
        assert sys.getrecursionlimit() == before
    finally:
        sys.setrecursionlimit(before)


def test_ctrl_c_in_a_reward_is_ctrl_c(tmp_path: Path) -> None:
    task = tasks.get(
        _task(tmp_path, GOOD.replace("return completion.strip() == answer", "raise KeyboardInterrupt"))
    )
    with pytest.raises(KeyboardInterrupt):
        task.reward("1", "1")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    while True:\n        yield ('a', 'b')", "gives more than 1,000: give fewer"),
        ("    exit()", r"examples\('train'\) failed: SystemExit"),
        ("    return None", r"examples\('train'\) failed: TypeError"),
        ("    return [('\\ud800', 'b')] * 3", "half a surrogate pair"),
        (
            "    return [('a', type('Odd', (str,), {'__str__': lambda self: 1 / 0})())]",
            r"\[0\] cannot be read: ZeroDivisionError",
        ),
    ],
)
def test_examples_that_never_end_or_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    monkeypatch.setattr("nextrl.tasks.python_file.MAX_EXAMPLES", 1000)
    text = f"def examples(split):\n{body}\ndef reward(completion, answer): return 1\n"
    with pytest.raises(InputError, match=message):
        tasks.get(_task(tmp_path, text))


def test_a_module_that_answers_for_its_own_names_is_heard_out(tmp_path: Path) -> None:
    text = "def __getattr__(name):\n    raise RuntimeError(name)\n"
    with pytest.raises(
        InputError, match="line 2: cannot be asked for examples and reward: RuntimeError: examples"
    ):
        tasks.get(_task(tmp_path, text))


def test_a_file_that_shuffles_without_a_seed_is_one_task_for_all_who_ask(tmp_path: Path) -> None:
    """Run anew for each of them, what one trained on the next one measured accuracy on."""
    shuffled = "import random\nROWS = list(range(300))\nrandom.shuffle(ROWS)\n" + GOOD.replace(
        "START[split] + i", "ROWS[START[split] + i]"
    )
    name = _task(tmp_path, shuffled)
    first, second = tasks.get(name), tasks.get(name)
    assert first.examples("test") == second.examples("test")
    Path(name).write_text(shuffled.replace("max_completion_length = 7", "max_completion_length = 17"))
    assert tasks.get(name).max_completion_length == 17


@pytest.mark.parametrize("answer", ["['0', '0']", "None", "{'a': 1}"])
def test_an_answer_that_is_no_text_is_refused(tmp_path: Path, answer: str) -> None:
    """Turned into text it would grade whatever is a part of that text."""
    text = GOOD.replace('"answer": r.value', f'"answer": {answer}')
    with pytest.raises(InputError, match="the answer must be text or a number"):
        tasks.get(_task(tmp_path, text))


def test_a_file_imports_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "helper_of_a_task.py").write_text("def right(a, b):\n    return a.strip() == b\n")
    body = "    from helper_of_a_task import right\n    return right(completion, answer)"
    task = tasks.get(_task(tmp_path, GOOD.replace("    return completion.strip() == answer", body)))
    assert task.reward(" 1", "1") == 1.0
