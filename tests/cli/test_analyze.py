"""`nextrl analyze`: table, JSON, files, bad options."""

import json

import pytest
import typer
from typer.testing import CliRunner

from lora_runs import write_run
from nextrl.cli.analysis_text import _r2
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
    assert "Share of energy in the leading directions of each delta\n" in result.stdout
    assert "Directions: cosines with the checkpoint, or window, before\n" in result.stdout
    assert "…" not in result.stdout  # nothing is cut at the 80 columns of a pipe
    assert "excess over Adam's memory" in result.stdout


@pytest.mark.parametrize("options", [["--windows", "a"], ["--windows", "0"], ["--plots", "gif"]])
def test_bad_options_are_input_errors_and_write_nothing(run, tmp_path, options):
    result = CliRunner().invoke(APP, [str(run), "--out", str(tmp_path / "a"), *options])
    assert isinstance(result.exception, InputError)
    assert not (tmp_path / "a").exists()


def flat(text):
    return " ".join(text.split())


def test_two_shares_of_the_first_direction_are_told_apart(run):
    found = json.loads(CliRunner().invoke(APP, [str(run), "--json"]).stdout)
    energy, nuclear = found["energy_share"]["global"]["1"]["60"], found["nuclear_share"]["global"]["60"]
    assert f"{energy:.0%}" != f"{nuclear:.0%}"
    shown = flat(CliRunner().invoke(APP, [str(run)]).stdout)
    assert (
        f"At step 60 the first direction has {energy:.0%} of the energy (sigma_1² over the sum of squares"
        in shown
    )
    assert f"and {nuclear:.0%} of the sum of singular values (E1 = sigma_1 over their sum" in shown


def test_linearity_out_of_sample_has_a_sentence_where_there_are_checkpoints_enough(run, tmp_path):
    assert "Out of sample" not in CliRunner().invoke(APP, [str(run)]).stdout
    write_run(tmp_path, steps=range(10, 160, 10))
    found = json.loads(CliRunner().invoke(APP, [str(tmp_path), "--json"]).stdout)["linear_ahead"]
    shown = flat(CliRunner().invoke(APP, [str(tmp_path)]).stdout)
    assert "lines through 10 checkpoints judged on the 5 after them" in shown
    for component, words in (
        ("u", "u1"),
        ("v", "v1"),
        ("sigma", "sigma_1"),
        ("rank1", "the rank-1 part as a whole"),
    ):
        assert f"{words} {_r2(found[component])}" in shown


def test_lines_that_fail_say_in_how_many_modules():
    assert _r2({"median": -37.6, "below_0": 0.75}) == "-38 (75% of modules below 0)"
    assert _r2({"median": 0.914, "below_0": 0.0}) == "0.91"
