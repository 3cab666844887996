"""`--base tiny` works wherever `tiny` does: a leap merged into a base that has a name and no folder of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer import Typer
from typer.testing import CliRunner, Result

from nextrl.cli.leap import leap as leap_verb
from nextrl.engines.settings import LoraSettings
from nextrl.engines.trl.trainer import with_adapter
from nextrl.errors import InputError
from nextrl.runs.adapters import name_base
from nextrl.tasks.bases import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    model = with_adapter(tiny.load("chain")[0], LoraSettings(target_modules=["q_proj"]), 0)
    torch.manual_seed(0)
    for step in (10, 20, 30):
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data += 0.01
        model.save_pretrained(str(folder / f"checkpoint-{step}"))
        name_base(folder / f"checkpoint-{step}", "tiny")
    return folder


def merged(run: Path, out: Path, *options: str) -> Result:
    app = Typer()
    app.command()(leap_verb)
    arguments = [str(run), "--method", "secant", "--horizon", "10", "--as", "merged", "--out", str(out)]
    return CliRunner().invoke(app, [*arguments, *options])


def test_a_leap_is_merged_into_a_base_by_name(run: Path, tmp_path: Path) -> None:
    result = merged(run, tmp_path / "out", "--task", "chain")
    assert result.exit_code == 0, result.exception
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    base = tiny.load("chain")[0].state_dict()
    changed = {name for name, weight in model.state_dict().items() if not weight.equal(base[name])}
    assert changed == {name for name in base if "q_proj" in name}
    note = (tmp_path / "out" / "nextrl.json").read_text()
    assert json.loads(note)["base"] == "tiny"
    assert "| base model | tiny |" in (tmp_path / "out" / "README.md").read_text()


def test_which_tiny_is_asked_for(run: Path, tmp_path: Path) -> None:
    result = merged(run, tmp_path / "out")
    assert isinstance(result.exception, InputError)
    assert "--base tiny needs --task NAME" in str(result.exception)
    assert not (tmp_path / "out").exists()
