"""`nextrl report`: the page from a folder's result.json, and one line for every folder that has none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from nextrl.cli.report import report
from nextrl.errors import InputError
from synthetic_result import synthetic_result

app = typer.Typer()
app.command()(report)
run = CliRunner().invoke


def test_the_page_is_rebuilt(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(synthetic_result()))
    done = run(app, [str(tmp_path), "--json"])
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    page = tmp_path / "report.html"
    assert said == {"report": str(page), "bytes": page.stat().st_size}
    page.write_text("old")
    assert "report.html" in run(app, [str(tmp_path)]).stdout
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "holds no result.json"),
        ("{", "not readable as JSON"),
        ("[]", "not an object"),
        ("{}", "no arms"),
        ("\udcff", "not UTF-8 text"),
    ],
)
def test_bad_folders(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "result.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    done = run(app, [str(tmp_path)])
    assert isinstance(done.exception, InputError)
    assert says in str(done.exception)
    assert "\n" not in str(done.exception)
    assert not (tmp_path / "report.html").exists()


def test_only_a_run_of_ours_has_not_finished(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    (ours / "trajectory").mkdir(parents=True)
    (ours / "config.yaml").write_text("task: chain\n")
    (theirs / "checkpoint-10").mkdir(parents=True)
    (theirs / "config.yaml").write_text("of: another trainer\n")
    assert "run the same command again" in str(run(app, [str(ours)]).exception)
    said = str(run(app, [str(theirs)]).exception)
    assert "not finished" not in said
    assert "a folder that `nextrl demo` or `nextrl run` wrote" in said


def test_no_such_folder(tmp_path: Path) -> None:
    done = run(app, [str(tmp_path / "nowhere")])
    assert isinstance(done.exception, InputError)
    assert "is not a folder" in str(done.exception)


def test_help_has_an_example() -> None:
    assert "nextrl report demo-out" in run(app, ["--help"]).stdout
