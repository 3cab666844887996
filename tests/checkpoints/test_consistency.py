"""Checkpoints that are of different runs are told by what training never changes, by inspect and by the rest alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from lora_runs import STEPS, lora, model, write_run
from nextrl.checkpoints import open_run
from nextrl.cli.inspect import describe
from nextrl.errors import InputError
from nextrl.leaps.leap import leap
from nextrl.trajectory.trajectory import Trajectory


def with_values(run: Path, option: str, values: Sequence[object]) -> Path:
    """A run whose four checkpoints have these values of an option."""
    write_run(run)
    for step, value in zip(STEPS, values, strict=True):
        config = run / f"checkpoint-{step}" / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), option: value}))
    return run


@pytest.mark.parametrize(
    ("option", "values", "odd"),
    [
        ("base_model_name_or_path", ["a/b", "a/b", "c/d", "c/d"], [30, 40]),
        ("base_model_name_or_path", ["c/d", "a/b", None, "a/b"], [10]),
        ("revision", ["step1000", None, "step1000", "main"], [40]),
        ("fan_in_fan_out", [True, False, True, False], [20, 40]),
        ("init_lora_weights", [True, True, True, "pissa"], [40]),
        ("init_lora_weights", ["pissa", "pissa", "pissa", True], [40]),
        ("init_lora_weights", ["pissa", True, "gaussian", True], [10]),
    ],
)
def test_a_checkpoint_of_another_run_is_named(
    tmp_path: Path, option: str, values: Sequence[object], odd: list[int]
) -> None:
    run = with_values(tmp_path, option, values)
    told = [problem for problem in open_run(run).problems if problem.fatal]
    assert [problem.step for problem in told] == odd
    assert f"checkpoint-{odd[0]}/adapter_config.json: {option} is" in str(told[0])
    with pytest.raises(InputError, match=f"{option} is .* so the two are of different runs"):
        Trajectory.load(run)
    left = tuple(step for step in STEPS if step not in odd)
    assert Trajectory.load(run, skip_bad_checkpoints=True).steps == left


def test_llama_factorys_start_of_pissa_is_accepted_at_step_0_alone(tmp_path: Path) -> None:
    """`pissa_init` says true of itself, on purpose; what it holds is the run's start all the same."""
    run = with_values(tmp_path, "init_lora_weights", ["pissa"] * 4)
    shutil.copytree(run / "checkpoint-10", run / "checkpoint-0")
    config = run / "checkpoint-0" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "init_lora_weights": True}))
    assert open_run(run).problems == ()
    traj = Trajectory.load(run)
    assert traj.knows_start
    assert traj.adapter_config["init_lora_weights"] == "pissa"
    assert leap(traj, "secant", horizon=10).factors(traj.modules[0])


def reset_run(root: Path, resets: Sequence[int], *, every: int = 10, last: int = 80) -> Path:
    """White noise and a drift under Adam; after these steps the adapter begins anew, as ReLoRA's does."""
    torch.manual_seed(0)
    peft_model = get_peft_model(model(), lora())
    trained = {n: p for n, p in peft_model.named_parameters() if p.requires_grad}
    along = {n: torch.randn_like(p) for n, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=0.0)
    for step in range(1, last + 1):
        for name, parameter in trained.items():
            parameter.grad = torch.randn_like(parameter) + along[name]
        optimizer.step()
        if step % every == 0:
            peft_model.save_pretrained(str(root / f"checkpoint-{step}"))
        if step in resets:
            for name, parameter in trained.items():
                fresh = torch.nn.init.kaiming_uniform_(torch.empty_like(parameter), a=5**0.5)
                parameter.data.copy_(torch.zeros_like(parameter) if "lora_B" in name else fresh)
    return root


@pytest.mark.parametrize(("resets", "since"), [([40], 50), ([20, 50], 60), ([45], 50)])
def test_an_adapter_that_was_reset_on_the_way_is_no_one_run(
    resets: Sequence[int], since: int, tmp_path: Path
) -> None:
    """It had been told to raise its rate, with confidence: the base under the adapter is another since."""
    run = reset_run(tmp_path, resets)
    with pytest.raises(
        InputError, match=rf"checkpoint-{since}: the adapter was reset after step {since - 10}"
    ):
        Trajectory.load(run)
    with pytest.raises(InputError, match="no usable checkpoint"):
        Trajectory.load(run, skip_bad_checkpoints=True)
    alone = Trajectory.load(run, start=since)
    assert alone.steps == tuple(range(since, 90, 10))
    assert alone.knows_start
    assert Trajectory.load(run, steps=[10, 20]).steps == (10, 20)


def test_a_checkpoint_saved_at_the_reset_is_noticed_and_a_run_without_one_is_not(tmp_path: Path) -> None:
    assert open_run(reset_run(tmp_path / "whole", [])).problems == ()
    run = reset_run(tmp_path / "zero", [])
    file = run / "checkpoint-50" / "adapter_model.safetensors"
    state = load_file(file)
    torch.manual_seed(1)
    drawn = {k: torch.randn_like(t) if "lora_A" in k else 0 * t for k, t in state.items()}
    save_file(drawn, file, metadata={"format": "pt"})
    assert "the adapter was reset after step 40" in str(open_run(run).problems[0])
    # `auto` takes a run back to where it began: B is zero there, too, and A is what it was.
    save_file({k: t * ("lora_A" in k) for k, t in state.items()}, file, metadata={"format": "pt"})
    assert open_run(run).problems == ()


@pytest.mark.parametrize(
    "values",
    [
        ["/scratch/a/Llama-1B", "/data/b/Llama-1B/", "meta/Llama-1B", None],
        ["meta/Llama-1B", "/c/hub/models--meta--Llama-1B/snapshots/0a1b", "", "Llama-1B"],
    ],
)
def test_a_base_that_was_moved_is_the_same(tmp_path: Path, values: Sequence[object]) -> None:
    assert open_run(with_values(tmp_path, "base_model_name_or_path", values)).problems == ()


@pytest.mark.parametrize("values", [["pissa"] * 4, [True, "gaussian", "eva", True]])
def test_inspect_and_the_run_agree_whether_the_start_is_known(
    tmp_path: Path, values: Sequence[object]
) -> None:
    run = with_values(tmp_path, "init_lora_weights", values)
    unknown = [text for text in describe(open_run(run))["problems"] if "starts from B_0 A_0 != 0" in text]
    assert bool(unknown) != Trajectory.load(run).knows_start
