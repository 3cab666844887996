"""Tasks from a file of prompts: what is read, and what each bad line is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextrl import tasks
from nextrl.errors import InputError

GOOD = [json.dumps({"prompt": f"{i}+1=", "answer": i + 1, "source": "x"}) for i in range(200)]


def _write(tmp_path: Path, *lines: str | bytes) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return path


def test_a_file_is_a_task(tmp_path: Path) -> None:
    task = tasks.get(f"{_write(tmp_path, *GOOD)}:number?tokens=9")
    assert task.max_completion_length == 9
    by_split = {s: {e.prompt for e in task.examples(s)} for s in ("train", "validation", "test")}
    assert sum(map(len, by_split.values())) == len(set.union(*by_split.values())) == 200
    assert all(tasks.split_of(p) == s for s, prompts in by_split.items() for p in prompts)
    example = task.examples("test")[0]
    assert task.reward(f"it is {example.answer}", example.answer) == 1.0
    assert task.reward("none", example.answer) == 0.0


def test_the_verifier_is_exact_where_none_is_named(tmp_path: Path) -> None:
    task = tasks.get(str(_write(tmp_path, *GOOD)))
    assert (task.reward("5", "5"), task.reward("it is 5", "5")) == (1.0, 0.0)
    assert task.max_completion_length == 256


def test_a_line_may_name_its_split(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{i}", "answer": "a", "split": s}
        for i, s in enumerate(["train", "validation", "test"] * 2)
    ]
    task = tasks.get(str(_write(tmp_path, "", *map(json.dumps, rows), "")))
    assert [e.prompt for e in task.examples("validation")] == ["1", "4"]


def test_a_repeated_line_counts_once(tmp_path: Path) -> None:
    task = tasks.get(str(_write(tmp_path, *GOOD, GOOD[3])))
    assert sum(len(task.examples(s)) for s in ("train", "validation", "test")) == 200


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: not readable as JSON"),
        ("[" * 100_000, r"line 2: not readable as JSON"),
        (b"\xff\xfe", r"line 2: not UTF-8"),
        ("[1, 2]", r"line 2: not an object"),
        ('{"prompt": "x"}', r"line 2: no 'answer' \(it has prompt\)"),
        ('{"question": "x", "answer": "y"}', r"line 2: no 'prompt' \(it has question, answer\)"),
        ('{"prompt": "", "answer": "y"}', r"line 2: 'prompt' must be text"),
        ('{"prompt": ["x"], "answer": "y"}', r"line 2: 'prompt' must be text"),
        ('{"prompt": "x", "answer": null}', r"line 2: 'answer' must be text"),
        ('{"prompt": "x", "answer": true}', r"line 2: 'answer' must be text"),
        (
            '{"prompt": "x", "answer": "y", "split": "dev"}',
            r"line 2: 'split' must be one of train, .*not 'dev'",
        ),
        ('{"prompt": "0+1=", "answer": "2"}', r"line 2: the prompt of line 1 again"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=r"data\.jsonl, " + message) as error:
        tasks.get(str(_write(tmp_path, GOOD[0], line, *GOOD[1:])))
    assert "\n" not in str(error.value)


def test_a_file_that_is_empty_small_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty"):
        tasks.get(str(_write(tmp_path, "", "  ")))
    with pytest.raises(InputError, match="too few examples for the"):
        tasks.get(str(_write(tmp_path, *GOOD[:3])))
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        tasks.get(str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        (":maths", "unknown verifier 'maths'; did you mean math\\? known: exact"),
        (":", "unknown verifier ''"),
        ("?token=4", "option 'token' is unknown; did you mean tokens"),
        ("?tokens=0", "tokens must be a whole number of at least 1"),
        ("?tokens=many", "tokens must be a whole number"),
        ("?tokens", "'tokens' is not an option; write key=value"),
        ("?tokens=4&tokens=5", "'tokens' is given twice"),
    ],
)
def test_a_bad_name_is_told_what_is_wrong(tmp_path: Path, ending: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tasks.get(f"{_write(tmp_path, *GOOD)}{ending}")


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, *GOOD, '{"prompt": "x", "answer": 1, "answer": 2}')
    with pytest.raises(InputError, match=r"line 201: .*key 'answer' is there twice"):
        tasks.get(str(path))


@pytest.mark.parametrize("tokens", ["0", "1000001", "100000000", "1e3", "true"])
def test_a_number_of_tokens_has_bounds(tmp_path: Path, tokens: str) -> None:
    with pytest.raises(InputError, match="of at least 1 and at most 1000000, not"):
        tasks.get(f"{_write(tmp_path, *GOOD)}:number?tokens={tokens}")
