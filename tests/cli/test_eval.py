"""`nextrl eval`: the JSON contract, adapters, folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer import Typer
from typer.testing import CliRunner, Result

import trl_runs
from nextrl.cli.eval import evaluate_command
from nextrl.errors import InputError
from nextrl.tasks import base
from nextrl.tasks.bases import tiny
from nextrl.tasks.bases.device import placed
from nextrl.tasks.evaluate import evaluate


def call(*arguments: str) -> Result:
    app = Typer()
    app.command()(evaluate_command)
    return CliRunner().invoke(app, list(arguments))


def test_json_is_what_python_says() -> None:
    result = call("tiny", "--prompts", "60", "--seed", "3", "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    direct = evaluate(*tiny.load("chain"), base.get("chain"), prompts=60, seed=3)
    assert json.loads(result.stdout) == {
        "accuracy": direct.accuracy,
        "se": direct.se,
        "greedy": direct.greedy,
        "n": 60,
    }


@pytest.mark.parametrize(
    ("config", "base"), [('{"base_model_name_or_path": "tiny"}', "tiny"), ("{}", "BASE"), ("{", "BASE")]
)
def test_an_adapter_in_the_place_of_a_model_is_told_how_it_is_measured(
    tmp_path: Path, config: str, base: str
) -> None:
    folder = tmp_path / "my adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(config)
    error = call(str(folder), "--task", "chain-wrong-rule").exception
    assert isinstance(error, InputError)
    assert "is an adapter and no model" in str(error)
    assert f"nextrl eval {base} --adapter '{folder}' --task chain-wrong-rule" in str(error)
    assert ("(BASE: " in str(error)) == (base == "BASE")


@pytest.mark.parametrize("device", ["no such device", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused_in_one_line(device: str) -> None:
    with pytest.raises(InputError, match=f"^'{device}' is not a device that this PyTorch can use") as error:
        placed(torch.nn.Linear(2, 2), device)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250
    assert str(call("tiny", "--prompts", "20", "--device", device).exception) == str(error.value)


def test_the_default_device_is_the_best_one() -> None:
    options, best = ("tiny", "--prompts", "20", "--json"), "cuda" if torch.cuda.is_available() else "cpu"
    assert json.loads(call(*options, "--device", best).stdout) == json.loads(call(*options).stdout)


def test_prompts_are_answered_so_many_together() -> None:
    options = ("tiny", "--prompts", "20", "--device", "cpu", "--json")
    result = json.loads(call(*options, "--batch-size", "6").stdout)
    direct = evaluate(*tiny.load("chain"), base.get("chain"), prompts=20, batch=6)
    assert (result["accuracy"], result["greedy"]) == (direct.accuracy, direct.greedy)
    # Greedy answers are the same however many stand beside them.
    assert result["greedy"] == json.loads(call(*options).stdout)["greedy"]


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
        call(
            "tiny", "--adapter", str(tmp_path / "adapter"), "--prompts", "40", "--device", "cpu", "--json"
        ).stdout
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


def saved(folder: Path) -> Path:
    """An adapter of `tiny` that moves it."""
    model = trl_runs.fresh_model()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 1.0
    model.save_pretrained(str(folder))
    return folder


def spoilt(folder: Path, how: str) -> None:
    file, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    state = load_file(file)
    first = next(key for key in state if "lora_B" in key)
    if how == "pickle":
        torch.save(state, folder / "adapter_model.bin")
        file.unlink()
    elif how == "no B":
        save_file({key: t for key, t in state.items() if key != first}, file)
    elif how == "NaN":
        save_file({**state, first: state[first] * torch.nan}, file)
    elif how == "other names":
        save_file({key.replace("layers.", "blocks."): t for key, t in state.items()}, file)
    elif how == "compiled":
        save_file(
            {key.replace("base_model.model.", "base_model.model._orig_mod."): t for key, t in state.items()},
            file,
        )
    elif how == "other modules":
        raw = json.loads(config.read_text())
        config.write_text(json.dumps({**raw, "target_modules": ["no_such"]}))
    elif how == "fewer modules":
        raw = json.loads(config.read_text())
        config.write_text(json.dumps({**raw, "target_modules": ["q_proj"]}))
    elif how == "dora":
        raw = json.loads(config.read_text())
        config.write_text(json.dumps({**raw, "use_dora": True}))
    elif how == "other shapes":
        save_file({key: t.repeat(1, 2) if "lora_A" in key else t for key, t in state.items()}, file)


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("pickle", "a pickle, which can run code"),
        ("no B", "has only one of lora_A and lora_B"),
        ("NaN", "NaN or Inf"),
        ("other names", "does not act on this model"),
        ("compiled", "does not act on this model"),
        ("other modules", "PEFT cannot put the adapter on this model"),
        ("fewer modules", "does not act on this model"),
        ("dora", "use_dora is set"),
        ("other shapes", "PEFT cannot put the adapter on this model"),
    ],
)
def test_an_adapter_that_does_not_act_is_an_error_and_not_the_base(
    tmp_path: Path, how: str, wanted: str
) -> None:
    folder = saved(tmp_path / "adapter")
    spoilt(folder, how)
    error = call("tiny", "--adapter", str(folder), "--prompts", "4").exception
    assert isinstance(error, InputError), error
    assert wanted in str(error)


def test_a_pickled_adapter_is_read_when_it_is_allowed(tmp_path: Path) -> None:
    folder = saved(tmp_path / "adapter")
    wanted = call("tiny", "--adapter", str(folder), "--prompts", "20", "--json").stdout
    spoilt(folder, "pickle")
    found = call("tiny", "--adapter", str(folder), "--prompts", "20", "--json", "--allow-pickle")
    assert found.stdout == wanted, found.exception
