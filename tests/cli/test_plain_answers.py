"""What a verb says where it does something else than it was asked, or nothing: never in silence."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_runs import write_run
from nextrl import cli
from nextrl.checkpoints.atomic import write_json
from nextrl.runs.layout import RESULT
from synthetic_result import synthetic_result

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """(exit code, stdout, stderr) of the command line, white space made one space."""

    def called(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nextrl", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = (" ".join(text.split()) for text in capsys.readouterr())
        return int(ended.value.code or 0), out, err

    return called


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    write_run(root, steps=range(10, 60, 10))
    return root


@pytest.mark.parametrize(("asked", "measured"), [(7, 10), (15, 10), (16, 20), (10, 10)])
def test_a_backtest_s_title_has_the_steps_that_it_measured(
    call: Call, run: Path, asked: int, measured: int
) -> None:
    code, out, err = call("backtest", run, "--methods", "secant", "--horizon", asked)
    assert (code, out.split(",")[0]) == (0, f"{measured} steps ahead")
    said = f"--horizon {asked}: checkpoints are 10 steps apart, so {measured} steps are measured"
    assert err == ("" if asked == measured else said)


def test_a_horizon_below_half_a_spacing_is_refused(call: Call, run: Path) -> None:
    refused = call("backtest", run, "--methods", "secant", "--horizon", 1)
    assert refused == (2, "", "nextrl: --horizon 1: checkpoints are 10 steps apart; give a multiple of 10")


def test_advice_that_writes_nothing_says_so(call: Call, run: Path, tmp_path: Path) -> None:
    code, out, _ = call("advise", run, "--out", tmp_path / "out")
    assert code == 0
    assert "Nothing was written to" in out
    assert "the advice is not to average." in out
    assert "Next:" in out
    assert not (tmp_path / "out").exists()
    assert "Nothing was written" not in call("advise", run)[1]


def test_a_list_of_no_checkpoints_is_refused(call: Call, run: Path, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("{}")
    code, out, err = call("inspect", tmp_path / "list.json")
    assert (code, out) == (2, "")
    assert "list.json: names no checkpoint; write steps and folders" in err
    (tmp_path / "list.json").write_text(f'{{"10": "{run}/checkpoint-10", "10": "{run}/checkpoint-20"}}')
    code, out, err = call("inspect", tmp_path / "list.json")
    assert (code, out) == (2, "")
    assert "key '10' is there twice" in err


def test_one_problem_is_counted_as_one(call: Call, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "checkpoint-50" / "adapter_model.safetensors").write_bytes(b"xx")
    assert "1 problem -" in call("inspect", tmp_path / "run")[2]


def test_a_config_of_an_unknown_task_is_refused_before_it_is_printed(call: Call, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("task: nope\n")
    code, out, err = call("run", tmp_path / "c.yaml", "--print-config")
    assert (code, out) == (2, "")
    assert "unknown task 'nope'" in err


def test_a_read_only_page_is_left_and_a_link_followed(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write_json(folder / RESULT, synthetic_result())
    page = folder / "report.html"
    page.write_text("mine")
    page.chmod(0o444)
    code, _, err = call("report", folder)
    assert (code, page.read_text()) == (2, "mine")
    assert "report.html: is read-only; make it writable, or remove it" in err
    page.unlink()
    page.symlink_to(tmp_path / "elsewhere.html")
    assert json.loads(call("report", folder, "--json")[1])["bytes"] > 1000
    assert page.is_symlink()
    assert "<html" in (tmp_path / "elsewhere.html").read_text()
