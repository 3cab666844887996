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
from safetensors.torch import load_file, save_file
from typer import Typer
from typer.testing import CliRunner

import synthetic_runs as synthetic
from nextrl.cli.advise import advise
from nextrl.cli.backtest import backtest
from nextrl.cli.leap import leap as leap_verb
from nextrl.errors import InputError
from nextrl.judge.backtest import backtest as run_backtest
from nextrl.leaps.leap import leap
from nextrl.trajectory.trajectory import Trajectory


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


def test_backtest_of_one_origin_has_no_spread(run_dir: Path) -> None:
    options = (str(run_dir), "--horizon", "20", "--methods", "secant,ols", "--origins", "1")
    shown = call(backtest, *options).stdout
    assert "±" not in shown
    assert "one origin" in shown
    out = json.loads(call(backtest, *options, "--json").stdout)
    assert set(out["methods"]["secant"]["spread"].values()) == {None}
    for result in out["methods"].values():
        assert len(result["origins"]) == 1
    assert "±" in call(backtest, *options[:-1], "2").stdout
    one = run_backtest(Trajectory.load(run_dir), 20, "secant", max_origins=1)
    assert "±" not in one._repr_html_()
    assert "over one origin" in one.reason


def test_a_method_s_own_parameters_reach_the_verbs(run_dir: Path, tmp_path: Path) -> None:
    out = ("--horizon", "20", "--out", str(tmp_path / "out"), "--json")
    made = {}
    for rank in ("1", "2"):
        done = call(leap_verb, str(run_dir), "--method", "window", "--param", f"rank={rank}", *out)
        assert done.exit_code == 0, done.output
        made[rank] = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert any(not made["1"][key].equal(made["2"][key]) for key in made["1"])
    skills = []
    for rank in ("1", "2"):
        named = ("--horizon", "20", "--methods", "window,secant", "--param", f"rank={rank}", "--json")
        skills.append(json.loads(call(backtest, str(run_dir), *named).stdout)["methods"])
    assert skills[0]["window"]["skill"] != skills[1]["window"]["skill"]
    assert skills[0]["secant"] == skills[1]["secant"]


@pytest.mark.parametrize(
    ("verb", "options", "says"),
    [
        (leap_verb, ("--param", "rank=2"), "name it with --method"),
        (leap_verb, ("--method", "linear", "--param", "foo=1"), "has no parameter 'foo'; it takes none"),
        (leap_verb, ("--method", "window", "--param", "rank"), "must be key=value"),
        (leap_verb, ("--method", "window", "--param", "rank=x"), "rank must be a whole number, not 'x'"),
        (backtest, ("--param", "rank=2"), "name them with --methods"),
        (backtest, ("--methods", "linear,window", "--param", "foo=1"), "linear: none; window: rank"),
    ],
)
def test_a_parameter_that_nothing_reads_is_refused(
    verb, options: tuple[str, ...], says: str, run_dir: Path, tmp_path: Path
) -> None:
    out = ("--out", str(tmp_path / "out")) if verb is leap_verb else ()
    done = call(verb, str(run_dir), *options, *out)
    assert isinstance(done.exception, InputError)
    assert says in str(done.exception)
    assert not (tmp_path / "out").exists()


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


def test_leap_takes_the_method_s_own_alpha_and_says_which(run_dir: Path, tmp_path: Path) -> None:
    def alphas(*options: str) -> tuple[float, str]:
        words = (str(run_dir), "--horizon", "20", "--out", str(tmp_path / "leapt"), *options)
        return json.loads(call(leap_verb, *words, "--json").stdout)["alpha"], call(leap_verb, *words).stdout

    alpha, said = alphas("--method", "next-paper")
    assert (alpha, "20 steps at alpha 1.5:" in said) == (1.5, True)
    alpha, said = alphas("--method", "next-paper", "--alpha", "1")
    assert (alpha, "20 steps at alpha 1:" in said) == (1.0, True)
    alpha, said = alphas("--method", "secant")
    assert (alpha, "20 steps at alpha 1:" in said) == (1.0, True)


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
    options = (str(copy), "--horizon", "20", "--methods", "secant", "--json")
    assert isinstance(call(backtest, *options).exception, InputError)
    assert "left out" in call(backtest, *options, "--skip-bad-checkpoints").stderr
    assert "left out" in result.stderr
    assert (out / "adapter_model.safetensors").exists()


def test_advise_leaves_broken_checkpoints_out_and_reads_pickles_only_when_told(
    run_dir: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    broken = copy / "checkpoint-50" / "adapter_model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-10])
    assert "checkpoint-50" in str(call(advise, str(copy)).exception)
    result = call(advise, str(copy), "--skip-bad-checkpoints", "--json")
    assert result.exit_code == 0, result.output
    assert "left out" in result.stderr
    assert len(json.loads(result.stdout)["skipped"]) == 1
    broken.unlink()
    torch.save(load_file(copy / "checkpoint-40" / broken.name), broken.with_name("adapter_model.bin"))
    assert "--allow-pickle" in str(call(advise, str(copy)).exception)
    assert call(advise, str(copy), "--allow-pickle").exit_code == 0


def test_leap_says_that_full_weights_are_no_adapters(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoint-10"
    folder.mkdir(parents=True)
    save_file({"a.weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    result = call(leap_verb, str(tmp_path / "run"), "--base", "tiny", "--out", str(tmp_path / "out"))
    assert "holds full-weight checkpoints; leap writes LoRA adapters" in str(result.exception)


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


def test_what_is_broken_after_the_checkpoint_that_is_leapt_from_is_not_read(
    run_dir: Path, tmp_path: Path
) -> None:
    copy, out = tmp_path / "run", tmp_path / "leapt"
    shutil.copytree(run_dir, copy)
    (copy / "checkpoint-80" / "adapter_model.safetensors").write_bytes(b"")
    named = ("--method", "secant", "--out", str(out))
    assert call(leap_verb, str(copy), "--at", "80", *named).exit_code != 0
    result = call(leap_verb, str(copy), "--at", "70", *named)
    assert result.exit_code == 0, result.exception
    assert json.loads((out / "nextrl.json").read_text())["from_step"] == 70


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "nxt"), "unknown method"),
        (("--method", "secant", "--horizon", "999"), "would work"),
        (("--alpha", "1000"), "alpha must be"),
        (("--at", "7"), "no checkpoint at step 7"),
        (("--as", "merged"), "needs --base"),
        (("--rank", "0"), "whole number from 1"),
        (("--prompts", "32"), "--prompts is of a search (--alpha auto): leave it out"),
        (("--level", "0"), "--level is of a search"),
        (("--device", "cpu"), "--device is of a search"),
        (("--private",), "--private is of --push-to-hub: leave it out"),
        (("--method", "window", "--param", "rank=0"), "rank must be greater than or equal to 1"),
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
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1


def still(folder: Path, moving: bool) -> Path:
    """Four checkpoints in which nothing moves, or only q_proj does."""
    modules = {"layers.0.q_proj": (6, 5), "layers.0.up_proj": (7, 5)}
    for step in (10, 20, 30, 45):
        state = {}
        for name, (m, n) in modules.items():
            amount = step / 100 if moving and "q_proj" in name else 0.0
            state[f"base_model.model.{name}.lora_A.weight"] = torch.ones(2, n)
            ramp = torch.arange(2.0 * m).reshape(m, 2) * amount
            state[f"base_model.model.{name}.lora_B.weight"] = ramp
        out = folder / f"checkpoint-{step}"
        out.mkdir(parents=True)
        save_file(state, out / "adapter_model.safetensors")
        (out / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    return folder


@pytest.mark.parametrize("method", ["factors", "secant", "linear", "relex", "dmd", "lawa", "window"])
def test_a_run_that_never_moves_is_refused(tmp_path: Path, method: str) -> None:
    options = ("--method", method, "--horizon", "20", "--out", str(tmp_path / "out"))
    result = call(leap_verb, str(still(tmp_path / "run", moving=False)), *options)
    assert isinstance(result.exception, InputError), result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["factors", "secant", "linear", "ols", "relex-pinned", "lawa"])
def test_a_module_that_never_moves_stays_and_uneven_steps_are_taken(tmp_path: Path, method: str) -> None:
    run, out = still(tmp_path / "run", moving=True), tmp_path / "out"
    result = call(leap_verb, str(run), "--method", method, "--horizon", "15", "--out", str(out))
    assert result.exit_code == 0, result.exception
    state = load_file(out / "adapter_model.safetensors")
    assert not state["base_model.model.layers.0.up_proj.lora_B.weight"].any()
    assert state["base_model.model.layers.0.q_proj.lora_B.weight"].any()
