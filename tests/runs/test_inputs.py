"""What a run is made of: what its digests notice, and what they let be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nextrl.errors import InputError
from nextrl.runs import inputs
from nextrl.tasks import base

TASK = """\
'''Sums.'''
from helper import right
def examples(split):
    return [{"prompt": f"{split}{i}=", "answer": str(i)} for i in range(8)]
def reward(completion, answer):
    "Whether it is right."
    from kit.score import score
    return score(right(completion, answer))
"""


def write_task(folder: Path) -> Path:
    (folder / "kit").mkdir()
    (folder / "kit" / "__init__.py").write_text("")
    (folder / "kit" / "score.py").write_text("def score(right): return float(right)\n")
    (folder / "helper.py").write_text("def right(c, a): return c.strip() == a\n")
    path = folder / "task.py"
    path.write_text(TASK)
    return path


def edit(name: str, before: str, after: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / name
        assert before in path.read_text()
        path.write_bytes(path.read_text().replace(before, after).encode())

    return change


@pytest.mark.parametrize(
    ("change", "noticed"),
    [
        (edit("task.py", "def reward", "# a comment\n\ndef reward"), False),
        (edit("task.py", "\n", "\r\n"), False),
        (edit("task.py", "Whether it is right.", "True where it is."), False),
        (edit("task.py", "Sums.", "Short sums."), False),
        (edit("helper.py", "return", "return  "), False),
        (edit("task.py", "score(right(", "score(not right("), True),
        (edit("helper.py", "c.strip() == a", "True"), True),
        (edit("kit/score.py", "float(right)", "1.0"), True),
    ],
)
def test_the_code_of_a_task_is_its_own_and_that_of_what_lies_beside_it(
    tmp_path: Path, change: Callable[[Path], object], noticed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(write_task(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    before = inputs.digests(base.get(name), name, "tiny")
    change(tmp_path)
    after = inputs.digests(base.get(name), name, "tiny")
    assert [part for part in before if before[part] != after[part]] == ["the task's code"] * noticed


def test_of_a_jsonl_file_only_the_examples_count(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    found = []
    for more in ({}, {"note": "ignored"}):
        rows = [{"prompt": f"p{i}", "answer": str(i), **more} for i in range(300)]
        path.write_text("\n".join(map(json.dumps, rows)))
        found.append(inputs.digests(base.get(str(path)), str(path), "tiny"))
    assert found[0] == found[1]
    assert list(found[0]) == ["the task's examples"]


@pytest.mark.parametrize("layer", range(4))
def test_an_adapter_merged_into_a_layer_in_the_middle_is_noticed(tmp_path: Path, layer: int) -> None:
    (tmp_path / "config.json").write_text("{}")
    weights = {f"model.layers.{i}.q_proj.weight": torch.randn(600, 600) for i in range(4)}
    weights |= {name: torch.randn(600, 600) for name in ("model.embed_tokens.weight", "model.norm.weight")}
    task, found = base.get("chain"), []
    for _ in range(2):
        save_file(weights, tmp_path / "model.safetensors")
        found.append(inputs.digests(task, "chain", str(tmp_path)))
        weights[f"model.layers.{layer}.q_proj.weight"] += 1
    assert found[0] != found[1]


@pytest.mark.parametrize(
    "name",
    [
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
        "vocab.json",
        "merges.txt",
        "spiece.model",
        "added_tokens.json",
        "generation_config.json",
    ],
)
def test_files_that_decide_what_the_model_reads_are_noticed(tmp_path: Path, name: str) -> None:
    path, found = tmp_path / name, []
    path.parent.mkdir(exist_ok=True)
    for text in ("one", "two"):
        path.write_text(text)
        found.append(inputs.digests(base.get("chain"), "chain", str(tmp_path)))
    assert found[0] != found[1]


def test_what_the_model_does_not_read_is_let_be(tmp_path: Path) -> None:
    found = []
    for text in ("one", "two"):
        (tmp_path / "README.md").write_text(text)
        found.append(inputs.digests(base.get("chain"), "chain", str(tmp_path)))
    assert found[0] == found[1]


def test_a_damaged_header_is_the_loader_s_to_name(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((10**15).to_bytes(8, "little") + b"{")
    assert inputs.digests(base.get("chain"), "chain", str(tmp_path))


NAMES = 'import random\nwords = [f"word {i}" for i in range(50)]\n'


@pytest.mark.parametrize(
    ("order", "refused"),
    [
        ("words", None),
        ("sorted(set(words))", None),
        ("random.Random(0).sample(words, 50)", None),
        ("list(set(words))", "export PYTHONHASHSEED=0"),
        ("random.sample(words, 50)", "seed what shuffles them"),
    ],
)
def test_examples_that_another_process_would_not_make_are_refused_at_the_start(
    order: str, refused: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    made = f'def examples(split): print("read"); return [(f"{{split}} {{word}}", word) for word in {order}]\n'
    path = tmp_path / "task.py"
    path.write_text(NAMES + made + "def reward(completion, answer): return 1.0\n")
    now = inputs.digests(base.get(str(path)), str(path), "tiny")
    if refused is None:
        inputs.check_repeatable(str(path), now)
    else:
        with pytest.raises(InputError, match=f"others in each process.*{refused}"):
            inputs.check_repeatable(str(path), now)


def test_a_program_that_makes_no_examples_twice_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "task.py"
    once = 'import os, pathlib\np = pathlib.Path(__file__).with_name("made")\nif p.exists(): raise OSError("made")\n'
    path.write_text(
        f'{once}p.touch()\ndef examples(split): return [(split + x, x) for x in "ab"]\ndef reward(c, a): return 1.0\n'
    )
    now = inputs.digests(base.get(str(path)), str(path), "tiny")
    with pytest.raises(
        InputError, match=r"could not be made a second time: /.*task.py, line 3: .*OSError: made"
    ):
        inputs.check_repeatable(str(path), now)


def test_where_a_program_is_run_again_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may print as it ends, import what only its caller can find, and lie beside files named as Python's modules."""
    for name in ("here", "kit"):
        (tmp_path / name).mkdir()
    (tmp_path / "kit" / "only_the_caller_finds_this.py").write_text("WORDS = [str(i) for i in range(9)]\n")
    (tmp_path / "here" / "random.py").write_text("raise SystemExit('shadowed')\n")
    path = tmp_path / "task.py"
    path.write_text(
        "import atexit\nfrom only_the_caller_finds_this import WORDS\natexit.register(print, 'done')\n"
        "def examples(split): return [(split + w, w) for w in WORDS]\ndef reward(c, a): return 1.0\n"
    )
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(tmp_path / "kit"))
    inputs.check_repeatable(str(path), inputs.digests(base.get(str(path)), str(path), "tiny"))


def test_tasks_that_no_program_makes_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere")
    for name in ("chain", "data.jsonl:math"):
        inputs.check_repeatable(name, {})
