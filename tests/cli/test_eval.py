"""`nextrl eval`: the JSON contract, adapters, folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner, Result

import trl_runs
from nextrl.cli.eval import evaluate_command
from nextrl.errors import InputError
from nextrl.tasks import base
from nextrl.tasks.bases import tiny
from nextrl.tasks.evaluate import evaluate


def call(*arguments: str) -> Result:
    app = Typer()
    app.command()(evaluate_command)
    return CliRunner().invoke(app, list(arguments))


def test_json_is_what_python_says() -> None:
    result = call("tiny", "--prompts", "60", "--seed", "3", "--json")
    assert result.exit_code == 0, result.output
    direct = evaluate(*tiny.load("chain"), base.get("chain"), prompts=60, seed=3)
    assert json.loads(result.stdout) == {
        "accuracy": direct.accuracy,
        "se": direct.se,
        "greedy": direct.greedy,
        "n": 60,
    }


def test_a_line_for_people() -> None:
    out = call("tiny", "--prompts", "20", "--task", "chain-wrong-rule").stdout
    assert out.startswith("chain-wrong-rule: 0.")
    assert "20 held-out prompts" in " ".join(out.split())


def test_an_adapter_is_put_on(tmp_path: Path) -> None:
    model = trl_runs.fresh_model()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 1.0  # an adapter that ruins the model
    model.save_pretrained(str(tmp_path / "adapter"))
    ruined = json.loads(
        call("tiny", "--adapter", str(tmp_path / "adapter"), "--prompts", "40", "--json").stdout
    )
    assert ruined["accuracy"] < 0.2


def test_a_folder_is_a_model(tmp_path: Path) -> None:
    model, encode = tiny.load("chain")
    model.save_pretrained(tmp_path)
    encode.save_pretrained(tmp_path)
    folder = call(str(tmp_path), "--prompts", "30", "--json")
    assert folder.stdout == call("tiny", "--prompts", "30", "--json").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny", "--task", "chess"), "unknown task 'chess'"),
        (("nowhere",), "unknown model 'nowhere'"),
        (("tiny", "--adapter", "nowhere"), "holds no PEFT adapter"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], message: str) -> None:
    error = call(*arguments).exception
    assert isinstance(error, InputError)
    assert message in str(error)
