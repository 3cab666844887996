"""`nextrl run` as a command: what it prints, how it refuses, and how it ends on SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from peft import PeftModel

from nextrl import cli
from nextrl.runs import run as job
from nextrl.runs.layout import CONFIG
from nextrl.runs.run import Outcome
from nextrl.tasks.bases import tiny

SMALL: dict[str, Any] = {
    "train": {"steps": 4, "save_every": 2, "prompts_per_step": 4, "completions_per_prompt": 4},
    "leap": {"every": 2},
    "eval": {"every": 4, "prompts": 20},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "output_dir": str(tmp_path / "out")}))
    return path


def call(
    *arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["nextrl", "run", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture
def nextrl_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda *arguments: call(*arguments, capsys=capsys, monkeypatch=monkeypatch)


def test_a_run_and_the_same_command_again(nextrl_run: Any, config: Path, tmp_path: Path) -> None:
    code, out, _ = nextrl_run(str(config))
    assert code == 0
    assert "The run went from" in " ".join(out.split())
    assert str(tmp_path / "out" / "final") in out
    PeftModel.from_pretrained(tiny.load("chain")[0], str(tmp_path / "out" / "final"))
    for folder in ("final", "trajectory/checkpoint-2", "trajectory/checkpoint-4"):
        settings = json.loads((tmp_path / "out" / folder / "adapter_config.json").read_text())
        assert (
            settings["base_model_name_or_path"] == "tiny"
        )  # as the config has it, and no folder of this machine
    card = ModelCard.load(tmp_path / "out" / "final" / "README.md")
    assert "| base model | tiny |" in card.text
    assert "| steps | 4 |" in card.text
    assert "bases.load('tiny', 'chain')" in card.text
    assert "from_pretrained(base, 'final')" in card.text
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Every evaluation" in page
    assert "Target:" not in page
    assert "not reached" not in page
    code, out, _ = nextrl_run(str(config))
    assert code == 0
    assert "is finished; nothing was trained" in " ".join(out.split())
    code, out, _ = nextrl_run(str(config), "--json")
    assert (code, out.count("\n")) == (0, 1)
    assert json.loads(out)["arms"]["run"]["steps"] == [0, 4]
    code, out, err = nextrl_run(str(config), "seed=1")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "different in seed" in err


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"accuracy": [0.5, None], "se": [None, None], "completions": [None]}, 0, "–"),
        ({"steps": []}, 0, "is finished"),
        (None, 2, "holds no arm named run"),
    ],
)
def test_a_finished_run_whose_result_somebody_has_edited(
    nextrl_run: Any, config: Path, tmp_path: Path, change: dict[str, Any] | None, code: int, says: str
) -> None:
    assert nextrl_run(str(config))[0] == 0
    path = tmp_path / "out" / "result.json"
    result = json.loads(path.read_text())
    arms = {"plain": {}} if change is None else {"run": {**result["arms"]["run"], **change}}
    path.write_text(json.dumps({**result, "arms": arms}))
    found, out, err = nextrl_run(str(config))
    assert found == code
    assert says in (err if code else out)
    assert err.count("\n") == (1 if code else 0)


def test_print_config_shows_everything_and_trains_nothing(
    nextrl_run: Any, config: Path, tmp_path: Path
) -> None:
    code, out, _ = nextrl_run(str(config), "train.learning_rate=1e-3", "--print-config")
    assert code == 0
    assert yaml.safe_load(out)["train"]["learning_rate"] == 1e-3
    assert "#   completions: 64" in out
    code, out, _ = nextrl_run(str(config), "--print-config", "--json")
    assert json.loads(out)["derived"]["checkpoints"] == [2, 4]
    assert [p.name for p in tmp_path.iterdir()] == ["small.yaml"]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("train.stepz=3",), "did you mean train.steps?"),
        (("task=chian",), "unknown task 'chian'"),
        (("model=no/such",), "unknown model 'no/such'"),
        (("leap.method=secant", "leap.every=null"), "leap.method secant needs leap.at"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    nextrl_run: Any, config: Path, tmp_path: Path, arguments: tuple[str, ...], wanted: str
) -> None:
    code, out, err = nextrl_run(str(config), *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert wanted in err
    assert [p.name for p in tmp_path.iterdir()] == ["small.yaml"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_stop_says_how_to_go_on(
    nextrl_run: Any, config: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    def stopped(settings: Any, stop_asked: Any, **_: Any) -> Outcome:
        signal.raise_signal(number)
        assert stop_asked()
        return Outcome(3, None)

    monkeypatch.setattr(job, "run", stopped)
    assert nextrl_run(str(config))[0] == code
    assert "stopped at step 3 of 4; the same command goes on" in nextrl_run(str(config))[2]
    ended, out, _ = nextrl_run(str(config), "--json")
    assert (ended, json.loads(out)["stopped_at"]) == (code, 3)


def test_sigterm_ends_a_real_process_with_a_checkpoint_and_0(config: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from nextrl.cli import main; main()",
        "run",
        str(config),
        "train.steps=4000",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    trajectory = tmp_path / "out" / "trajectory"
    deadline = time.monotonic() + 300
    while not list(trajectory.glob("checkpoint-4/nextrl_checkpoint.json")):
        assert process.poll() is None, process.stderr
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "the same command goes on from there" in " ".join(err.split())
    assert (tmp_path / "out" / CONFIG).is_file()
    assert not (tmp_path / "out" / "result.json").exists()
