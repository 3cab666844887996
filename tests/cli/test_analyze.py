"""`nextrl analyze`: table, JSON, files, bad options."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
import typer
from matplotlib.figure import Figure
from typer.testing import CliRunner

import synthetic_runs as synthetic
from lora_runs import model, write_run
from nextrl.cli.analysis_text import _r2, conclusion
from nextrl.cli.analyze import analyze, save
from nextrl.errors import InputError
from nextrl.judge.analysis import analyze as analyse
from nextrl.trajectory.trajectory import Trajectory

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


@pytest.mark.parametrize("old", [False, True])
def test_on_a_full_disk_all_files_stay_as_they_were(run, tmp_path, monkeypatch, old):
    out, drawn, draw = tmp_path / "a", [], Figure.savefig
    if old:
        out.mkdir()
        (out / "analysis.json").write_text("mine")

    def full(self, *arguments, **options):
        drawn.append(self)
        if len(drawn) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        draw(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", full)
    result = CliRunner().invoke(APP, [str(run), "--out", str(out)])
    assert isinstance(result.exception, InputError)
    assert "No space left on device" in str(result.exception)
    left = {p.name: p.read_text() for p in out.iterdir()} if out.exists() else None
    assert left == ({"analysis.json": "mine"} if old else None)


def test_without_plots_the_numbers_are_written_alone(run, tmp_path):
    result = CliRunner().invoke(APP, [str(run), "--json", "--out", str(tmp_path / "a"), "--plots", "none"])
    assert result.exit_code == 0
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["analysis.json"]


def test_table(run):
    result = CliRunner().invoke(APP, [str(run), "--windows", "10,20", "--updates-per-step", "1"])
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
    short = flat(CliRunner().invoke(APP, [str(run)]).stdout)
    assert "Within the sample, a line through all 6 checkpoints explains R² =" in short
    assert (
        "Out of sample there is no R²: lines through 10 checkpoints are judged on the 5 after them, which takes 15 "
        "checkpoints after the start, and there are 6." in short
    )
    write_run(tmp_path, steps=range(10, 160, 10))
    found = json.loads(CliRunner().invoke(APP, [str(tmp_path), "--json"]).stdout)["linear_ahead"]
    shown = flat(CliRunner().invoke(APP, [str(tmp_path)]).stdout)
    assert "Within the sample, a line through all 15 checkpoints explains R² =" in shown
    assert "Out of sample, lines through 10 checkpoints judged on the 5 after them" in shown
    for component, words in (
        ("u", "u1"),
        ("v", "v1"),
        ("sigma", "sigma_1"),
        ("rank1", "the rank-1 part as a whole"),
    ):
        assert f"{words} {_r2(found[component])}" in shown


def test_a_checkpoint_of_the_start_is_none_to_judge_by(tmp_path):
    write_run(tmp_path, steps=range(10, 150, 10), start=True)
    shown = flat(CliRunner().invoke(APP, [str(tmp_path)]).stdout)
    assert "a line through all 15 checkpoints" in shown
    assert "which takes 15 checkpoints after the start, and there are 14." in shown


def test_a_run_that_stands_still_at_its_end_has_no_linearity_out_of_sample(tmp_path):
    _, deltas = write_run(tmp_path, steps=range(10, 110, 10))
    assert len(deltas) == 10
    for step in range(110, 160, 10):
        shutil.copytree(tmp_path / "checkpoint-100", tmp_path / f"checkpoint-{step}")
    shown = flat(CliRunner().invoke(APP, [str(tmp_path)]).stdout)
    assert "Out of sample there is no R²: nothing changes over the last 5 checkpoints." in shown


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    """Full-weight checkpoints of a model of 16 x 16 matrices and wider ones, and the folder of its base."""
    root, trained = tmp_path_factory.mktemp("full"), model()
    trained.save_pretrained(root / "base")
    torch.manual_seed(0)
    for step in (10, 20):
        for parameter in trained.parameters():
            parameter.data += 0.01 * torch.randn_like(parameter)
        trained.save_pretrained(root / "run" / f"checkpoint-{step}")
    return root / "run", root / "base"


def test_of_full_weights_the_shares_are_said_to_be_of_what_was_kept(full_run, run):
    def shown(*options):
        words = [str(full_run[0]), "--base", str(full_run[1]), *options]
        found = json.loads(CliRunner().invoke(APP, [*words, "--json"]).stdout)
        return (
            found["singular_values_kept"],
            found["nuclear_share"]["global"]["20"],
            CliRunner().invoke(APP, words).stdout,
        )

    caveat = (
        "Both shares are of the 4 largest singular values of each delta, all that is kept of full weights"
    )
    kept, cut, text = shown("--rank", "4")
    assert kept == 4
    assert caveat in flat(text)
    kept, whole, text = shown()  # 16, and no matrix of this model is narrower than that or needs more
    assert kept is None
    assert "Both shares" not in text
    assert cut > whole
    adapter = CliRunner().invoke(APP, [str(run)])
    assert "Both shares" not in adapter.stdout
    assert json.loads(CliRunner().invoke(APP, [str(run), "--json"]).stdout)["singular_values_kept"] is None


def test_lines_that_fail_say_in_how_many_modules():
    assert _r2({"median": -37.6, "below_0": 0.75}) == "-38 (75% of modules below 0)"
    assert _r2({"median": 0.914, "below_0": 0.0}) == "0.91"


@pytest.mark.parametrize(
    "settings", ["text.usetex: True\ntext.latex.preamble: \\nonsense\n", "font.size: 1000\n"]
)
@pytest.mark.parametrize("verb", ["analyze", "backtest"])
def test_a_user_s_plot_settings_spoil_no_plot(run, tmp_path, settings, verb):
    (tmp_path / "matplotlibrc").write_text(settings)
    where = ["--out", "a"] if verb == "analyze" else ["--methods", "secant", "--plot", "a/b.png"]
    done = subprocess.run(
        [sys.executable, "-m", "nextrl", verb, str(run), *where],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "nonsense"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "a").glob("*.png"))


def test_a_program_s_own_plot_settings_are_as_before(run, tmp_path):
    from matplotlib import rc_context, rcParams

    with rc_context({"text.usetex": True, "font.size": 7.0}):
        before = dict(rcParams)
        save(analyse(Trajectory.load(run)), tmp_path, ["svg"])
        assert dict(rcParams) == before


@pytest.mark.parametrize(
    ("full", "options", "says"),
    [
        (False, ["--rank", "4"], "--rank is of full-weight checkpoints (--base): leave it out"),
        (True, ["--layout", "trl"], "--layout is of a LoRA run"),
        (True, ["--allow-pickle"], "--allow-pickle is of a LoRA run"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(full_run, run, full, options, says):
    words = [str(full_run[0]), "--base", str(full_run[1])] if full else [str(run)]
    result = CliRunner().invoke(APP, [*words, *options])
    assert isinstance(result.exception, InputError)
    assert says in str(result.exception)


@pytest.mark.parametrize("moved", [0.0, 1.0])
def test_a_run_that_does_not_move_has_no_figures_that_are_none(tmp_path, moved):
    """Rewards that are all the same leave no gradient: from the start, or since a first step."""
    synthetic.write(tmp_path, lambda t, p, q, noise: moved * p, lambda t: 0.0)
    said = flat(CliRunner().invoke(APP, [str(tmp_path)]).stdout)
    assert "No regime: the adapter does not move" in said
    assert not re.search(r"\bnan\b|nan%", said)


def test_rounding_is_no_regime_here_either():
    """`advise` refuses to judge such a run, and was sent its reader by a regime measured of the rounding."""
    g = torch.Generator().manual_seed(3)
    a, b, drift = (torch.randn(size, generator=g) for size in ((4, 64), (64, 4), (64, 4)))
    steps = range(0, 301, 10)
    stored = [{"w": ((a / 8).bfloat16(), (0.03 * b + t * 1e-6 * drift).bfloat16())} for t in steps]
    traj = Trajectory.from_factors(steps, stored)
    said = conclusion(traj, 0.9)
    assert said[0].startswith("No regime: stored in bfloat16, whose rounding is")
