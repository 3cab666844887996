"""`nextrl demo` as a command, with the training itself replaced (tests/test_demo.py runs it)."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner, Result

from nextrl.cli import demo
from nextrl.errors import InputError
from nextrl.runs import demo as job
from nextrl.runs.result import parse_result
from synthetic_result import synthetic_result


def call(*arguments: str) -> Result:
    app = Typer()
    app.command()(demo.demo)
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(autouse=True)
def canned(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The job answers at once with a result made from curves; Ctrl-C's handler is put back afterwards."""
    before = signal.getsignal(signal.SIGINT)
    result = parse_result(synthetic_result())
    monkeypatch.setattr(job, "run", lambda out, what, watch: (watch("plain", 3), result)[1])
    yield
    signal.signal(signal.SIGINT, before)


def test_a_table_a_verdict_and_a_page(tmp_path: Path) -> None:
    result = call("--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    flat = " ".join(result.stdout.split())
    expected = synthetic_result()
    assert f"{expected['target']:.3f}" in flat
    assert expected["verdict"].split()[0] in flat
    assert "report.html" in "".join(result.stdout.split())


def test_every_arm_is_a_row() -> None:
    result = synthetic_result()
    view = demo.table(parse_result(result))
    assert view.row_count == len(result["arms"])
    assert view.columns[0].header == "arm"
    assert view.columns[-1].header == "saved"


def test_json_is_the_result_and_nothing_else(tmp_path: Path) -> None:
    result = call("--out", str(tmp_path / "out"), "--json", "--quick")
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout)["target"] == pytest.approx(synthetic_result()["target"])


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(out: Path, what: Any, watch: Any) -> None:
        (out / "arms" / "plain").mkdir(parents=True)
        (out / "arms" / "plain" / "record.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "run", interrupted)
    result = call("--out", str(tmp_path / "out"), "--quick")
    assert result.exit_code == 130
    assert "1 of 9 arms done; the same command goes on from there" in " ".join(result.output.split())


def test_a_claimed_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    error = call("--out", str(tmp_path)).exception
    assert isinstance(error, InputError)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
