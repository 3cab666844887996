"""More than two thousand hostile inputs at the doors themselves: a number, a refusal of one line, and nothing else.

Each door runs its cases in one forked process with a bound on memory; each case has one on time. A case is made again
from its number: `DOORS[name](random.Random(f"{hostile.SEED} {name} {number}"), folder)`.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import hostile_inputs as hostile
from nextrl.checkpoints import open_run
from nextrl.checkpoints.dense import FullModel
from nextrl.checkpoints.layouts import folders
from nextrl.checkpoints.tensorfile import TensorFile
from nextrl.cli.inspect import describe
from nextrl.errors import InputError
from nextrl.files import read_json, read_text, usable_path
from nextrl.leaps.adapter_file import write_adapter
from nextrl.runs.config import RunConfig
from nextrl.runs.config_file import load
from nextrl.runs.report import render
from nextrl.runs.result import read_result
from nextrl.tasks import base
from nextrl.trajectory import trainer_log
from nextrl.trajectory.trajectory import Trajectory
from synthetic_result import synthetic_result

Case = Callable[[random.Random, Path, Path], tuple[str, Callable[[], object]]]


def a_run(draw: random.Random, place: Path, template: Path) -> tuple[str, Callable[[], object]]:
    """The reader, down to the values, and what a trainer left beside them."""
    run = hostile.fresh(template, place / "run")
    told = hostile.spoil_run(run, draw)

    def read() -> None:
        describe(open_run(run))
        traj = Trajectory.load(run, skip_bad_checkpoints=draw.random() < 0.5)
        for module in traj.modules:
            traj.scaling(module)
            traj.weight(traj.steps[-1], module)
        trainer_log.rewards(traj)
        beta1 = trainer_log.adam_beta1(traj)
        assert beta1 is None or 0 <= beta1 < 1

    return told, read


def a_list(draw: random.Random, place: Path, template: Path) -> tuple[str, Callable[[], object]]:
    """A JSON file of steps and folders."""
    path = place / "list.json"
    path.write_text(
        json.dumps({"10": str(template / "checkpoint-10"), "20": str(template / "checkpoint-20")})
    )
    return hostile.spoil_json(path, draw), lambda: open_run(path) and folders.read_list(path)


def a_text(draw: random.Random, place: Path, template: Path) -> tuple[str, Callable[[], object]]:
    """Any file at all, as text and as JSON."""
    path = place / "any.json"
    path.write_bytes(hostile.dumps({"a": draw.choice(hostile.VALUES), "b": [draw.choice(hostile.VALUES)]}))
    told = hostile.no_file(path, draw) if draw.random() < 0.4 else str(path.read_bytes()[:200])
    return told, lambda: (read_text(path), read_json(path))


def a_tensor_file(draw: random.Random, place: Path, template: Path) -> tuple[str, Callable[[], object]]:
    """A safetensors file or a pickle that was allowed."""
    old = template / "checkpoint-10" / "adapter_model.safetensors"
    if draw.random() < 0.5:
        path = place / "adapter_model.safetensors"
        path.write_bytes(old.read_bytes())
        told = hostile.spoil_header(path, draw)
    else:
        path = place / "adapter_model.bin"
        path.write_bytes((template / "checkpoint-10" / "optimizer.pt").read_bytes())
        told = hostile.spoil_pickle(path, draw)

    def read() -> None:
        file = TensorFile(path, allow_pickle=True)
        for name in file.entries:
            file.get(name)

    return told, read


def an_index(draw: random.Random, place: Path, template: Path) -> tuple[str, Callable[[], object]]:
    """A sharded model's index."""
    shard = place / "model-00001-of-00001.safetensors"
    shard.write_bytes((template / "checkpoint-10" / "adapter_model.safetensors").read_bytes())
    names = dict.fromkeys(TensorFile(shard).entries, shard.name)
    index = place / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    return hostile.spoil_json(index, draw), lambda: FullModel.open(place).matrices()


BOMBS = (
    "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "\n".join(
        f"{c}: &{c} [{', '.join(['*' + p] * 9)}]" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "a: &a {x: *a}",
    "&a [*a]",
    "a: &a {k: 1}\nb: {<<: [*a, *a, *a]}",
    "[" * 10000,
    "{a: " * 5000,
    "- " * 5000 + "x",
    "".join("\n" + " " * i + "a:" for i in range(500)),
    "a: !!python/object/apply:os.system ['touch executed-by-yaml']",
    'a: !!int ""',
    'a: !!float ""',
    "a: !!bool x",
    "a: !!timestamp x",
    "a: 2024-13-45",
    "a: 2024-01-01",
    "a: 0x" + "f" * 10000,
    "a: " + "9" * 5000,
    "a: 1:" + "59:" * 3000 + "1",
    "a: .nan",
    "seed: .inf",
    "? [a, b]\n: c",
    "? {a: b}\n: c",
    "a: !!set {b, c}",
    "a: !!omap [b: c]",
    "a: !!binary AAAA",
    "seed: 1\nseed: 2",
    "a: |\n" + " x\n" * 3000,
    "\ufeffseed: 1",
    "%YAML 9.9\n---\na: 1",
    "--- a\n--- b",
    "a: \x07",
    'a: "\\ud800"',
    'a: "\\0"',
    "=: 1",
    "<<: 1",
    "<<: [1]",
    "? &a a\n: *a",
)


def a_config(draw: random.Random, place: Path, template: Path) -> tuple[str, Callable[[], object]]:
    """A config of `nextrl run`, from a file and from overrides."""
    path = place / "c.yaml"
    tree = RunConfig(leap={"method": "secant", "at": [100]}).as_dict()
    overrides: list[str] = []
    how = draw.random()
    if how < 0.3:
        path.write_bytes(draw.choice(BOMBS).encode("utf-8", "surrogatepass"))
    elif how < 0.75:
        path.write_bytes(hostile.dumps(hostile.mutated(tree, draw)))
    elif how < 0.85:
        path.write_text(yaml.safe_dump(tree))
        hostile.no_file(path, draw)
    else:
        path.write_text("seed: 1\n")
        at = draw.choice([at for at in hostile.places(tree) if at and all(isinstance(p, str) for p in at)])
        value = draw.choice([*BOMBS, *(hostile.dumps(v).decode() for v in hostile.VALUES)])
        overrides = [f"{'.'.join(at)}={value}"]
    told = (
        f"{overrides or (path.read_bytes()[:200] if path.is_file() and path.stat().st_size < 10**6 else '')}"
    )

    def read() -> None:
        load(path, overrides).as_yaml()

    return told, read


def a_result(draw: random.Random, place: Path, template: Path) -> tuple[str, Callable[[], object]]:
    """A result, read and shown."""
    path = place / "result.json"
    path.write_text(json.dumps(synthetic_result()))
    told = hostile.spoil_json(path, draw)

    def read() -> None:
        page = render(read_result(path))
        assert "<script>alert" not in page

    return told, read


def a_jsonl(draw: random.Random, place: Path, template: Path) -> tuple[str, Callable[[], object]]:
    """A task of prompts and answers."""
    path = place / "data.jsonl"
    rows = [
        hostile.dumps({"prompt": f"{i}+1=", "answer": str(i + 1), "split": s})
        for i in range(6)
        for s in ("train",)
    ]
    rows += [
        hostile.dumps({"prompt": f"{i}+2=", "answer": str(i), "split": s})
        for i, s in enumerate(["validation", "test"] * 3)
    ]
    rows[draw.randrange(len(rows))] = hostile.dumps(
        hostile.mutated({"prompt": "a", "answer": "b", "split": "test"}, draw)
    )
    path.write_bytes(b"\n".join(rows))
    told = str(rows)[:200]
    if draw.random() < 0.2:
        told = hostile.no_file(path, draw)
    return told, lambda: base.get(f"{path}:exact").reward("1", "1")


ODD = (
    "None", "float('nan')", "float('inf')", "10**5000", "-1", "'x'", "[]", "{}", "object()", "print", "1j", "b'1'",
    "type('O', (), {'__float__': lambda s: 1/0})()", "type('O', (), {'__repr__': lambda s: 1/0})()",
    "type('O', (), {'__float__': lambda s: exit()})()", "exit()", "1/0", "[][0]", "{}['a']", "open('/nowhere')",
    "(_ for _ in ()).throw(BaseException)", "(_ for _ in ()).throw(GeneratorExit)",
    "(_ for _ in ()).throw(StopIteration)",
    "(_ for _ in ()).throw(MemoryError)", "__import__('no_such_module')", "'\\ud800'",
    "(lambda f: f(f))(lambda f: f(f))",
    "'\\x1b[2J'", "type('E', (Exception,), {'__str__': lambda s: 1/0})", "(_ for _ in ()).throw(OSError('x\\ny'))",
)  # fmt: skip


def a_task(draw: random.Random, place: Path, template: Path) -> tuple[str, Callable[[], object]]:
    """A user's Python file."""
    path = place / "task.py"
    rows, reward, top, length = "[(split + str(i), i) for i in range(3)]", "1.0", "", "7"
    where = draw.choice(("rows", "row", "reward", "top", "length"))
    value = draw.choice(ODD)
    if where == "rows":
        rows = value
    elif where == "row":
        rows = f"[('a' + split, 1), {value}, ('b' + split, {value})]"
    elif where == "reward":
        reward = value
    elif where == "length":
        length = value
    else:
        top = value
    path.write_text(
        f"{top}\nmax_completion_length = {length}\ndef examples(split): return {rows}\n"
        f"def reward(completion, answer): return {reward}\n"
    )
    return f"{where} = {value}", lambda: base.get(str(path)).reward("1", "1")


def a_path(draw: random.Random, place: Path, template: Path) -> tuple[str, Callable[[], object]]:
    """Where to write."""
    parts = [
        "a",
        "..",
        ".",
        "x" * 255,
        "x" * 256,
        "\0",
        "\udcff",
        "\ud800",
        "~",
        "~root",
        "~nobody-at-all",
        "a\nb",
        "",
        "ü" * 200,
    ]
    text = os.sep.join(draw.choice(parts) for _ in range(draw.choice((1, 1, 2, 3, 40))))
    if draw.random() < 0.3:
        text = draw.choice(
            [
                "/dev/null",
                "/dev/null/x",
                "/proc/x",
                "/proc/self/fd/x",
                "/sys/x",
                "",
                "/",
                str(place / "file" / "x"),
            ]
        )
    (place / "file").touch()
    traj = Trajectory.load(template, steps=[10, 20])

    def write() -> None:
        path = usable_path(text)
        if ".." in path.parts or text.startswith("~") or path.is_absolute():
            # Never outside of the test's folder: what is real there is only asked about.
            if str(path).startswith(("/dev/null", "/proc/", "/sys/", str(place))):
                with pytest.raises(InputError):
                    write_adapter(traj, 20, {}, path)
            return
        write_adapter(traj, 20, {}, place / "root" / path)

    return repr(text)[:200], write


DOORS: dict[str, tuple[Case, int]] = {
    "run": (a_run, 1500),
    "list": (a_list, 200),
    "text": (a_text, 400),
    "tensor file": (a_tensor_file, 800),
    "index": (an_index, 300),
    "config": (a_config, 1000),
    "result": (a_result, 400),
    "jsonl": (a_jsonl, 300),
    "task": (a_task, 300),
    "path": (a_path, 300),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile.write_template(tmp_path_factory.mktemp("template") / "run")


def test_there_are_more_than_two_thousand() -> None:
    assert sum(count for _, count in DOORS.values()) >= 2000


def cases(name: str, place: Path, template: Path) -> dict[str, Any]:
    """Run a door's cases and count how they ended."""
    make, count = DOORS[name]
    ended: dict[str, Any] = {"taken": 0, "refused": 0, "broken": []}
    os.chdir(place)
    for number in range(count):
        folder = place / str(number)
        folder.mkdir()
        told, action = make(random.Random(f"{hostile.SEED} {name} {number}"), folder, template)
        before = hostile.listing(folder)
        how, why = hostile.attempt(action)
        if how == "refused" and hostile.listing(folder) != before:
            how, why = "broken", f"wrote although it refused ({why})"
        if how == "broken":
            ended["broken"].append(f"{name} {number}: {told}\n{why}")
        else:
            ended[how] += 1
    if leftovers := [p.name for p in place.iterdir() if p.name.startswith("executed")]:
        ended["broken"].append(f"{leftovers}: code of an input was run")
    return ended


@pytest.mark.parametrize("name", DOORS)
def test_a_door_answers_or_refuses_in_one_line(
    name: str, tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("nextrl.checkpoints.patterns.SECONDS", 0.5)
    (tmp_path / "cases").mkdir()
    found = hostile.in_child(lambda: cases(name, tmp_path / "cases", template), 300)
    assert not found["broken"], f"{len(found['broken'])} of {DOORS[name][1]}\n" + "\n\n".join(
        found["broken"][:3]
    )
    assert found["taken"] + found["refused"] == DOORS[name][1]
    # A door that takes everything, or refuses everything, was not tried by these cases.
    assert found["refused"] > DOORS[name][1] / 10
    assert found["taken"] > 0
    assert found["megabytes"] < 700
