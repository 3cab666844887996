"""Optimizers by name: one that is registered is known wherever optimizers are named, without another line of code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from isolation import loaded, python
from nextrl.engines import named_optimizers
from nextrl.engines.named_optimizers import Optimizer
from nextrl.engines.settings import TrainSettings
from nextrl.errors import EXTRAS, InputError

# Descriptions are made at import: hence a process of its own, which registers two optimizers before anything else.
NEWCOMERS = """
import json
from nextrl.engines import named_optimizers
from nextrl.engines.named_optimizers import Optimizer, register

register(Optimizer("sgd", "Plain SGD", lambda torch, parameters, rate: torch.optim.SGD(parameters, lr=rate)))
register(Optimizer("found", "Finds it all", lambda *_: None, rate_free=True, module="mechanic_pytorch",
                   extra="rivals", cannot_resume="it forgets"))
"""
ASKED = """
import torch
from nextrl import cli
from nextrl.errors import InputError
from nextrl.engines.settings import TrainSettings
from nextrl.runs import adapters, run, summary
from nextrl.runs.arm import ArmRecord
from nextrl.runs.config import RunConfig, known_keys
from nextrl.runs.demo_plan import plan
from nextrl.runs.report.arms import read_arms
from nextrl.runs.result import parse_result

def said(call):
    try:
        call()
    except ValueError as error:
        return str(error)

def config(name, **leap):
    return RunConfig(train={"optimizer": name, "steps": 20}, leap=leap or {"method": "none"})

def resumed(name):
    step_10 = ArmRecord(name="run", kind="plain", label="run")
    run.last_checkpoint = lambda *_: type("Found", (), {"step": 10, "record": step_10})
    return said(lambda: run._checkpoint(config(name), lambda line: None))

def advised(name):
    asked = []
    summary._advice = lambda traj: asked.append(traj)
    summary.trajectory_figures = lambda *_: summary.TrajectoryFigures()
    summary._recent_excess = lambda *_: None
    done = ArmRecord(name="run", kind="plain", label="run", steps=[20], accuracy=[0.5], se=[0.1], completions=[9])
    summary.summarise_run(done, config(name).arm(), {}, type("Run", (), {"steps": (10, 20)}))
    return len(asked)

def role(name):
    arms = {name: {"kind": "control", "steps": [0], "accuracy": [0.5]}}
    return read_arms(parse_result({"arms": arms}))[0].role

def facts(name):
    arm = config(name).arm()
    return {
        "config": config(name).train.optimizer,
        "leaps": said(lambda: config(name, method="auto")),
        "label": arm.label,
        "card": adapters._card(arm, ArmRecord(name="run", kind="plain", label="run"), "final"),
        "resumed": resumed(name),
        "advised": advised(name),
        "role": role(name),
        "demo": [arm.label for arm in plan(0, quick=False).arms if arm.name == name],
        "module": named_optimizers.get(name).module in cli._LIBRARIES,
        "missing": said(named_optimizers.get(name).check_installed),
    }

print(json.dumps({
    "optimizer": known_keys()["train.optimizer"].description,
    "rate": known_keys()["train.learning_rate"].description,
    "schema": TrainSettings.model_json_schema()["properties"]["optimizer"]["enum"],
    "unknown": said(lambda: TrainSettings(optimizer="foun")),
    "sgd": facts("sgd"),
    "found": facts("found"),
    "built": type(named_optimizers.get("sgd").build(torch.nn.Linear(1, 1), 0.5)).__name__,
}))
"""


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """What the places that name optimizers say of two that were registered just now."""
    pytest.importorskip("trl")
    done = python(NEWCOMERS + ASKED, without=["mechanic_pytorch"])
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_config_s_keys_name_it(known: dict[str, Any]) -> None:
    assert known["optimizer"] == "`adamw`, `prodigy-schedulefree`, `mechanic`, `sgd` or `found`"
    assert known["rate"].startswith("of `adamw` or `sgd`; constant")
    assert known["schema"] == ["adamw", "prodigy-schedulefree", "mechanic", "sgd", "found"]
    assert "unknown optimizer 'foun'; did you mean" in known["unknown"]
    assert (known["sgd"]["config"], known["found"]["config"], known["built"]) == ("sgd", "found", "SGD")


def test_one_that_takes_a_rate_may_leap_and_is_advised_by_its_rate(known: dict[str, Any]) -> None:
    sgd = known["sgd"]
    assert (sgd["leaps"], sgd["resumed"], sgd["missing"]) == (None, None, None)
    assert (sgd["label"], sgd["advised"], sgd["role"], sgd["demo"]) == ("plain, lr 5e-05", 1, "control", [])
    assert "| learning rate at the start | 5e-05 |\n| optimizer | sgd |" in sgd["card"]


def test_one_that_finds_its_rate_is_a_control_and_no_rate_is_said_of_it(known: dict[str, Any]) -> None:
    found = known["found"]
    assert "train.optimizer: found finds its own learning rate" in found["leaps"]
    assert (found["label"], found["advised"], found["role"]) == ("plain, Finds it all", 0, "free")
    assert found["demo"] == ["Finds it all"]
    assert "| optimizer | found |" in found["card"]
    assert "learning rate at the start" not in found["card"]


def test_what_it_needs_and_cannot_do_is_said(known: dict[str, Any]) -> None:
    found = known["found"]
    assert found["missing"].startswith("optimizer 'found' needs mechanic-pytorch, which is not installed")
    assert "train.optimizer: found cannot be gone on with (it forgets): choose another" in found["resumed"]
    assert found["module"]


def test_an_extra_that_does_not_bring_the_package_is_refused() -> None:
    with pytest.raises(ValueError, match=r"EXTRAS in nextrl\.errors has no module lion_pytorch under rivals"):
        named_optimizers.register(Optimizer("lion", "Lion", module="lion_pytorch", extra="rivals"))
    assert "lion" not in named_optimizers.names()


def test_an_unknown_name_is_offered_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown optimizer 'adam'; did you mean .*adamw"):
        named_optimizers.get("adam")
    with pytest.raises(ValueError, match="unknown optimizer 'nope'; known: adamw, prodigy-schedulefree"):
        TrainSettings(optimizer="nope")


@pytest.mark.parametrize("name", named_optimizers.names())
def test_it_is_built_over_what_is_trained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    optimizer = named_optimizers.get(name)
    pytest.importorskip(optimizer.module)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).requires_grad_(False))
    built = optimizer.build(model, 1e-3)
    assert capsys.readouterr().out == ""  # `--json` promises one object on stdout
    if built is None:
        assert name == named_optimizers.DEFAULT
        return
    assert [p for group in built.param_groups for p in group["params"]] == list(model[0].parameters())


def test_the_page_of_a_run_says_which_cannot_be_gone_on_with() -> None:
    page = (Path(__file__).parents[2] / "docs" / "run.md").read_text(encoding="utf-8")
    for optimizer in map(named_optimizers.get, named_optimizers.names()):
        said = f"`train.optimizer: {optimizer.name}` cannot be gone on with: {optimizer.cannot_resume}"
        assert not optimizer.cannot_resume or said in page, f"add this to docs/run.md: {said}"


def test_names_are_known_without_their_packages() -> None:
    assert not loaded("import nextrl.engines.named_optimizers") & {"torch", "pydantic", *EXTRAS["rivals"]}
