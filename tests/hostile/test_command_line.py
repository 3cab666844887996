"""More than three hundred hostile inputs through the command line itself, in one forked process.

A case ends with 0 or with 2, a refusal is one line on stderr and leaves no new file, and nothing waits for ever. What a
verb left out is said in lines of their own, which begin with `left out:` or, of `inspect`, stand in its list.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from test_doors import BOMBS

import hostile_inputs as hostile
import lora_runs
from nextrl import cli
from nextrl.tasks.bases import tiny
from synthetic_result import synthetic_result

VERBS: tuple[tuple[str, ...], ...] = (
    ("inspect",),
    ("inspect", "--skip-bad-checkpoints", "--allow-pickle"),
    ("advise",),
    ("advise", "--out", "OUT", "--skip-bad-checkpoints"),
    ("analyze", "--out", "OUT", "--plots", "none"),
    ("backtest", "--methods", "secant,factors,ols", "--json"),
    ("leap", "--out", "OUT"),
    ("leap", "--out", "OUT", "--method", "secant", "--rank", "3", "--skip-bad-checkpoints"),
    ("leap", "--out", "OUT", "--as", "merged", "--base", "BASE", "--method", "secant"),
)
NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1e400",
    "1" * 5000,
    str(2**64),
    str(10**30),
    "1.5",
    "",
    "x",
    "\udcff",
    "0x10",
    "١",
)
OPTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("advise", ("--at",)),
    ("analyze", ("--windows", "--beta1", "--horizon", "--rank", "--plots")),
    ("backtest", ("--horizon", "--origins", "--seed", "--methods")),
    (
        "leap",
        ("--horizon", "--alpha", "--at", "--rank", "--seed", "--prompts", "--level", "--method", "--as"),
    ),
)
PLACES = (
    "/dev/null", "/dev/null/x", "/dev/zero", "/proc/x/y", ".", "", "file", "file/x", "x" * 300, "a\udcff", "loop",
    "loop/x",
    "~nobody-at-all/x", "pipe", "/" + "y" * 5000,
)  # fmt: skip


def a_run(draw: random.Random, place: Path, template: Path) -> list[str]:
    hostile.fresh(template, place / "run")
    hostile.spoil_run(place / "run", draw)
    verb, *options = draw.choice(VERBS)
    return [verb, "run", *options]


def an_option(draw: random.Random, place: Path, template: Path) -> list[str]:
    verb, options = draw.choice(OPTIONS)
    out = ["--out", "OUT"] if verb == "leap" else []
    return [verb, str(template), *out, draw.choice(options), draw.choice(NUMBERS)]


def a_place(draw: random.Random, place: Path, template: Path) -> list[str]:
    where = draw.choice(PLACES)
    verb = draw.choice(("leap", "analyze", "backtest", "in", "in", "in"))
    if verb == "leap":
        return ["leap", str(template), "--out", where]
    if verb == "analyze":
        return ["analyze", str(template), "--out", where, "--plots", "none"]
    if verb == "backtest":
        return ["backtest", str(template), "--methods", "secant", "--plot", f"{where}.png"]
    return draw.choice(
        (["inspect", where], ["report", where], ["run", where], ["eval", where], ["advise", where])
    )


def a_config(draw: random.Random, place: Path, template: Path) -> list[str]:
    (place / "c.yaml").write_bytes(draw.choice(BOMBS).encode("utf-8", "surrogatepass"))
    if draw.random() < 0.5:
        (place / "c.yaml").write_text("output_dir: OUT\ntrain: {steps: 4, save_every: 2}\n")
        return ["run", "c.yaml", draw.choice(REFUSED_OVERRIDES)]
    return ["run", "c.yaml", "--print-config"]


REFUSED_OVERRIDES = (
    "lora.target_modules=nope", "lora.target_modules=[]", "lora.target_modules=", "lora.target_modules=['']",
    "lora.target_modules=(a+)+$", "lora.target_modules=(", "lora.r=1e11", "lora.r=0", "lora.alpha=-1",
    f"seed={2**64}", "seed=.nan", "train.steps=1" + "0" * 30, "train.learning_rate=.inf", "train.temperature=1e400",
    "train.completions_per_prompt=1000000000", "eval.prompts=1e30", "leap.every=0", "leap.at=[1,2]", "model=nope",
    "model=/dev/zero", "task=nope", "task=/dev/zero.py", "task=x.jsonl", "output_dir=/dev/null/x", "output_dir=",
    "output_dir=~nobody-at-all/x", "output_dir=[a]", 'output_dir="a\\0b"', "report_to=nope", "engine=nope", "a.b.c.d=1",
    "train=1", "=1", "x", "lora.r=*a", "lora.r=" + "[" * 3000,
)  # fmt: skip


def a_result(draw: random.Random, place: Path, template: Path) -> list[str]:
    (place / "folder").mkdir()
    (place / "folder" / "result.json").write_text(json.dumps(synthetic_result()))
    hostile.spoil_json(place / "folder" / "result.json", draw)
    return ["report", "folder"]


def an_adapter(draw: random.Random, place: Path, template: Path) -> list[str]:
    """`eval` of an adapter of another model, spoilt or not: never 0."""
    hostile.fresh(template, place / "run")
    name = draw.choice(["adapter_config.json", "adapter_model.safetensors"])
    hostile.FILES[name](place / "run" / "checkpoint-10" / name, draw)
    return ["eval", "tiny", "--adapter", "run/checkpoint-10", "--prompts", "2"]


def a_model(draw: random.Random, place: Path, template: Path) -> list[str]:
    model, tokenizer = tiny.load("chain")
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    name = draw.choice(
        ["config.json", "config.json", "tokenizer.json", "model.safetensors", "tokenizer_config.json"]
    )
    spoil = hostile.spoil_header if name.endswith("safetensors") else hostile.spoil_json
    spoil(place / "model" / name, draw)
    return ["eval", "model", "--prompts", "2"]


def a_task(draw: random.Random, place: Path, template: Path) -> list[str]:
    kind = draw.choice(("reward", "examples", "jsonl"))
    if kind == "jsonl":
        (place / "t.jsonl").write_bytes(hostile.dumps(hostile.mutated({"prompt": "a", "answer": "b"}, draw)))
        return ["eval", "tiny", "--task", "t.jsonl", "--prompts", "2"]
    bad = draw.choice(
        ("exit()", "1/0", "None", "float('nan')", "[]", "open('/nowhere')", "__import__('os')._no")
    )
    rows = bad if kind == "examples" else "[(f'{len(split)}{i}=', i) for i in range(3)]"
    (place / "t.py").write_text(
        f"max_completion_length = 2\ndef examples(split): return {rows}\ndef reward(c, a): return {bad}\n"
    )
    model, tokenizer = tiny.load("chain")  # by its name it is a base of two tasks alone
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    return ["eval", "model", "--task", "t.py", "--prompts", "2"]


KINDS: dict[str, tuple[Callable[[random.Random, Path, Path], list[str]], int]] = {
    "run": (a_run, 160),
    "option": (an_option, 70),
    "place": (a_place, 60),
    "config": (a_config, 60),
    "result": (a_result, 25),
    "adapter": (an_adapter, 15),
    "model": (a_model, 20),
    "task": (a_task, 20),
}


def call(arguments: list[str]) -> tuple[int, str, str]:
    """The command line in this process: (exit code, stdout, stderr)."""
    out, err = (
        io.TextIOWrapper(io.BytesIO(), "utf-8"),
        io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace"),
    )
    code = 0
    with (
        mock.patch.object(sys, "argv", ["nextrl", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        hostile.bounded(60),
    ):
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    for stream in (out, err):
        stream.flush()
    return code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()


def verdict(arguments: list[str], code: int, out: str, err: str) -> str | None:
    """What is wrong with how a case ended, None where nothing is."""
    if code not in (0, 2):
        return f"exit code {code}"
    told = ("left out: ", "was the run begun from an adapter?")
    lines = [line for line in err.splitlines() if not any(words in line for words in told)]
    if arguments[0] == "inspect":
        lines = [
            line
            for line in lines
            if not line.startswith("- ") and not line.endswith((" problem", " problems"))
        ]
    if code == 2 and (len(lines) != 1 or not lines[0].startswith("nextrl: ")):
        return f"{len(lines)} lines on stderr"
    if code == 0 and arguments[0] != "inspect" and lines:
        return "exit code 0 and words on stderr"
    if any(not (c.isprintable() or c == "\n") for c in out + err):
        return "something that a terminal would act on was printed"
    return None


def cases(place: Path, template: Path, base: Path) -> dict[str, Any]:
    ended: dict[str, Any] = {"0": 0, "2": 0, "broken": []}
    for name, (make, count) in KINDS.items():
        for number in range(count):
            folder = place / f"{name}-{number}"
            folder.mkdir()
            os.chdir(folder)
            (folder / "file").write_text("[1]")
            (folder / "loop").symlink_to("loop")
            os.mkfifo(folder / "pipe")
            given = make(random.Random(f"{hostile.SEED} {name} {number}"), folder, template)
            arguments = [str(base) if a == "BASE" else a for a in given]
            before = hostile.listing(folder)
            try:
                code, out, err = call(arguments)
                wrong = verdict(arguments, code, out, err)
                if wrong is None and code == 2 and hostile.listing(folder) != before:
                    wrong = "wrote although it refused"
                if wrong is None and name == "adapter" and code == 0:
                    wrong = "measured a model without its adapter"
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                code, err, wrong = -1, traceback.format_exc(), f"{type(error).__name__}: {error}"
            if wrong:
                ended["broken"].append(f"{name} {number} {[a[:80] for a in given]}: {wrong}\n{err[-2500:]}")
            else:
                ended[str(code)] += 1
    return ended


def test_the_command_line_answers_or_refuses_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path_factory.mktemp("command-line")
    template = hostile.write_template(root / "template")
    lora_runs.model().save_pretrained(root / "base")
    (root / "cases").mkdir()
    (root / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(root / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("nextrl.checkpoints.patterns.SECONDS", 0.5)
    total = sum(count for _, count in KINDS.values())
    assert total >= 300
    found = hostile.in_child(lambda: cases(root / "cases", template, root / "base"), 600, 3 * hostile.MEMORY)
    assert not found["broken"], f"{len(found['broken'])} of {total}\n" + "\n\n".join(found["broken"][:8])
    assert found["0"] + found["2"] == total
    assert found["2"] > total / 2
    assert found["0"] > total / 20
    assert found["megabytes"] < 1000
