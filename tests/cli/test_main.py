"""`nextrl` itself: help of every verb, and bad input that is one line on stderr, exit code 2 and nothing written."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nextrl
from nextrl import cli
from nextrl.checkpoints import READERS
from nextrl.cli.completion import OPTIONS
from nextrl.errors import InputError
from nextrl.extrapolators.base import METHODS
from nextrl.registry import either
from nextrl.runs.config import RunConfig


def call(
    *arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["nextrl", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def nextrl_call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    return lambda *arguments: call(*arguments, capsys=capsys, monkeypatch=monkeypatch)


def test_the_overview_names_every_verb_with_its_summary(nextrl_call) -> None:
    code, out, _ = nextrl_call("--help")
    assert code == 0
    for verb, summary in cli.VERBS.items():
        assert verb in out
        assert summary.split()[0] in out
    assert nextrl_call()[1] == out


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_explains_itself_with_an_example(nextrl_call, verb: str) -> None:
    code, out, _ = nextrl_call(verb, "--help")
    assert code == 0
    assert f"Example: nextrl {verb}" in " ".join(out.split())
    assert "--json" in out


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_the_overview_s_line_is_the_verb_s_own(verb: str) -> None:
    module = importlib.import_module(f"nextrl.cli.{verb}")
    function = getattr(module, "evaluate_command" if verb == "eval" else verb)
    assert (function.__doc__ or "").splitlines()[0] == cli.VERBS[verb]


def test_a_help_lists_the_layouts_and_the_methods_that_are_there(nextrl_call) -> None:
    said = " ".join(nextrl_call("backtest", "--help")[1].split())
    assert f"{either(READERS)}, where the automatic choice is wrong" in said
    slow = [name for name in METHODS if METHODS.get(name).tags.slow]
    assert f"default: all but {', '.join(slow)}." in said


def test_python_m_nextrl_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nextrl", "fly"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_one_name_in_code_for_one_option(verb: str) -> None:
    module = importlib.import_module(f"nextrl.cli.{verb}")
    function = getattr(module, "evaluate_command" if verb == "eval" else verb)
    named = {name: kind for name, kind in function.__annotations__.items() if "json" in name}
    assert named == {"as_json": "AsJson"}


@pytest.mark.parametrize("verb", ["inspect", "analyze", "backtest", "advise", "leap"])
def test_every_verb_that_reads_a_run_reads_it_by_the_same_options(verb: str) -> None:
    given = getattr(importlib.import_module(f"nextrl.cli.{verb}"), verb).__annotations__
    wanted = {"run": "RunFolder", "layout": "Layout", "allow_pickle": "AllowPickle"}
    wanted["skip_bad_checkpoints"] = "SkipBadCheckpoints"
    assert {name: given[name] for name in wanted} == wanted


def test_nothing_is_fetched_unless_the_user_says_so(nextrl_call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    nextrl_call("--version")
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    nextrl_call("--version")
    assert os.environ["HF_HUB_OFFLINE"] == "0"


def test_version(nextrl_call) -> None:
    assert nextrl_call("--version")[:2] == (0, nextrl.__version__ + "\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("fly",),
        ("--colour",),
        ("demo", "--seed", "-1"),
        ("demo", "--seed", "many"),
        ("demo", "--steps"),
        ("demo", "extra"),
        ("inspect",),
        ("inspect", "no-such-folder"),
        ("eval", "tiny", "--task", "chess"),
        ("eval", "tiny", "--prompts", "1"),
        ("eval", "no-such-model"),
        ("eval", "tiny", "--adapter", "no-such-adapter"),
        ("report", "no-such-folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    nextrl_call, arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = nextrl_call(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("nextrl: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_error_over_several_lines_becomes_one(
    nextrl_call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: object) -> None:
        raise InputError("first\n  second")

    monkeypatch.setattr("nextrl.cli.report.read_result", broken)
    assert nextrl_call("report", str(tmp_path))[2] == "nextrl: first second\n"


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried\nto"),
        RuntimeError("can't allocate memory"),
    ],
)
def test_too_little_memory_is_one_line_that_says_what_to_give_less_of(
    nextrl_call, monkeypatch: pytest.MonkeyPatch, verb: str, error: Exception
) -> None:
    def short(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(cli, "build", lambda verbs: short)
    code, out, err = nextrl_call(verb)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("nextrl: out of memory: ")
    assert {o for o in re.findall(r"--[a-z-]+", err)} <= set(OPTIONS[verb].split())
    for section, key in re.findall(r"\b([a-z]+)\.([a-z_]+)", err):
        assert key in RunConfig.model_fields[section].annotation.model_fields


def test_a_bug_keeps_its_traceback(nextrl_call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("nextrl.cli.report.read_result", broken)
    monkeypatch.setattr(sys, "argv", ["nextrl", "report", str(tmp_path)])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_the_overview_does_not_wait_for_the_trainer() -> None:
    code = (
        "import sys; sys.argv = ['nextrl', '--help']\n"
        "from nextrl.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit('trl' in sys.modules or 'transformers.trainer' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
