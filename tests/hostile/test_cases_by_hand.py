"""Hostile inputs thought of one by one, through the command line: what the drawn ones do not come upon.

Each kind runs in one forked process. A case ends with 0 or 2 (as it says), a refusal is one line, leaves no new file
and comes within a bound of time and memory; `test_command_line.verdict` holds what else is asked.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import os
import resource
import shutil
import struct
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from test_command_line import call, verdict
from transformers.utils.logging import disable_progress_bar

import hostile_inputs as hostile
import lora_runs
from nextrl import cli
from nextrl.runs.config_file import load
from nextrl.tasks.bases import tiny
from synthetic_result import synthetic_result

SECONDS = 60.0
STEPS = (10, 20, 30, 40)
UGLY = "[red]x[/nope]\n\x1b[2J\x1b]0;t\x07\u202e<b>"
UGLY_FOLDER = UGLY.replace("/", "")


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        name: what is hostile about it.
        arguments: of the command line; `RUN`, `BASE` and `MODEL` stand for good ones.
        prepare: writes what the call reads, in the working folder; it is given that.
        ends: exit codes it may end with.
        says: a text that the refusal must hold.
        largest: bytes of a file beyond which the system refuses to write, as a full disk does; None: no limit.
        environment: variables beside the real ones.
    """

    name: str
    arguments: tuple[str, ...]
    prepare: Callable[[Path], object] | None = None
    ends: tuple[int, ...] = (2,)
    says: str = ""
    largest: int | None = None
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Given:
    """Good inputs that cases are made from."""

    run: Path
    base: Path
    model: Path
    adapter: Path

    def copy(self, place: Path) -> Path:
        return hostile.fresh(self.run, place / "run")


GIVEN: dict[str, Given] = {}


def given() -> Given:
    return GIVEN["of this process"]


def yaml_file(text: str | bytes) -> Callable[[Path], object]:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda place: (place / "c.yaml").write_bytes(data)


def config_of(run: Path, step: int) -> Path:
    return run / f"checkpoint-{step}" / "adapter_config.json"


def weights_of(run: Path, step: int) -> Path:
    return run / f"checkpoint-{step}" / "adapter_model.safetensors"


def with_config(steps: tuple[int, ...] = STEPS, **changes: Any) -> Callable[[Path], object]:
    """A copy of the run, fields of its configs replaced."""

    def prepare(place: Path) -> None:
        run = given().copy(place)
        for step in steps:
            path = config_of(run, step)
            path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return prepare


State = dict[str, torch.Tensor]


def with_tensors(
    change: Callable[[State], State], steps: tuple[int, ...] = STEPS
) -> Callable[[Path], object]:
    """A copy of the run, its tensors changed."""

    def prepare(place: Path) -> None:
        run = given().copy(place)
        for step in steps:
            path = weights_of(run, step)
            hostile.save_tensors(change(load_file(path)), path)

    return prepare


# YAML ---------------------------------------------------------------------------------------------------------------

LETTERS = "abcdefghi"
ALIASES = {
    "lists": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{c}: &{c} [{','.join(['*' + b] * 9)}]\n" for b, c in itertools.pairwise(LETTERS)),
    "mappings": "a: &a {k: x}\n"
    + "".join(
        f"{c}: &{c} {{{', '.join(f'k{i}: *{b}' for i in range(9))}}}\n"
        for b, c in itertools.pairwise(LETTERS)
    ),
    "merge keys": "a: &a {k: x}\n"
    + "".join(
        f"{c}: &{c} {{<<: [{', '.join(['*' + b] * 9)}], k{c}: 1}}\n" for b, c in itertools.pairwise(LETTERS)
    ),
    "merge one": "base: &base {steps: 4}\ntrain:\n  <<: *base\n",
    "block lists": "a: &a\n"
    + " - x\n" * 9
    + "".join(f"{c}: &{c}\n" + f" - *{b}\n" * 9 for b, c in itertools.pairwise(LETTERS)),
    "of itself in a list": "train: &t [*t]\n",
    "of itself in a mapping": "train: &t {steps: *t}\n",
    "as a key": "seed: &s 1\n*s : 2\n",
    "undefined": "seed: *nothing\n",
    "in a tag": "a: &a !!seq [x]\nb: !!seq [*a]\n",
    "with the longest name": f"a: &{'n' * 30000} x\nb: *{'n' * 30000}\n",
    "an anchor given twice": "a: &a 1\nb: &a 2\nseed: *a\n",
    "as the whole document": "&a [1, *a]\n",
}
YAML = {
    "anchors inside each other": "seed: " + "".join(f"&{c} [" for c in LETTERS) + "]" * 9 + "\n",
    "an anchor on every value": "".join(f"k{i}: &n{i} 1\n" for i in range(3000)),
    "a merge key without an alias": "train: {<<: {steps: 4}, save_every: 2}\noutput_dir: OUT\n",
    "a merge of a number": "train: {<<: 4}\n",
    "merge keys inside merge keys": "train: " + "{<<: " * 60 + "{steps: 4}" + "}" * 60 + "\n",
    "two hundred merge keys": "train: " + "{<<: " * 200 + "{steps: 4}" + "}" * 200 + "\n",
    "a merge of a long list": "train: {<<: [" + "{steps: 4}, " * 3000 + "{steps: 4}]}\n",
    "a value tag": "train: {=: 4}\n",
    "a tag of a Python name": "task: !!python/name:os.system\n",
    "a tag of a Python module": "task: !!python/module:antigravity\n",
    "a tag of a new object": "task: !!python/object/new:os.system [touch executed]\n",
    "a tag of our own": "task: !nextrl {a: 1}\n",
    "a tag with an escape": "task: !<%1b[2J> x\n",
    "a directive with an escape": "%TAG ! tag:\x1b[2J,2000:\n---\ntask: x\n",
    "base 60": "seed: 1:30\ntrain: {steps: " + "1:" * 400 + "1}\n",
    "octal": "seed: 0o777\n",
    "binary": "seed: 0b" + "1" * 9000 + "\n",
    "underscores": "seed: 1" + "_" * 9000 + "1\n",
    "a float of many digits": "train: {learning_rate: 0." + "3" * 9000 + "}\n",
    "a float of a large exponent": "train: {learning_rate: 1e" + "9" * 900 + "}\n",
    "a long folded text": "task: >\n" + "  x\n" * 9000,
    "a long key": "? " + "k" * 5000 + "\n: 1\n",
    "a date": "seed: 2026-11-28\n",
    "a time": "seed: 2026-11-28T22:45:00Z\n",
    "a set": "report_to: !!set {tensorboard}\n",
    "pairs": "train: !!pairs [steps: 4]\n",
    "null as a key": "~: 1\n",
    "true as a key": "yes: 1\n",
    "a number as a key": "1: 1\n",
    "a key of NaN twice": ".nan: 1\n.NaN: 2\n",
    "names that a terminal acts on": '"\\e[2J\\r\\b": 1\n',
    "a newline in a task": 'task: "cha\\nin"\n',
    "NEL and LS as line ends": "seed: 1\u0085train: {steps: 4}\u2028lora: {r: 1}\n",
    "an override of a section by a list": "train: []\n",
    "a section that is text": "train: steps=4\n",
    "ten thousand unknown keys": "".join(f"k{i}: 1\n" for i in range(5000)),
    "a document that ends in the middle": "train: {steps: 4, \n",
    "only a bracket": "]",
    "tabs": "train:\n\tsteps: 4\n",
    "ASCII control": "seed: 1 \x1b[2J\n",
    "bytes of Latin-1": b"task: caf\xe9\n",
    "UTF-32": "seed: 1\n".encode("utf-32"),
    "UTF-16 without a mark": "seed: 1\n".encode("utf-16-le"),
    "half a pair, as WTF-8": b"task: \xed\xa0\x80\n",
    "NUL": b"seed: 1\0\n",
}


def yaml_cases() -> Iterator[Case]:
    for name, text in ALIASES.items():
        yield Case(f"alias: {name}", ("run", "c.yaml", "--print-config"), yaml_file(text))
    for name, text in YAML.items():
        yield Case(name, ("run", "c.yaml", "--print-config"), yaml_file(text), (0, 2))
    bad = "lora.target_modules=[&a x, *a]", "train={<<: &a {steps: *a}}", "&a seed=1", "seed=&a [*a]"
    for override in (
        *bad,
        "train=&t {steps: 4, save_every: *t}",
        "=",
        "train.steps",
        "train..steps=4",
        ".=1",
    ):
        yield Case(
            f"override {override}", ("run", "c.yaml", override, "--print-config"), yaml_file("seed: 1\n")
        )


# A stranger's regular expressions -----------------------------------------------------------------------------------

BOMBS = (
    "(a|aa)+$",
    "(.*a){25}",
    r"((\w+)*\.)*x",
    r"(\w|\.)*(\w|\.)*(\w|\.)*(\w|\.)*!",
    r"(?=((\w|[a-z]|\.)+)+$)!",
    r"(([a-z_])+.)+[A-Z]([a-z])+$",
    "(?:(?:(?:(?:.*)*)*)*)*!",
    r"(.+)+\1\1!",
    "x{1000}{1000}",
    "(" * 90 + "a" + ")" * 90,
    "(?P<a>x)(?P<a>y)",
    r"\99999",
    "(?<=a*)b",
    "a{99999999999}",
    "[" + "a-z" * 300 + "]",
    "(?i:Q_PROJ)|(?x: # a comment\n)",
    "\x1b[2J",
    "[[a-z]--[b]]||[a&&b]",
    "[a||b~~c]",
)


def pattern_cases() -> Iterator[Case]:
    # A base's scaling and rank are asked for by each verb on its own way.
    ways: dict[str, tuple[str, ...]] = {
        "inspect": ("inspect", "run"),
        "advise": ("advise", "run"),
        "analyze": ("analyze", "run", "--plots", "none", "--out", "OUT"),
        "backtest": ("backtest", "run", "--methods", "secant"),
        "leap": ("leap", "run", "--method", "secant", "--out", "OUT"),
        "merged": ("leap", "run", "--method", "secant", "--as", "merged", "--base", "BASE", "--out", "OUT"),
        "eval": ("eval", "MODEL", "--adapter", "run/checkpoint-40", "--prompts", "2"),
    }
    for i, bomb in enumerate(BOMBS):
        key = ("alpha_pattern", "rank_pattern")[i % 2]
        way = list(ways)[i % len(ways)]
        yield Case(f"{key} {bomb[:40]} {way}", ways[way], with_config(**{key: {bomb: 4}}), (0, 2))
    for way, arguments in ways.items():
        yield Case(
            f"both patterns, one bomb, {way}",
            arguments,
            with_config(alpha_pattern={BOMBS[2]: 4}, rank_pattern={BOMBS[2]: 4}),
            says="regular expression",
        )
    yield Case(
        "another bomb for each checkpoint",
        ("inspect", "run", "--skip-bad-checkpoints"),
        lambda place: [
            with_config((step,), alpha_pattern={f"{BOMBS[2]}{step}": 4})(place) for step in STEPS[:1]
        ],
        (0, 2),
    )
    many = {f"n{i}": 2 for i in range(300_000)}
    yield Case("three hundred thousand names", ways["leap"], with_config(alpha_pattern=many), (0, 2))
    for value in ([["q", 4]], "q_proj", 4, {"q_proj": [4]}, {"q_proj": {"a": 1}}, {"": 4}, {"q_proj": True}):
        yield Case(f"alpha_pattern {value}", ways["leap"], with_config(alpha_pattern=value), (0, 2))


# Paths --------------------------------------------------------------------------------------------------------------

READ: dict[tuple[str, str], tuple[str, ...]] = {
    ("inspect", "run"): ("inspect", "HERE"),
    ("advise", "run"): ("advise", "HERE"),
    ("analyze", "run"): ("analyze", "HERE"),
    ("backtest", "run"): ("backtest", "HERE"),
    ("leap", "run"): ("leap", "HERE", "--out", "OUT"),
    ("report", "folder"): ("report", "HERE"),
    ("run", "config"): ("run", "HERE"),
    ("eval", "model"): ("eval", "HERE"),
    ("eval", "adapter"): ("eval", "tiny", "--adapter", "HERE"),
    ("eval", "task"): ("eval", "tiny", "--task", "HERE.py", "--prompts", "2"),
    ("leap", "task"): ("leap", "RUN", "--alpha", "auto", "--method", "secant", "--base", "MODEL", "--out", "OUT",
                       "--task", "HERE.jsonl"),
    ("leap", "base"): ("leap", "RUN", "--method", "secant", "--as", "merged", "--base", "HERE", "--out", "OUT"),
    ("analyze", "base"): ("analyze", "RUN", "--base", "HERE"),
}  # fmt: skip
WRITE: dict[tuple[str, str], tuple[str, ...]] = {
    ("advise", "out"): ("advise", "RUN", "--out", "HERE"),
    ("analyze", "out"): ("analyze", "RUN", "--plots", "none", "--out", "HERE"),
    ("backtest", "plot"): ("backtest", "RUN", "--methods", "secant", "--plot", "HERE.png"),
    ("leap", "out"): ("leap", "RUN", "--method", "secant", "--out", "HERE"),
    ("demo", "out"): ("demo", "--quick", "--out", "HERE"),
}
NO_PATHS = {
    "NUL": "a\0b",
    "half a pair": "a\udcffb",
    "a long name": "x" * 256,
    "long names in UTF-8": "ü" * 200,
    "a long path": "/".join(["y" * 200] * 30),
    "nobody's home": "~nobody-at-all/x",
    "nothing": "",
    "a loop": "loop/x",
    "under a file": "file/x",
}
NO_FILES = {
    "a pipe": "pipe",
    "/dev/zero": "zero",
    "a terminal": "tty",
    "a full device": "full",
    "a socket": "socket",
    "a link to nowhere": "nowhere",
    "memory of a process": "memory",
    "a file of nothing": "file",
    "a loop": "loop",
    "what is not there": "not-there",
    "a name that a terminal acts on": UGLY,
}


def odd_files(place: Path) -> None:
    """Each of `NO_FILES` that is there, under its name and under the names of tasks."""
    for end in ("", ".py", ".jsonl"):
        os.mkfifo(place / f"pipe{end}")
        for name, to in (
            ("zero", "/dev/zero"),
            ("tty", "/dev/tty"),
            ("full", "/dev/full"),
            ("memory", "/proc/self/mem"),
            ("nowhere", "nowhere-at-all/x"),
        ):
            (place / f"{name}{end}").symlink_to(to)
        (place / f"loop{end}").symlink_to(f"loop{end}")
        (place / f"file{end}").touch()
    hostile.replace(place / "socket", "socket")


def path_cases() -> Iterator[Case]:
    for kinds, paths in ((READ, {**NO_PATHS, **NO_FILES}), (WRITE, NO_PATHS)):
        for (verb, option), arguments in kinds.items():
            for name, path in paths.items():
                call_ = tuple(a.replace("HERE", path) if a.startswith("HERE") else a for a in arguments)
                # Advice to average is not this run's, and then nothing is written: 0 is right. No file is no run of
                # verl's; a file of nothing is a config of nothing, which would train.
                ends = (0, 2) if (verb, option) == ("advise", "out") else (2,)
                if (verb, name) == ("run", "a file of nothing"):
                    call_ = (*call_, "train.steps=0")
                # `--plot .png` and a name of 256 bytes with an ending are tried by the others.
                if (option, name) in (("plot", "nothing"), ("task", "nothing")):
                    continue
                says = "NUL" if name == "NUL" else ""
                yield Case(f"{verb} {option}: {name}", call_, odd_files, ends, says=says)
    for target in ("pipe", "file", "zero", "socket", "loop", "full"):
        yield Case(
            f"leap --out over {target}", ("leap", "RUN", "--method", "secant", "--out", target), odd_files
        )
        yield Case(
            f"analyze --out over {target}", ("analyze", "RUN", "--plots", "none", "--out", target), odd_files
        )
        yield Case(f"run output_dir={target}", ("run", "c.yaml", f"output_dir={target}"), _config_and_odd)
        yield Case(f"demo --out {target}", ("demo", "--quick", "--out", target), odd_files)
    for kind in ("pipe", "folder", "zero", "socket"):
        yield Case(f"--plot over a {kind}", ("backtest", "RUN", "--methods", "secant", "--plot", "p.png"),
                   lambda place, kind=kind: odd(place / "p.png", kind))  # fmt: skip
        yield Case(f"analysis.json is a {kind}", ("analyze", "RUN", "--plots", "none", "--out", "o"),
                   lambda place, kind=kind: odd(place / "o" / "analysis.json", kind))  # fmt: skip
        yield Case(f"report.html is a {kind}", ("report", "o"),
                   lambda place, kind=kind: (odd(place / "o/report.html", kind), result_in(place / "o")))  # fmt: skip
        yield Case(f"nextrl.json in --out is a {kind}", ("leap", "RUN", "--method", "secant", "--out", "o"),
                   lambda place, kind=kind: odd(place / "o" / "nextrl.json", kind), (0, 2))  # fmt: skip
        yield Case(f"config.yaml in output_dir is a {kind}", ("run", "c.yaml", "output_dir=o"),
                   lambda place, kind=kind: (odd(place / "o" / "config.yaml", kind), small_config(place)))  # fmt: skip
    for name in ("result.json", "report.html", "trajectory", "final", "leaps", "stopped"):
        for kind in ("folder", "pipe") if "." in name else ("pipe", "zero"):
            yield Case(f"{name} of a run is a {kind}", ("run", "c.yaml", "output_dir=o"),
                       lambda place, name=name, kind=kind: begun(place, name, kind))  # fmt: skip
    for kind in ("pipe", "zero", "folder", "socket", "loop"):
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            yield Case(f"{name} is a {kind}: eval", ("eval", "MODEL", "--adapter", "run/checkpoint-40"),
                       in_run(f"checkpoint-40/{name}", kind))  # fmt: skip
            yield Case(f"{name} is a {kind}: leap", ("leap", "run", "--out", "OUT"),
                       in_run(f"checkpoint-40/{name}", kind))  # fmt: skip
        for name in ("trainer_state.json", "optimizer.pt", "nextrl.json"):
            yield Case(f"{name} is a {kind}: advise", ("advise", "run"), in_run(f"checkpoint-40/{name}", kind),
                       (0, 2))  # fmt: skip
        for name in (
            "config.json",
            "model.safetensors",
            "model.safetensors.index.json",
            "README.md",
            "tokenizer.json",
        ):
            yield Case(f"{name} of the base is a {kind}",
                       ("leap", "RUN", "--method", "secant", "--as", "merged", "--base", "base", "--out", "OUT"),
                       in_copy("base", name, kind), (0, 2))  # fmt: skip
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                     "generation_config.json", "chat_template.jinja",
                     "additional_chat_templates/other.jinja", "tokenizer.model"):  # fmt: skip
            yield Case(f"{name} of the model is a {kind}", ("eval", "model", "--prompts", "2"),
                       in_copy("model", name, kind), says=name)  # fmt: skip
        yield Case(f"result.json is a {kind}", ("report", "o"),
                   lambda place, kind=kind: odd(place / "o" / "result.json", kind))  # fmt: skip


def begun(place: Path, name: str, kind: str) -> None:
    """The folder of a run that was claimed, with something else where a part of it belongs."""
    small_config(place)
    (place / "o").mkdir()
    written = load(place / "c.yaml", ["output_dir=o"]).as_yaml()
    (place / "o" / "config.yaml").write_text(written)
    odd(place / "o" / name, kind)


def _config_and_odd(place: Path) -> None:
    odd_files(place)
    small_config(place)


def odd(path: Path, kind: str) -> None:
    """Something else than a file under a file's name."""
    path.parent.mkdir(exist_ok=True)
    hostile.replace(path, {"zero": "/dev/zero"}.get(kind, kind))
    if kind == "folder":
        (path / "mine").touch()


def in_run(name: str, kind: str) -> Callable[[Path], object]:
    return lambda place: odd(given().copy(place) / name, kind)


def in_copy(what: str, name: str, kind: str) -> Callable[[Path], object]:
    return lambda place: odd(
        hostile.fresh(given().base if what == "base" else given().model, place / what) / name, kind
    )


def result_in(folder: Path, **changes: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_text(json.dumps({**synthetic_result(), **changes}))


def small_config(place: Path, more: str = "") -> None:
    (place / "c.yaml").write_text(
        "output_dir: OUT\nlora: {r: 2, alpha: 4}\neval: {every: 2, prompts: 2}\nleap: {method: none}\n"
        "train: {steps: 2, save_every: 1, prompts_per_step: 2, completions_per_prompt: 2}\n" + more
    )


# Names --------------------------------------------------------------------------------------------------------------


def name_cases() -> Iterator[Case]:
    verbs: tuple[tuple[str, ...], ...] = (
        ("inspect", "run"),
        ("inspect", "run", "--json"),
        ("advise", "run"),
        ("advise", "run", "--json"),
        ("analyze", "run"),
        ("analyze", "run", "--json"),
        ("backtest", "run", "--methods", "secant", "--by-type"),
        ("backtest", "run", "--methods", "secant", "--by-type", "--json"),
        ("leap", "run", "--method", "secant", "--out", "OUT"),
        ("leap", "run", "--method", "secant", "--out", "OUT", "--json"),
    )
    for arguments in verbs:
        yield Case(f"modules' names: {arguments}", arguments, with_tensors(_ugly_modules), (0, 2))
    for arguments in verbs[::2]:
        yield Case(
            f"the run's name: {arguments}",
            tuple(UGLY_FOLDER if a == "run" else a for a in arguments),
            lambda place: given().copy(place).rename(place / UGLY_FOLDER),
            (0, 2),
        )
        yield Case(f"no such run: {arguments}", tuple(UGLY if a == "run" else a for a in arguments), None)
    for field in (
        "base_model_name_or_path",
        "peft_type",
        "task_type",
        "bias",
        "init_lora_weights",
        "revision",
    ):
        for arguments in (verbs[0], verbs[8]):
            yield Case(f"{field}: {arguments}", arguments, with_config(**{field: UGLY}), (0, 2))
    yield Case("a base by an ugly name", ("leap", "run", "--as", "merged", "--method", "secant", "--out", "OUT"),
               with_config(base_model_name_or_path=UGLY))  # fmt: skip
    yield Case("a base on the Hub", ("leap", "run", "--as", "merged", "--method", "secant", "--out", "OUT"),
               with_config(base_model_name_or_path="nobody/no-such-model"))  # fmt: skip
    yield Case("a base above", ("leap", "run", "--as", "merged", "--method", "secant", "--out", "OUT"),
               with_config(base_model_name_or_path="../../../../etc"))  # fmt: skip
    for option in ("--methods", "--layout", "--horizon", "--origins", "--seed", "--nope", f"--{UGLY}"):
        yield Case(f"backtest {option}", ("backtest", "RUN", option, UGLY))
    for arguments in (
        (UGLY,),
        ("leap", "RUN", "--out", "OUT", "--method", UGLY),
        ("leap", "RUN", "--out", "OUT", "--as", UGLY),
        ("leap", "RUN", "--out", "OUT", "--alpha", UGLY),
        ("leap", "RUN", "--out", "OUT", UGLY),
        ("analyze", "RUN", "--plots", UGLY, "--out", "OUT"),
        ("analyze", "RUN", "--windows", UGLY),
        ("eval", "tiny", "--task", UGLY),
        ("eval", "tiny", "--task", f"gym:{UGLY}"),
        ("eval", "tiny", "--task", f"{UGLY}.jsonl:exact"),
        ("eval", "tiny", "--task", "chain:" + UGLY),
        ("eval", f"tiny:{UGLY}"),
        ("leap", "RUN", "--out", "OUT", "--push-to-hub", UGLY),
    ):
        yield Case(f"an option's value: {' '.join(arguments[:6])!r}", arguments)
    for key in ("task", "model", "algorithm", "engine", "report_to", "leap.method", "train.optimizer", UGLY):
        yield Case(f"{key!r} of a config", ("run", "c.yaml", f"{key}={json.dumps(UGLY)}"), small_config)
    yield Case("a page of ugly names", ("report", UGLY_FOLDER),
               lambda place: result_in(place / UGLY_FOLDER, task=UGLY, verdict=UGLY), (0, 2))  # fmt: skip
    yield Case("names in a list", ("inspect", "l.json"),
               lambda place: (place / "l.json").write_text(json.dumps({"10": UGLY, UGLY: "x"})))  # fmt: skip
    yield Case("a list of itself", ("inspect", "l.json"),
               lambda place: (place / "l.json").write_text('{"10": "l.json"}'))  # fmt: skip


def _ugly_modules(state: State) -> State:
    return {key.replace("layers.0", f"layers.{UGLY}.0"): tensor for key, tensor in state.items()}


# A full disk --------------------------------------------------------------------------------------------------------


def full_disk_cases() -> Iterator[Case]:
    calls: dict[str, tuple[str, ...]] = {
        "leap": ("leap", "RUN", "--method", "secant", "--out", "F/leap"),
        "merged": ("leap", "RUN", "--method", "secant", "--as", "merged", "--base", "BASE", "--out", "F/leap"),
        "merged by name": ("leap", "tiny-run", "--method", "secant", "--as", "merged", "--base", "tiny", "--task",
                           "chain", "--out", "F/leap"),
        "analyze": ("analyze", "RUN", "--out", "F/analysis"),
        "plot": ("backtest", "RUN", "--methods", "secant", "--plot", "F/p.png"),
        "svg": ("backtest", "RUN", "--methods", "secant", "--plot", "F/p.svg"),
        "report": ("report", "o"),
        "advise": ("advise", "RUN", "--out", "F/average"),
        "demo": ("demo", "--quick", "--out", "F/demo"),
        "run": ("run", "c.yaml", "output_dir=F/out"),
    }  # fmt: skip
    for name, arguments in calls.items():
        for largest in (0, 1, 700, 5000):
            if name in ("demo", "run") and largest > 1:
                continue  # they write and resume: tests/hostile/test_interrupted_runs.py
            ends = (0, 2) if name in ("advise", "svg") or largest == 5000 else (2,)
            yield Case(f"{name} with {largest} bytes", arguments, _ready, ends, largest=largest)


def _ready(place: Path) -> None:
    result_in(place / "o")
    small_config(place)
    hostile.fresh(given().adapter.parent, place / "tiny-run")


# Adapters that must not be measured as the base ----------------------------------------------------------------------


def changing(
    name: str, weights: str, settings: str, change: Callable[[State], State], **config: Any
) -> Callable[[Path], object]:
    """Puts a copy of what is given under that name into a case's place, with tensors and settings changed."""

    def prepare(place: Path) -> None:
        folder = hostile.fresh(getattr(given(), name), place / name)
        hostile.save_tensors(change(load_file(folder / weights)), folder / weights)
        told = folder / settings
        told.write_text(json.dumps({**json.loads(told.read_text()), **config}))

    return prepare


def adapter_cases() -> Iterator[Case]:
    arguments = "eval", "MODEL", "--adapter", "adapter", "--prompts", "2"

    changed = partial(changing, "adapter", "adapter_model.safetensors", "adapter_config.json")

    def renamed(old: str, new: str) -> Callable[[State], State]:
        return lambda state: {key.replace(old, new): tensor for key, tensor in state.items()}

    def first(state: State, part: str) -> str:
        return next(key for key in state if part in key)

    def without(part: str) -> Callable[[State], State]:
        return lambda state: {key: tensor for key, tensor in state.items() if part not in key}

    def values(change: Callable[[torch.Tensor], torch.Tensor], part: str = "") -> Callable[[State], State]:
        return lambda state: {
            key: change(tensor).contiguous() if part in key else tensor for key, tensor in state.items()
        }

    yield Case("as it is", arguments, changed(dict), (0,))
    yield Case("names of torch.compile", arguments,
               changed(renamed("base_model.model.", "base_model.model._orig_mod.")), (0, 2))  # fmt: skip
    yield Case("names of torch.compile: leap", ("leap", "run", "--method", "secant", "--out", "OUT"),
               with_tensors(renamed("base_model.model.", "base_model.model._orig_mod.")), (0,))  # fmt: skip
    yield Case("names of torch.compile in the middle", arguments,
               changed(renamed(".layers.", ".layers._orig_mod.")), (0, 2))  # fmt: skip
    bad: dict[str, Callable[[State], State]] = {
        "another layer's names": renamed("layers.0", "layers.7"),
        "another model's names": renamed("q_proj", "query_key_value"),
        "names without lora": renamed("lora_A", "lora_C"),
        "an adapter's name inside": renamed("lora_A.weight", "lora_A.other.weight"),
        "upper case": lambda state: {key.upper(): tensor for key, tensor in state.items()},
        "spaces around names": lambda state: {f" {key} ": tensor for key, tensor in state.items()},
        "no lora_B at all": without("lora_B"),
        "no lora_A at all": without("lora_A"),
        "one lora_B missing": lambda state: without(first(state, "lora_B"))(state),
        "one module missing": lambda state: without(first(state, "lora_B").split("lora_B")[0])(state),
        "nothing in it": lambda state: {},
        "empty tensors": values(lambda t: torch.zeros(0)),
        "empty lora_B": values(lambda t: torch.zeros(0), "lora_B"),
        "lora_B of no columns": values(lambda t: t[:, :0], "lora_B"),
        "lora_A of no rows": values(lambda t: t[:0], "lora_A"),
        "scalars": values(lambda t: torch.tensor(1.0)),
        "vectors": values(lambda t: t.flatten()),
        "five dimensions": values(lambda t: t[None, None, None]),
        "turned": values(lambda t: t.T),
        "half the rank": values(lambda t: t[: len(t) // 2], "lora_A"),
        "double width": values(lambda t: torch.cat([t, t]), "lora_B"),
        "NaN": values(lambda t: t * float("nan")),
        "Inf in one": lambda state: {**state, first(state, "lora_A"): state[first(state, "lora_A")] / 0},
        "1e30": values(lambda t: t * 0 + 1e30),
        "int8": values(lambda t: t.to(torch.int8)),
        "int64": values(lambda t: t.to(torch.int64)),
        "truth values": values(lambda t: t > 0),
        "float8": values(lambda t: t.to(torch.float8_e4m3fn)),
        "complex": values(lambda t: t.to(torch.complex64)),
        "a stray tensor": lambda state: {**state, "base_model.model.extra.weight": torch.ones(3)},
        "a DoRA vector": lambda state: {**state, first(state, "lora_A").replace("lora_A", "lora_magnitude_vector"):
                                        torch.ones(3)},
        "VeRA's names": lambda state: {**state, "base_model.vera_A": torch.ones(3, 3)},
    }  # fmt: skip
    for name, change in bad.items():
        yield Case(f"eval of an adapter: {name}", arguments, changed(change))
    for name in (
        "no lora_B at all",
        "empty lora_B",
        "NaN",
        "int8",
        "scalars",
        "nothing in it",
        "a DoRA vector",
    ):
        for verb in ("leap", "backtest"):
            out = ("--out", "OUT") if verb == "leap" else ()
            yield Case(
                f"{verb} of an adapter: {name}",
                (verb, "run", *out, "--skip-bad-checkpoints"),
                with_tensors(bad[name]),
            )
    for field, value in (
        ("r", 3), ("r", 0), ("r", 2**40), ("r", True), ("r", "4"), ("r", 4.5), ("lora_alpha", 0), ("lora_alpha", 1e300),
        ("peft_type", "IA3"), ("peft_type", ["LORA"]), ("use_dora", True), ("use_rslora", "yes"), ("use_zora", True),
        ("zora_config", {"a": 1}), ("target_modules", ["nope"]), ("target_modules", 7), ("modules_to_save", ["nope"]),
        ("modules_to_save", "lm_head"), ("layers_to_transform", [99]), ("layer_replication", [[0, 99]]),
        ("megatron_config", {"a": 1}), ("target_parameters", ["nope"]), ("bias", "all"), ("bias", "nope"),
        ("auto_mapping", {"base_model_class": "os.system", "parent_library": "os"}), ("lora_dropout", 7),
        ("trainable_token_indices", [10**9]), ("eva_config", {"rho": "x"}), ("loftq_config", {"loftq_bits": 4}),
        ("init_lora_weights", "nope"), ("fan_in_fan_out", True), ("runtime_config", {"ephemeral_gpu_offload": True}),
    ):  # fmt: skip
        yield Case(f"{field} = {value}", arguments, changed(dict, **{field: value}), (0, 2))
    yield Case("a pickle", arguments, _pickled, says="pickle")
    yield Case("a pickle that runs code, allowed", (*arguments, "--allow-pickle"), _pickled)
    # Found by tools/fuzz_doors.py: opcodes that end in the middle of what they need.
    for opcodes in (
        b"\x80\x02G\0",
        b"\x80\x02J\0",
        b"\x80\x02X\xff\0\0\0a",
        b"\x80\x02\x8a\xff",
        b"\x80\x0c}.",
        b"",
        b".",
    ):
        for verb in (("eval", "MODEL", "--adapter", "adapter"), ("leap", "adapter", "--out", "OUT")):
            yield Case(f"opcodes {opcodes!r}: {verb[0]}", (*verb, "--allow-pickle"),
                       lambda place, opcodes=opcodes: _of_opcodes(place, opcodes))  # fmt: skip
    yield Case("a pickle beside the config of another", ("leap", "run", "--out", "OUT"),
               lambda place: (weights_of(given().copy(place), 40).unlink(),
                              torch.save({}, place / "run/checkpoint-40/adapter_model.bin")))  # fmt: skip
    yield Case("a zip under the name of safetensors", arguments,
               lambda place: torch.save({}, hostile.fresh(given().adapter, place / "adapter")
                                        / "adapter_model.safetensors"))  # fmt: skip


def _of_opcodes(place: Path, opcodes: bytes) -> None:
    """A file as `torch.save` writes it around these opcodes; what Adam left beside it is the same."""
    adapter = hostile.fresh(given().adapter, place / "adapter")
    (adapter / "adapter_model.safetensors").unlink()
    for name in ("adapter_model.bin", "optimizer.pt"):
        with zipfile.ZipFile(adapter / name, "w") as archive:
            archive.writestr("archive/data.pkl", opcodes)
            archive.writestr("archive/version", b"3\n")


def _pickled(place: Path) -> None:
    adapter = hostile.fresh(given().adapter, place / "adapter")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"a": hostile._Runs()}, adapter / "adapter_model.bin")


# Bases that a leap cannot be added to --------------------------------------------------------------------------------


def base_cases() -> Iterator[Case]:
    arguments = "leap", "RUN", "--method", "secant", "--as", "merged", "--base", "base", "--out", "OUT"

    changed = partial(changing, "base", "model.safetensors", "config.json")

    def quantised(dtype: torch.dtype) -> Callable[[State], State]:
        return lambda state: {
            key: tensor.to(dtype) if "proj" in key else tensor for key, tensor in state.items()
        }

    def bits4(state: State) -> State:
        """As bitsandbytes stores them: two codes in a byte, and what they stand for beside it."""
        found = {}
        for key, tensor in state.items():
            if "proj.weight" in key:
                found[key] = torch.zeros(tensor.numel() // 2, 1, dtype=torch.uint8)
                found[f"{key}.absmax"] = torch.ones(tensor.numel() // 64 + 1, dtype=torch.uint8)
                found[f"{key}.quant_map"] = torch.ones(16)
            else:
                found[key] = tensor
        return found

    for dtype in (torch.int8, torch.uint8, torch.int32, torch.bool, torch.float8_e4m3fn, torch.complex64):
        yield Case(f"a base of {dtype}", arguments, changed(quantised(dtype)))
    yield Case("4 bits without a word in the config", arguments, changed(bits4))
    for config in (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq"},
        True,
        "awq",
    ):
        yield Case(f"quantization_config {config}", arguments, changed(dict, quantization_config=config))
    yield Case("int8 with scales", arguments, changed(lambda state: {
        **quantised(torch.int8)(state), **{f"{k}_scale": torch.ones(1) for k in state if "proj" in k}}))  # fmt: skip
    yield Case("names of torch.compile", arguments,
               changed(lambda state: {f"_orig_mod.{key}": tensor for key, tensor in state.items()}))  # fmt: skip
    yield Case("names of FSDP", arguments,
               changed(lambda state: {f"_fsdp_wrapped_module.{key}": t for key, t in state.items()}))  # fmt: skip
    yield Case("another model's names", arguments,
               changed(lambda state: {key.replace("q_proj", "qkv"): t for key, t in state.items()}))  # fmt: skip
    yield Case("turned weights", arguments, changed(lambda state: {
        key: (t.T.contiguous() if "down_proj.weight" in key else t) for key, t in state.items()}))  # fmt: skip
    yield Case("other widths", arguments, changed(lambda state: {
        key: (torch.zeros(5, 5) if "q_proj.weight" in key else t) for key, t in state.items()}))  # fmt: skip
    yield Case("flat weights", arguments, changed(lambda state: {
        key: (t.flatten() if "q_proj.weight" in key else t) for key, t in state.items()}))  # fmt: skip
    yield Case("empty weights", arguments, changed(lambda state: {
        key: (t[:0] if "q_proj.weight" in key else t) for key, t in state.items()}))  # fmt: skip
    yield Case("a base of NaN", arguments, changed(lambda state: {
        key: t * float("nan") for key, t in state.items()}))  # fmt: skip
    yield Case("NaN where the leap is not", arguments, changed(lambda state: {
        key: (t * float("nan") if "norm" in key else t) for key, t in state.items()}), (0, 2))  # fmt: skip
    yield Case("nothing in it", arguments, changed(lambda state: {}))
    yield Case("only a pickle", arguments, lambda place: (
        hostile.fresh(given().base, place / "base"), (place / "base/model.safetensors").unlink(),
        torch.save({}, place / "base/pytorch_model.bin")))  # fmt: skip
    for name, index in (
        ("a shard above", {"a": "../../etc/passwd"}),
        ("an absolute shard", {"a": "/dev/zero"}),
        ("a shard that is missing", {"a": "model-9.safetensors"}),
        ("a shard of NUL", {"a": "a\0b"}),
        ("a shard that is a list", {"a": ["model.safetensors"]}),
        ("shards in a list", ["model.safetensors"]),
        ("no shards", {}),
        ("an escape in a shard's name", {"a": UGLY}),
        ("the index itself", {"a": "model.safetensors.index.json"}),
    ):
        yield Case(f"index: {name}", arguments, lambda place, index=index: (
            hostile.fresh(given().base, place / "base"),
            (place / "base/model.safetensors").rename(place / "base/model-1.safetensors"),
            (place / "base/model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))))  # fmt: skip
    yield Case(
        "--out is the base",
        (*arguments[:-1], "base"),
        lambda place: hostile.fresh(given().base, place / "base"),
    )
    yield Case("--out is the run", ("leap", "run", "--method", "secant", "--out", "run"),
               lambda place: given().copy(place), (0, 2))  # fmt: skip
    yield Case("--out is a checkpoint", ("leap", "run", "--method", "secant", "--out", "run/checkpoint-40"),
               lambda place: given().copy(place))  # fmt: skip
    yield Case("--out is a link to a checkpoint", ("leap", "run", "--method", "secant", "--out", "link"),
               lambda place: (given().copy(place), (place / "link").symlink_to("run/checkpoint-40")))  # fmt: skip
    yield Case("--out is here", ("leap", "RUN", "--method", "secant", "--out", "."))
    yield Case("--out is above", ("leap", "RUN", "--method", "secant", "--out", ".."))
    yield Case("--out is /", ("leap", "RUN", "--method", "secant", "--out", "/"))
    for value in (float("nan"), 1e20):
        yield Case(f"modules_to_save of {value}", arguments_of_run(), with_tensors(
            lambda state, value=value: {**state, "base_model.model.lm_head.weight":
                                        torch.full((30, 16), value)}))  # fmt: skip
    yield Case("modules_to_save of nothing", arguments_of_run(), with_tensors(
        lambda state: {**state, "base_model.model.lm_head.weight": torch.zeros(0)}))  # fmt: skip
    yield Case("modules_to_save of another vocabulary", arguments_of_run(), with_tensors(
        lambda state: {**state, "base_model.model.lm_head.weight": torch.ones(31, 16)}))  # fmt: skip
    yield Case("modules_to_save of codes", arguments_of_run(), with_tensors(
        lambda state: {**state, "base_model.model.lm_head.weight": torch.ones(30, 16, dtype=torch.int8)}),
        (2,))  # fmt: skip


def arguments_of_run() -> tuple[str, ...]:
    return "leap", "run", "--method", "secant", "--as", "merged", "--base", "BASE", "--out", "OUT"


# A user's code ------------------------------------------------------------------------------------------------------

REWARDS = {
    "raises": "raise ValueError('no')",
    "raises what has no text": "raise type('E', (Exception,), {'__str__': lambda s: 1 / 0})()",
    "raises text with escapes": "raise ValueError('\\x1b[2J\\n[bold]')",
    "raises a class of BaseException": "raise BaseException('x')",
    "raises an exception group": "raise ExceptionGroup('a', [ValueError('b'), TypeError('c')])",
    "raises from a chain without end": "e = ValueError(); e.__cause__ = e; raise e",
    "raises StopIteration": "raise StopIteration",
    "raises StopAsyncIteration": "raise StopAsyncIteration",
    "asserts": "assert False",
    "exits": "import sys; sys.exit(0)",
    "exits with text": "import sys; sys.exit('bye\\x1b[2J')",
    "exits with 130": "import sys; sys.exit(130)",
    "quits": "quit()",
    "recurses": "return reward(c, a)",
    "divides by zero": "return 1 / 0",
    "NaN": "return float('nan')",
    "infinite": "return float('inf')",
    "None": "return None",
    "too large": "return 2",
    "below zero": "return -1e-9",
    "a huge integer": "return 10 ** 5000",
    "text": "return '1.0 points'",
    "a list": "return [0.5, 0.5]",
    "a list of one for many": "return [1.0] * 1000000",
    "a dictionary": "return {'reward': 1}",
    "a generator": "return (x for x in [1.0])",
    "a tensor": "import torch; return torch.ones(3)",
    "a tensor of NaN": "import torch; return torch.tensor(float('nan'))",
    "an array": "import numpy; return numpy.ones((2, 2))",
    "an object": "return object()",
    "repr raises": "return type('O', (), {'__repr__': lambda s: 1 / 0})()",
    "repr is no text": "return type('O', (), {'__repr__': lambda s: 7})()",
    "repr is long": "return type('O', (), {'__repr__': lambda s: 'x' * 10 ** 7})()",
    "repr exits": "return type('O', (), {'__repr__': lambda s: exit(0)})()",
    "repr has escapes": "return type('O', (), {'__repr__': lambda s: '\\x1b[2J'})()",
    "a float that raises": "return type('O', (), {'__float__': lambda s: 1 / 0})()",
    "a float that exits": "return type('O', (), {'__float__': lambda s: exit(0)})()",
    "a float that is text": "return type('O', (), {'__float__': lambda s: 'x'})()",
    "a subclass of float": "return type('F', (float,), {'__le__': lambda s, o: 1 / 0, '__ge__': None})(9.0)",
    "a class with a property": "return type('O', (), {'__class__': property(lambda s: 1 / 0)})()",
    "a coroutine": "async def f(): return 1.0\n    return f()",
    "prints escapes": "return 2 if print('') else None",
    "changes folder": "import os; os.chdir('/'); return None",
    "sets a limit": "import sys; sys.setrecursionlimit(60); return reward(c, a)",
}  # fmt: skip
FILES = {
    "no function": "x = 1",
    "no examples": "def reward(c, a): return 1.0",
    "one argument": "def examples(): return []\ndef reward(c, a): return 1.0",
    "reward of one argument": "max_completion_length = 2\n"
    "def examples(split): return [(split + str(i), i) for i in range(3)]\ndef reward(c): return 1.0",
    "a syntax error": "def examples(split:\n",
    "a syntax error on an ugly line": "def \x1b[2J(",
    "an indentation error": "def f():\nreturn 1",
    "an import of nothing": "import no_such_module_anywhere",
    "an import of itself": "from nextrl_task_t import examples",
    "NUL": "x = 1\0",
    "bytes of Latin-1": "x = 'caf\udce9'",
    "an unknown encoding": "# -*- coding: nope -*-\nx = 1",
    "exits at import": "import sys; sys.exit(0)",
    "exits at once": "raise SystemExit",
    "a module that raises at every name": "def __getattr__(name): raise RuntimeError(name)",
    "a module that is another": "import sys; sys.modules[__name__] = None",
    "examples without end": "def examples(split):\n    while True: yield ('a', 'b')\ndef reward(c, a): return 1.0",
    "examples of nothing": "def examples(split): return []\ndef reward(c, a): return 1.0",
    "examples of None": "def examples(split): return None\ndef reward(c, a): return 1.0",
    "examples that all are one": "def examples(split): return [('a', 'b')] * 5\ndef reward(c, a): return 1.0",
    "prompts with escapes": "def examples(split): return [(split + '\\x1b[2J', 'b')] * 3 + [(1, 2)]\n"
    "def reward(c, a): return 1.0",
    "an answer that cannot be text": "class A:\n    def __str__(self): raise ValueError\n"
    "def examples(split): return [(split, A())]\ndef reward(c, a): return 1.0",
    "an answer whose text is none": "class A:\n    def __str__(self): return 7\n"
    "def examples(split): return [(split, A())]\ndef reward(c, a): return 1.0",
    "an answer of half a pair": "def examples(split): return [(split, '\\ud800')]\ndef reward(c, a): return 1.0",
    "a prompt of a million words": "def examples(split): return [(split + ' 1' * 10**6, 'b'), (split, 'b')]\n"
    "def reward(c, a): return 1.0",
    "a length of text": "max_completion_length = 'x'\ndef examples(split): return [(split, 1)]\n"
    "def reward(c, a): return 1.0",
    "a length of 10^12": "max_completion_length = 10**12\ndef examples(split): return [(split + str(i), i) for i in "
    "range(3)]\ndef reward(c, a): return 1.0",
    "a row whose keys raise": "class D(dict):\n    def keys(self): raise ValueError\n"
    "def examples(split): return [D(prompt=split, answer=1)]\ndef reward(c, a): return 1.0",
    "a row that is long": "def examples(split): return [[split] * 10**6]\ndef reward(c, a): return 1.0",
}  # fmt: skip


def code_cases() -> Iterator[Case]:
    def task(text: str) -> Callable[[Path], object]:
        return lambda place: (place / "t.py").write_bytes(text.encode("utf-8", "surrogateescape"))

    good = (
        "N = {'train': 1, 'validation': 2, 'test': 3}\nmax_completion_length = 2\n"
        "def examples(split): return [(f'{N[split]}{i}=', i) for i in range(3)]\n"
    )
    calls: tuple[tuple[str, ...], ...] = (
        ("eval", "MODEL", "--task", "t.py", "--prompts", "2"),
        ("leap", "tiny-run", "--alpha", "auto", "--method", "secant", "--base", "MODEL", "--task", "t.py",
         "--out", "OUT"),
    )  # fmt: skip
    for name, body in REWARDS.items():
        yield Case(f"reward {name}", calls[0], task(f"{good}def reward(c, a):\n    {body}\n"), says="t.py")
    for name, body in list(REWARDS.items())[::9]:
        text = f"{good}def reward(c, a):\n    {body}\n"
        yield Case(
            f"reward {name}: leap",
            calls[1],
            lambda place, text=text: (task(text)(place), hostile.fresh(given().adapter.parent, place / "tiny-run")),
            says="t.py",
        )  # fmt: skip
    for name, text in FILES.items():
        says = "64" if "million" in name else "t.py"  # of tokens that the model takes
        yield Case(f"a task file: {name}", calls[0], task(text), says=says)
    yield Case(
        "Ctrl-C in a reward", calls[0], task(f"{good}def reward(c, a): raise KeyboardInterrupt\n"), (130,)
    )
    yield Case("Ctrl-C at import", calls[0], task("raise KeyboardInterrupt"), (130,))
    yield Case("a task file in a folder of an ugly name", ("eval", "tiny", "--task", f"{UGLY_FOLDER}/t.py"),
               lambda place: ((place / UGLY_FOLDER).mkdir(),
                              (place / UGLY_FOLDER / "t.py").write_text("1/0")))  # fmt: skip
    yield Case("no place for their traceback", calls[0], task("1/0"),
               environment=(("TMPDIR", "/nowhere-at-all"),))  # fmt: skip


# Values -------------------------------------------------------------------------------------------------------------


def value_cases() -> Iterator[Case]:
    tail = "--out", "OUT"
    for value in (str(2**64), "-1", "1e3", "0x1", "1_0", " 1", "١", "9" * 5000, "nan", "+-1", "1;2", "true"):
        yield Case(f"--seed {value[:20]}", ("backtest", "RUN", "--methods", "secant", "--seed", value),
                   ends=(0, 2) if value in ("1_0", " 1", "١") else (2,))  # fmt: skip
        yield Case(f"leap --horizon {value[:20]}", ("leap", "RUN", "--method", "secant", *tail, "--horizon", value),
                   ends=(0, 2) if value in ("1_0", " 1", "١") else (2,))  # fmt: skip
    for value in ("nan", "inf", "-inf", "1e400", "1e308", "-1e308", "auto2", "", "0x1p3", "1,5", "1e16"):
        yield Case(f"--alpha={value}", ("leap", "RUN", "--method", "secant", *tail, f"--alpha={value}"))
    for value in ("0", "-1", "100000000000", "1.5", "65537"):
        yield Case(f"--rank={value}", ("leap", "RUN", "--method", "secant", *tail, f"--rank={value}"))
    for value in ("0", "5", "15", "50", "-40", str(10**30)):
        yield Case(f"--at={value}", ("leap", "RUN", "--method", "secant", *tail, f"--at={value}"))
    for value in ("0", "-5", "1", str(10**8), "nan"):
        yield Case(f"--prompts={value}", ("eval", "tiny", f"--prompts={value}"))
    for value in ("0", "nan", "-1", "inf", "1e-320", "1e300"):
        yield Case(f"--temperature={value}", ("eval", "tiny", "--prompts", "2", f"--temperature={value}"))
    for value in ("nan", "-1", "inf", "1e400"):
        yield Case(f"--level={value}", ("leap", "RUN", *tail, "--alpha", "auto", "--base", "tiny", "--task", "chain",
                                        f"--level={value}"))  # fmt: skip
    for value in (
        "",
        ",",
        "secant,",
        ",secant",
        "secant,secant",
        "none",
        "all",
        "next-paper,nope",
        "x" * 10**5,
    ):
        yield Case(f"--methods {value[:20]}", ("backtest", "RUN", "--methods", value),
                   ends=(0, 2) if value in ("secant,", ",secant", "secant,secant", "none") else (2,))  # fmt: skip
    for value in ("", ",", "png,", "png,exe", "../x", "none,png", "PNG"):
        yield Case(f"--plots {value}", ("analyze", "RUN", "--plots", value, *tail),
                   ends=(0, 2) if value in ("png,", "none,png", "PNG") else (2,))  # fmt: skip
    for name in ("p", "p.gif", "p.png.exe", ".png", "p.PNG", "p.png/", "/.png"):
        yield Case(f"--plot {name}", ("backtest", "RUN", "--methods", "secant", "--plot", name),
                   ends=(0, 2) if name in (".png", "p.png/", "/.png") else (2,))  # fmt: skip
    huge = "1" + "0" * 30
    for override in (
        f"train.steps={huge}", "train.steps=0", "train.steps=-1", "train.steps=1.5", "train.steps=true",
        "train.steps=1e7", "train.steps=1000001", "train.save_every=0", f"train.save_every={huge}",
        f"train.prompts_per_step={huge}", "train.prompts_per_step=1e9", "train.completions_per_prompt=1",
        f"train.completions_per_prompt={2**31}", "train.learning_rate=0", "train.learning_rate=1e300",
        "train.learning_rate=-.inf", "train.learning_rate=x", "train.max_completion_length=0",
        f"train.max_completion_length={huge}", "train.temperature=0", "train.temperature=1e300", "lora.r=1e11",
        f"lora.r={huge}", "lora.r=100000000000", "lora.r=65537", "lora.r=true", "lora.alpha=0", "lora.alpha=1e300",
        "lora.target_modules=nope", "lora.target_modules=[]", "lora.target_modules=[1]", "lora.target_modules=*",
        "lora.target_modules=.*", "lora.target_modules=(a+)+$x", "lora.target_modules={a: 1}", f"seed={2**64}",
        "seed=-1", "seed=1.5", "eval.every=0", f"eval.every={huge}", f"eval.prompts={huge}", "eval.prompts=1",
        "leap.every=0", f"leap.every={huge}", f"leap.at=[{huge}]", "leap.alpha=.nan",
        "leap.prompts=1", "leap.controller.nope=1", "leap.controller=[1]", "verl.nope=1", "report_to=[nope]",
        "report_to={a: 1}", "train.optimizer=nope", "train.optimizer=[adamw]", "train.seed=1", "output_dir=1",
        "output_dir=[]", "output_dir=null", "output_dir=~", "task=null", "model=null", "model=", "task=",
    ):  # fmt: skip
        yield Case(f"run {override[:50]}", ("run", "c.yaml", override),
                   lambda place: small_config(place, "algorithm: grpo\n"))  # fmt: skip
    for variable, text in (
        ("COLUMNS", "0"), ("COLUMNS", "-5"), ("COLUMNS", "9" * 30), ("COLUMNS", "x"), ("LINES", "-1"), ("TERM", UGLY),
        ("FORCE_COLOR", "1"), ("HOME", "/nowhere"), ("HOME", ""), ("LANG", "xx_YY.ABC"), ("TMPDIR", "/nowhere"),
        ("MPLCONFIGDIR", "/dev/null/x"), ("XDG_CACHE_HOME", "/dev/null"), ("HF_HOME", "/dev/null/x"),
        ("OMP_NUM_THREADS", "x"), ("MPLBACKEND", "nope"), ("PYTHONHASHSEED", "x"), ("TZ", UGLY),
        ("SOURCE_DATE_EPOCH", "x"),
    ):  # fmt: skip
        # Escapes for colours are what FORCE_COLOR asks for.
        if variable in ("MPLCONFIGDIR", "MPLBACKEND", "SOURCE_DATE_EPOCH"):
            arguments = "backtest", "RUN", "--methods", "secant", "--plot", "p.svg"
        else:
            arguments = "analyze", "RUN", "--plots", "none", *tail
        if variable != "FORCE_COLOR":
            yield Case(f"{variable}={text[:20]!r}", arguments, ends=(0, 2), environment=((variable, text),))


# What a run's folder may be ------------------------------------------------------------------------------------------


def folder_cases() -> Iterator[Case]:
    def make(change: Callable[[Path], object]) -> Callable[[Path], object]:
        return lambda place: change(given().copy(place))

    def log(value: object) -> Callable[[Path], object]:
        return make(lambda run: (run / "checkpoint-40/trainer_state.json").write_bytes(hostile.dumps(value)))

    folders: dict[str, Callable[[Path], object]] = {
        "a checkpoint that is a file": make(lambda run: (run / "checkpoint-50").touch()),
        "a checkpoint that is a link to itself": make(
            lambda run: (run / "checkpoint-50").symlink_to("checkpoint-50")
        ),
        "a checkpoint that is a link to the run": make(lambda run: (run / "checkpoint-50").symlink_to(".")),
        "a checkpoint that is a link to /": make(lambda run: (run / "checkpoint-50").symlink_to("/")),
        "a checkpoint that is a pipe": make(lambda run: os.mkfifo(run / "checkpoint-50")),
        "an empty checkpoint": make(lambda run: (run / "checkpoint-50").mkdir()),
        "two names of one step": make(
            lambda run: shutil.copytree(run / "checkpoint-40", run / "checkpoint-0040")
        ),
        "a negative step": make(lambda run: (run / "checkpoint-40").rename(run / "checkpoint--40")),
        "a step of 10^30": make(lambda run: (run / "checkpoint-40").rename(run / f"checkpoint-{10**30}")),
        "a step of 10^9": make(lambda run: (run / "checkpoint-40").rename(run / f"checkpoint-{10**9}")),
        "steps far apart": make(
            lambda run: (
                (run / "checkpoint-40").rename(run / f"checkpoint-{10**9}"),
                (run / "checkpoint-30").rename(run / "checkpoint-10000019"),
            )
        ),
        "a bad name in bytes": make(
            lambda run: os.rename(
                os.fsencode(run / "checkpoint-40"), os.fsencode(run) + b"/checkpoint-40\xff"
            )
        ),
        "folders in folders": make(lambda run: os.makedirs(run / "/".join(["d"] * 300))),
        "a run inside itself": make(lambda run: (run / "checkpoint-40" / "run").symlink_to(run)),
        "only one checkpoint": make(
            lambda run: [shutil.rmtree(run / f"checkpoint-{step}") for step in (10, 20, 30)]
        ),
        "other ranks half way": make(
            lambda run: lora_runs.write_run(run, lora_runs.lora(r=2), steps=(30, 40))
        ),
        "other modules half way": make(
            lambda run: lora_runs.write_run(run, lora_runs.lora(target_modules=["k_proj"]), steps=(30, 40))
        ),
        "another model half way": make(
            lambda run: lora_runs.write_run(
                run, lora_runs.lora(target_modules=["c_attn"]), kind="gpt2", steps=(30, 40)
            )
        ),
        "all checkpoints the same": make(
            lambda run: [shutil.copy(weights_of(run, 10), weights_of(run, step)) for step in (20, 30, 40)]
        ),
        "adapters of zero": with_tensors(lambda state: {k: t * 0 for k, t in state.items()}),
        "adapters of denormals": with_tensors(lambda state: {k: t * 0 + 1e-42 for k, t in state.items()}),
        "adapters near the bound": with_tensors(lambda state: {k: t * 0 + 9e14 for k, t in state.items()}),
        "one adapter near the bound": with_tensors(
            lambda state: {k: t * 0 + 9e14 for k, t in state.items()}, (30,)
        ),
        "a log that is a number": log(7),
        "a log of lists": log({"log_history": [[1], [2]]}),
        "a log of steps that go back": log({"log_history": [{"step": 9 - i, "reward": i} for i in range(9)]}),
        "a log of one step": log({"log_history": [{"step": 1, "reward": 0.1}] * 1000}),
        "a log of text": log({"log_history": [{"step": "1", "reward": "0.1"}]}),
        "a log of rewards without bound": log(
            {"log_history": [{"step": i, "reward": (-1) ** i * 1e299} for i in range(40)]}
        ),
        "a log of NaN": log({"log_history": [{"step": i, "reward": float("nan")} for i in range(40)]}),
        "a log of ugly keys": log({"log_history": [{"step": i, UGLY: i, "reward": 0.1} for i in range(40)]}),
        "a log of half a pair": log({"log_history": [{"step": 1, "reward\ud800": 1}]}),
    }
    for name, prepare in folders.items():
        for arguments in (
            ("inspect", "run"),
            ("advise", "run"),
            ("backtest", "run", "--methods", "secant,ols"),
            ("analyze", "run", "--out", "OUT", "--plots", "none"),
            ("leap", "run", "--out", "OUT"),
            ("leap", "run", "--out", "OUT", "--method", "rna"),
        ):
            if name.startswith("a log") and arguments[0] in ("inspect", "leap"):
                continue
            yield Case(f"{name}: {arguments[0]}", arguments, prepare, (0, 2))

    def header(text: bytes, length: int | None = None, data: bytes = b"") -> Callable[[Path], object]:
        size = struct.pack("<Q", len(text) if length is None else length)
        return make(lambda run: weights_of(run, 40).write_bytes(size + text + data))

    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    headers: dict[str, Callable[[Path], object]] = {
        "a header of spaces": header(b" " * 1000),
        "a header of brackets": header(b"[" * 5000),
        "a header of one number": header(b"1"),
        "a header longer than the file": header(b"{}", 2**40),
        "a header of 2^64 - 1": header(b"{}", 2**64 - 1),
        "offsets below zero": header(
            json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}).encode()
        ),
        "offsets back to front": header(
            json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}).encode(), None, b"0000"
        ),
        "a shape that overflows": header(
            json.dumps({name: {"dtype": "F32", "shape": [2**33, 2**31], "data_offsets": [0, 0]}}).encode()
        ),
        "a dtype of tomorrow": header(
            json.dumps({name: {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode(), None, b"0"
        ),
        "names twice": header(
            (
                f'{{"{name}":{{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}},'
                f'"{name}":{{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}}}'
            ).encode(),
            None,
            b"0000",
        ),
        "metadata of lists": header(b'{"__metadata__": {"a": [1]}}'),
        "metadata alone": header(b'{"__metadata__": {"a": "1"}}'),
        "bytes after the end": make(
            lambda run: weights_of(run, 40).write_bytes(weights_of(run, 40).read_bytes() + b"x" * 9)
        ),
    }
    for title, prepare in headers.items():
        yield Case(f"{title}: leap", ("leap", "run", "--out", "OUT"), prepare)
        yield Case(f"{title}: advise", ("advise", "run", "--skip-bad-checkpoints"), prepare, (0, 2))


KINDS: dict[str, Callable[[], Iterator[Case]]] = {
    "yaml": yaml_cases,
    "patterns": pattern_cases,
    "paths": path_cases,
    "names": name_cases,
    "full disk": full_disk_cases,
    "adapters": adapter_cases,
    "bases": base_cases,
    "code": code_cases,
    "values": value_cases,
    "folders": folder_cases,
}


@contextlib.contextmanager
def no_larger_files(limit: int | None) -> Iterator[None]:
    """The system refuses each byte of a file beyond `limit`, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft if limit is None else limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def outcome(case: Case, folder: Path) -> str | None:
    """What is wrong with how a case ended, None where nothing is."""
    folder.mkdir()
    os.chdir(folder)
    if case.prepare is not None:
        case.prepare(folder)
    known = {"RUN": str(given().run), "BASE": str(given().base), "MODEL": str(given().model)}
    arguments = [known.get(argument, argument) for argument in case.arguments]
    before, began = hostile.listing(folder), time.monotonic()
    try:
        with mock.patch.dict(os.environ, dict(case.environment)), no_larger_files(case.largest):
            code, out, err = call(arguments)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "".join(traceback.format_exception(error))[-2500:]
    finally:
        os.chdir(folder)
    wrong = verdict(arguments, 2 if code == 130 else code, out, err if code != 130 else "nextrl: stopped")
    if wrong is None and code not in case.ends:
        wrong = f"ended with {code}: {out[-300:]}"
    if wrong is None and code == 2 and (new := sorted(set(hostile.listing(folder)) - set(before))):
        wrong = f"wrote {new[:3]} although it refused"
    if wrong is None and code == 2 and case.says not in err:
        wrong = f"does not say {case.says!r}"
    if wrong is None and time.monotonic() - began > SECONDS:
        wrong = f"took {time.monotonic() - began:.0f} s"
    if wrong is None and any(p.name.startswith("executed") for p in folder.iterdir()):
        wrong = "ran code of an input"
    return None if wrong is None else f"{wrong}\n{err[-1500:]}"


def ended(kind: str, place: Path) -> dict[str, Any]:
    """Run a kind's cases and count how they ended."""
    found: dict[str, Any] = {"cases": 0, "broken": []}
    for number, case in enumerate(KINDS[kind]()):
        found["cases"] += 1
        if wrong := outcome(case, place / str(number)):
            found["broken"].append(f"{kind} {number}, {case.name!r}: {wrong}")
    return found


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Given:
    root = tmp_path_factory.mktemp("good")
    run = root / "run"
    lora_runs.write_run(run, steps=STEPS)
    lora_runs.model().save_pretrained(root / "base")
    model, tokenizer = tiny.load("chain")
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    import peft

    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, lora_runs.lora())
    for step in STEPS:
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data += torch.randn_like(parameter) * 0.01
        adapted.save_pretrained(root / "tiny-run" / f"checkpoint-{step}")
    return Given(run, root / "base", root / "model", root / "tiny-run" / "checkpoint-40")


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_answered_or_refused_in_one_line(
    kind: str, good: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disable_progress_bar()  # as `nextrl.cli.main` does through the environment, before transformers is imported
    (tmp_path / "cases").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("nextrl.checkpoints.patterns.SECONDS", 0.5)
    monkeypatch.setitem(GIVEN, "of this process", good)
    found = hostile.in_child(lambda: ended(kind, tmp_path / "cases"), 900, 3 * hostile.MEMORY)
    assert not found["broken"], f"{len(found['broken'])}\n" + "\n\n".join(found["broken"][:30])
    assert found["megabytes"] < 1000


def test_no_option_that_takes_a_path_is_left_out() -> None:
    from nextrl.cli import values

    there = set()
    for verb in cli.VERBS:
        for name, parameter in inspect.signature(cli._function(verb), eval_str=True).parameters.items():
            for told in getattr(parameter.annotation, "__metadata__", ()):
                if getattr(told, "callback", None) in (values.path, values.place):
                    there.add((verb, name))
    named = {("eval", "task"), ("leap", "task"), ("leap", "base")}  # a name, or a path under the same rules
    assert {*READ, *WRITE} == there | named
    assert len([case for kind in KINDS.values() for case in kind()]) > 700
