"""`nextrl analyze`: table, JSON, files, bad options."""

import json

import pytest
import typer
from typer.testing import CliRunner

from lora_runs import write_run
from nextrl.cli.analyze import analyze
from nextrl.errors import InputError

APP = typer.Typer()
APP.command()(analyze)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    write_run(root, steps=range(10, 70, 10))
    return root


def test_json_is_one_object_and_files_are_written(run, tmp_path):
    result = CliRunner().invoke(APP, [str(run), "--json", "--out", str(tmp_path / "a"), "--plots", "png,svg"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads((tmp_path / "a" / "analysis.json").read_text())
    names = {p.name for p in (tmp_path / "a").iterdir()}
    assert {"dominance.png", "modules.svg", "persistence.png", "path.png", "directions.svg"} <= names


def test_without_plots_the_numbers_are_written_alone(run, tmp_path):
    result = CliRunner().invoke(APP, [str(run), "--json", "--out", str(tmp_path / "a"), "--plots", "none"])
    assert result.exit_code == 0
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["analysis.json"]


def test_table(run):
    result = CliRunner().invoke(APP, [str(run), "--windows", "10,20"])
    assert result.exit_code == 0
    assert "Share of energy" in result.stdout
    assert "Directions" in result.stdout
    assert "…" not in result.stdout  # nothing is cut at the 80 columns of a pipe
    assert "excess over Adam's memory" in result.stdout


@pytest.mark.parametrize("options", [["--windows", "a"], ["--windows", "0"], ["--plots", "gif"]])
def test_bad_options_are_input_errors_and_write_nothing(run, tmp_path, options):
    result = CliRunner().invoke(APP, [str(run), "--out", str(tmp_path / "a"), *options])
    assert isinstance(result.exception, InputError)
    assert not (tmp_path / "a").exists()
