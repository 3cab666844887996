"""The way on that NExt's paper took, by two commands: a leap merged into the base, then a fresh adapter on that."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from typer import Typer
from typer.testing import CliRunner

from nextrl.cli.eval import evaluate_command
from nextrl.cli.leap import leap as leap_verb
from nextrl.cli.run import run as run_verb
from nextrl.engines.settings import LoraSettings
from nextrl.engines.trl.trainer import with_adapter
from nextrl.extrapolators import get
from nextrl.leaps import leap as leap_module
from nextrl.runs.adapters import name_base
from nextrl.tasks import bases
from nextrl.tasks.bases import tiny

PROMPTS = 40


def call(verb: Any, *arguments: str) -> Any:
    """The object that a verb's `--json` prints."""
    app = Typer()
    app.command()(verb)
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


def accuracy(model: str | Path, *options: str) -> Any:
    return call(evaluate_command, str(model), "--task", "chain", "--prompts", str(PROMPTS), *options)


@dataclass
class Leapt:
    """A leap of one run, merged into its base, and as an adapter that is wide enough to hold all of it."""

    merged: Path
    adapter: Path
    facts: dict[str, Any]


@pytest.fixture(scope="module")
def leapt(tmp_path_factory: pytest.TempPathFactory) -> Leapt:
    folder = tmp_path_factory.mktemp("leapt")
    model = with_adapter(tiny.load("chain")[0], LoraSettings(r=2, target_modules=["q_proj", "down_proj"]), 0)
    factors = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    torch.manual_seed(0)
    ways = [torch.randn_like(factor) for factor in factors]
    for step in range(10, 70, 10):
        for factor, way in zip(factors, ways, strict=True):
            factor.data += 0.015 * way + 0.003 * torch.randn_like(way)
        place = folder / "run" / f"checkpoint-{step}"
        model.save_pretrained(str(place))
        name_base(place, "tiny")
    words = (str(folder / "run"), "--method", "next-paper", "--horizon", "20")
    merged, adapter = folder / "merged", folder / "adapter"
    with pytest.MonkeyPatch.context() as patch:
        # What the networks predict does not matter here: a fit of a second instead of half a minute.
        patch.setattr(leap_module, "get", partial(get, epochs=20))
        facts = call(
            leap_verb, *words, "--as", "merged", "--base", "tiny", "--task", "chain", "--out", str(merged)
        )
        call(leap_verb, *words, "--rank", "6", "--out", str(adapter))
    return Leapt(merged, adapter, facts)


def test_the_merged_model_is_the_base_with_the_leap(leapt: Leapt) -> None:
    assert (leapt.facts["method"], leapt.facts["alpha"]) == ("next-paper", 1.5)
    assert {p.name for p in tiny.shipped("chain").glob("*.json")} <= {p.name for p in leapt.merged.iterdir()}
    stored, base = (load_file(f / "model.safetensors") for f in (leapt.merged, tiny.shipped("chain")))
    assert {n: (t.dtype, t.shape) for n, t in stored.items()} == {
        n: (t.dtype, t.shape) for n, t in base.items()
    }
    assert {n for n in base if not stored[n].equal(base[n])} == {
        n for n in base if "q_proj" in n or "down_proj" in n
    }
    merged, tokenizer = bases.load(str(leapt.merged), "chain")
    plain, own = bases.load("tiny", "chain")
    ids = tokenizer(["1+2", "3+4"], return_tensors="pt", padding=True)
    assert ids["input_ids"].equal(own(["1+2", "3+4"], return_tensors="pt", padding=True)["input_ids"])
    with torch.no_grad():
        before = plain(**ids).logits
        beside = PeftModel.from_pretrained(plain, str(leapt.adapter))(**ids).logits
        within = merged(**ids).logits
    # bfloat16 weights, if the base has them, are rounded once more.
    assert (within - beside).abs().max() < 0.02 * (beside - before).abs().max()


def test_it_is_evaluated_as_the_base_with_the_leap_beside_it(leapt: Leapt) -> None:
    assert accuracy(leapt.merged) == accuracy("tiny", "--adapter", str(leapt.adapter))
    assert accuracy(leapt.merged) != accuracy("tiny")


def test_a_run_trains_a_fresh_adapter_on_it(leapt: Leapt, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "c.yaml").write_text("")
    result = call(
        run_verb, str(tmp_path / "c.yaml"), f"model={leapt.merged}", "leap.method=none", f"output_dir={out}",
        "train.steps=2", "train.save_every=1", "train.prompts_per_step=2", "train.completions_per_prompt=2",
        f"eval.prompts={PROMPTS}",
    )["arms"]["run"]  # fmt: skip
    assert result["steps"] == [0, 2]
    assert result["accuracy"][0] == accuracy(leapt.merged)["accuracy"]  # it begins where the leap ended
    config = json.loads((out / "final" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(leapt.merged)
    assert accuracy(leapt.merged, "--adapter", str(out / "final"))["accuracy"] == result["accuracy"][1]
    notes = json.loads((leapt.merged / "nextrl.json").read_text())
    assert (notes["from_step"], notes["alpha"]) == (60, 1.5)
