"""`backtest`, `advise` and `leap` as commands: the JSON contract, exit codes, nothing written on bad
input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer import Typer
from typer.testing import CliRunner

import synthetic_runs as synthetic
from nextrl.cli.advise import advise
from nextrl.cli.backtest import backtest
from nextrl.cli.leap import leap as leap_verb
from nextrl.errors import InputError
from nextrl.leap import leap


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen checkpoints of a drifting run."""
    folder = tmp_path_factory.mktemp("run")
    config = {"target_modules": ["q_proj", "up_proj"]}
    traj = synthetic.run(synthetic.walk(2.0), adapter_config=config)
    for step in traj.steps:
        leap(traj, "none", at=step).save_adapter(folder / f"checkpoint-{step}")
    return folder


def call(verb, *arguments: str):
    app = Typer()
    app.command()(verb)
    return CliRunner().invoke(app, list(arguments))


def test_backtest_json(run_dir: Path) -> None:
    result = call(
        backtest, str(run_dir), "--horizon", "20", "--methods", "secant,lawa", "--by-type", "--json"
    )
    assert result.exit_code == 0, result.output
    out = json.loads(result.stdout)
    assert out["horizon"] == 20
    assert set(out["methods"]) == {"none", "secant", "lawa"}
    assert out["recommended"] in out["methods"]
    assert set(out["by_type"]["secant"]) == {"q_proj", "up_proj"}


def test_backtest_table_and_plot(run_dir: Path, tmp_path: Path) -> None:
    plot = tmp_path / "scores.svg"
    result = call(
        backtest, str(run_dir), "--horizon", "20", "--methods", "secant", "--by-type", "--plot", str(plot)
    )
    assert result.exit_code == 0, result.output
    assert "recommended:" in result.stdout
    assert plot.exists()


def test_advise_json_and_text(run_dir: Path) -> None:
    out = json.loads(call(advise, str(run_dir), "--json").stdout)
    assert out["regime"] in ("signal", "mixed", "noise")
    assert out["advice"] in ("leap", "raise_lr", "continue", "average", "lower_lr")
    assert set(out["persistence"]) == {"10", "20", "50"}
    assert isinstance(out["reasons"], list)
    assert "Persistence" in call(advise, str(run_dir)).stdout


def test_leap_json(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "leapt"
    result = call(
        leap_verb, str(run_dir), "--method", "secant", "--horizon", "20", "--at", "100", "--rank", "3",
        "--out", str(out), "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert {"method", "from_step", "horizon", "alpha", "out", "modules", "seconds"} <= set(facts)
    assert (facts["method"], facts["from_step"], facts["horizon"]) == ("secant", 100, 20)
    state = load_file(out / "adapter_model.safetensors")
    assert all(t.shape[0] == 3 for name, t in state.items() if "lora_A" in name)


def test_leap_leaves_broken_checkpoints_out_only_when_told(run_dir: Path, tmp_path: Path) -> None:
    copy, out = tmp_path / "run", tmp_path / "leapt"
    shutil.copytree(run_dir, copy)
    broken = copy / "checkpoint-50" / "adapter_model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-10])
    refused = call(leap_verb, str(copy), "--out", str(out), "--json")
    assert isinstance(refused.exception, InputError)
    assert "checkpoint-50" in str(refused.exception)
    assert not out.exists()
    result = call(leap_verb, str(copy), "--skip-bad-checkpoints", "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["skipped"]) == 1
    assert "left out" in result.stderr
    assert (out / "adapter_model.safetensors").exists()


def test_leap_reads_a_pickle_only_when_told(run_dir: Path, tmp_path: Path) -> None:
    copy, out = tmp_path / "run", tmp_path / "leapt"
    shutil.copytree(run_dir, copy)
    stored = copy / "checkpoint-50" / "adapter_model.safetensors"
    torch.save(load_file(stored), stored.with_name("adapter_model.bin"))
    stored.unlink()
    refused = call(leap_verb, str(copy), "--out", str(out))
    assert "--allow-pickle" in str(refused.exception)
    assert not out.exists()
    result = call(leap_verb, str(copy), "--allow-pickle", "--out", str(out))
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "nxt"), "unknown method"),
        (("--method", "secant", "--horizon", "999"), "would work"),
        (("--alpha", "1000"), "alpha must be"),
        (("--at", "7"), "no checkpoint at step 7"),
        (("--as", "merged"), "needs --base"),
        (("--rank", "0"), "at least 1"),
    ],
)
def test_bad_input_writes_nothing(
    run_dir: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    out = tmp_path / "leapt"
    result = call(leap_verb, str(run_dir), "--out", str(out), *arguments)
    assert isinstance(result.exception, InputError)
    assert words in str(result.exception)
    assert not out.exists()


def test_exit_code_two_and_one_line(run_dir: Path) -> None:
    command = [sys.executable, "-c", "from nextrl.cli import main; main()", "backtest", str(run_dir)]
    done = subprocess.run(
        [*command, "--horizon", "900", "--json"], capture_output=True, text=True, check=False
    )
    if "No such command" in done.stderr or "ModuleNotFoundError" in done.stderr:
        pytest.skip("another verb of the command line is being written")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
