"""Every option of PEFT's LoRA configuration is followed, inert or refused; a new PEFT that adds one fails here."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file

import lora_runs
from nextrl.checkpoints import open_run
from nextrl.checkpoints.adapter import AdapterCheckpoint
from nextrl.checkpoints.lora_settings import FOLLOWED, INERT, NONLINEAR, UNMERGEABLE, AdapterConfig
from nextrl.errors import InputError
from nextrl.leaps.adapter_file import write_adapter
from nextrl.leaps.merged_model import write_merged
from nextrl.trajectory.trajectory import Trajectory


def test_each_option_of_the_installed_peft_is_in_one_table() -> None:
    names = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert names - FOLLOWED - INERT - set(NONLINEAR) == set(), "say in lora_settings.py what these do"
    assert not FOLLOWED & INERT
    assert not (FOLLOWED | INERT) & set(NONLINEAR)
    assert set(UNMERGEABLE) <= FOLLOWED


@pytest.mark.parametrize("kind", sorted(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING))
def test_every_other_kind_of_adapter_is_refused(kind: str) -> None:
    raw = {"peft_type": kind, "r": 4, "lora_alpha": 8}
    if kind == "LORA":
        AdapterConfig.of(raw, Path("adapter_config.json"))
        return
    with pytest.raises(InputError, match=f"peft_type {kind}"):
        AdapterConfig.of(raw, Path("adapter_config.json"))


@pytest.mark.parametrize(
    ("option", "value", "refused"),
    [
        ("use_tomorrow", True, True),
        ("tomorrow_config", {"size": 2}, True),
        ("tomorrow_size", 16, False),
        ("tomorrow_config", None, False),
        ("use_tomorrow", False, False),
    ],
)
def test_a_method_that_nobody_knew_is_refused_where_it_is_switched_on(
    option: str, value: object, refused: bool
) -> None:
    raw = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, option: value}
    if not refused:
        AdapterConfig.of(raw, Path("adapter_config.json"))
        return
    with pytest.raises(InputError, match=option):
        AdapterConfig.of(raw, Path("adapter_config.json"))


def test_the_wrapper_of_torch_compile_is_left_out_of_what_is_written(tmp_path: Path) -> None:
    lora_runs.write_run(tmp_path / "run", steps=(10, 20))
    for step in (10, 20):
        file = tmp_path / "run" / f"checkpoint-{step}" / "adapter_model.safetensors"
        state = load_file(file)
        save_file(
            {key.replace("base_model.model.", "base_model.model._orig_mod."): t for key, t in state.items()},
            file,
        )
    traj = Trajectory.load(tmp_path / "run")
    assert not any("_orig_mod" in module for module in traj.modules)
    out = write_adapter(traj, 20, {}, tmp_path / "out")
    loaded = peft.PeftModel.from_pretrained(lora_runs.model(), str(out))
    moved = [p for name, p in loaded.named_parameters() if "lora_B" in name]
    assert moved
    assert all(bool(p.abs().max() > 0) for p in moved)


def _change(folder: Path, key: str, tensor: torch.Tensor) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), key: tensor}, file)


def leap_at_its_end(run: Path) -> None:
    write_adapter(Trajectory.load(run), 20, {}, run / "out")


@pytest.mark.parametrize("what", ["nan", "empty"])
def test_what_is_carried_along_is_looked_at_too(tmp_path: Path, what: str) -> None:
    lora_runs.write_run(tmp_path, lora_runs.lora(modules_to_save=["lm_head"]), steps=(10, 20))
    head = "base_model.model.lm_head.weight"
    old = load_file(tmp_path / "checkpoint-20" / "adapter_model.safetensors")[head]
    _change(tmp_path / "checkpoint-20", head, old * torch.nan if what == "nan" else torch.zeros(0))
    wanted = "in 'base_model.model.lm_head.weight'" if what == "nan" else "is empty"
    problems = [str(problem) for problem in open_run(tmp_path).problems if problem.fatal]
    problems += [str(p) for c in open_run(tmp_path).checkpoints if (p := c.broken_values()) is not None]
    assert len(problems) == 1
    assert wanted in problems[0]
    with pytest.raises(InputError, match=wanted):
        leap_at_its_end(tmp_path)
    assert not (tmp_path / "out").exists()


def test_two_names_for_one_tensor_are_refused(tmp_path: Path) -> None:
    lora_runs.write_run(tmp_path, steps=(10,))
    folder = tmp_path / "checkpoint-10"
    key, tensor = next(
        (k, t) for k, t in load_file(folder / "adapter_model.safetensors").items() if "lora_A" in k
    )
    _change(folder, key.replace("base_model.model.", "base_model.model._orig_mod."), tensor + 1)
    with pytest.raises(InputError, match="twice under two names"):
        AdapterCheckpoint.open(10, folder)


def _spoil_base(base: Path, how: str) -> None:
    file, config = base / "model.safetensors", base / "config.json"
    weight = "model.layers.0.self_attn.q_proj.weight"
    state = load_file(file)
    if how == "int8":
        save_file({**state, weight: state[weight].to(torch.int8)}, file)
    elif how == "4-bit":
        raw = json.loads(config.read_text())
        config.write_text(json.dumps({**raw, "quantization_config": {"load_in_4bit": True}}))
    else:
        save_file({key.replace("q_proj", "query"): t for key, t in state.items()}, file)


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("int8", "is stored as I8, which are codes"),
        ("4-bit", "quantised"),
        ("other names", "has no 'model.layers.0.self_attn.q_proj.weight', which the adapter moves"),
    ],
)
def test_a_base_that_a_leap_cannot_be_added_to_is_refused_by_what_is_wrong(
    tmp_path: Path, how: str, wanted: str
) -> None:
    lora_runs.write_run(tmp_path / "run", steps=(10, 20))
    lora_runs.model().save_pretrained(tmp_path / "base")
    _spoil_base(tmp_path / "base", how)
    with pytest.raises(InputError, match=wanted):
        write_merged(Trajectory.load(tmp_path / "run"), 20, {}, tmp_path / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("init_lora_weights", "pissa", "took B_0 A_0 out of the base"),
        ("layer_replication", [[0, 2]], "copies of the base's layers"),
        ("alora_invocation_tokens", [1], "after its invocation"),
    ],
)
def test_an_adapter_of_another_base_is_not_merged(
    tmp_path: Path, option: str, value: object, wanted: str
) -> None:
    lora_runs.write_run(tmp_path / "run", steps=(10, 20), start=True)
    lora_runs.model().save_pretrained(tmp_path / "base")
    for config in (tmp_path / "run").glob("*/adapter_config.json"):
        config.write_text(json.dumps({**json.loads(config.read_text()), option: value}))
    with pytest.raises(InputError, match=wanted):
        write_merged(Trajectory.load(tmp_path / "run"), 20, {}, tmp_path / "base", tmp_path / "out")


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(.*)*(.*)*x", "(" * 900, "a" * 1001, "a{99999999999}"])
def test_a_pattern_that_takes_for_ever_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.setattr("nextrl.checkpoints.patterns.SECONDS", 0.5)
    lora_runs.write_run(tmp_path, steps=(10,))
    folder = tmp_path / "checkpoint-10"
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "alpha_pattern": {pattern: 2}}))
    state = load_file(folder / "adapter_model.safetensors")
    save_file(
        {k.replace("q_proj", "a" * 60 + "b"): t for k, t in state.items()},
        folder / "adapter_model.safetensors",
    )
    with pytest.raises(InputError, match=r"alpha_pattern has (a|the) "):
        AdapterCheckpoint.open(10, folder)


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_of_zero_is_named_with_a_way_out(tmp_path: Path, key: str) -> None:
    """As mergekit-extract-lora 0.1.5 writes them under --sv-epsilon."""
    lora_runs.write_run(tmp_path, steps=(10,))
    path = tmp_path / "checkpoint-10" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: {"layers.0.self_attn.q_proj": 0}}))
    with pytest.raises(InputError, match=rf"{key} gives 'layers.0.self_attn.q_proj' 0, .*--sv-epsilon"):
        AdapterCheckpoint.open(10, path.parent)


def test_ordinary_patterns_are_followed(tmp_path: Path) -> None:
    lora_runs.write_run(
        tmp_path, lora_runs.lora(alpha_pattern={r".*layers\.0\..*q_proj": 3, "v_proj": 5}), steps=(10,)
    )
    checkpoint = AdapterCheckpoint.open(10, tmp_path / "checkpoint-10")
    found = {m: checkpoint.scaling(m) * 4 for m in checkpoint.modules}
    assert found["model.layers.0.self_attn.q_proj"] == 3
    assert found["model.layers.1.self_attn.q_proj"] == 8
    assert found["model.layers.1.self_attn.v_proj"] == 5


@pytest.mark.parametrize("layout", ["trl", "verl"])
def test_a_config_of_more_than_any_model_has_names_for_is_not_read(tmp_path: Path, layout: str) -> None:
    lora_runs.write_run(tmp_path, layout=layout, steps=(10, 20, 30))
    path = next(tmp_path.glob("*20/**/adapter_config.json"))
    good = json.loads(path.read_text())
    names = [f"model.layers.{i}.mlp.experts.{j}.gate_up_proj" for i in range(100) for j in range(500)]
    path.write_text(
        json.dumps({**good, "target_modules": names})
    )  # each of the largest models' experts by name
    assert not open_run(tmp_path).problems
    path.write_text(json.dumps(good)[:-1] + ', "x": [' + "[]," * 3_000_000 + "1]}")
    (problem,) = (problem for problem in open_run(tmp_path).problems if problem.fatal)
    assert "adapter_config.json: has more than 8,388,608 bytes" in str(problem)


@pytest.mark.parametrize("count", [1000, 2000])
def test_target_parameters_are_matched_in_linear_time(tmp_path: Path, count: int) -> None:
    """30,000 of them kept every verb busy for ever, since each was held against each, once a call."""
    lora_runs.write_run(tmp_path, steps=(10,))
    path = tmp_path / "checkpoint-10" / "adapter_config.json"
    parameters = [f"q_proj.p{i}" for i in range(count)]
    told = {"target_modules": [], "target_parameters": parameters}
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
    began = time.process_time()
    checkpoint = AdapterCheckpoint.open(10, path.parent)
    assert {checkpoint.scaling(m) for m in checkpoint.modules} == {2.0}
    assert time.process_time() - began < 1.0
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_parameters": parameters * 11}))
    with pytest.raises(
        InputError, match=r"target_parameters has [12]\d,000 names, 10,000 at most; restore it"
    ):
        AdapterConfig.read(path)
