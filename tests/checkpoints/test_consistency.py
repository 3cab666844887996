"""Checkpoints that are of different runs are told by what training never changes, by inspect and by the rest alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from lora_runs import STEPS, write_run
from nextrl.checkpoints import open_run
from nextrl.cli.inspect import describe
from nextrl.errors import InputError
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
