"""Factors handed in from Python: as PEFT has them, of whatever library, and never those of a model that trains on."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn

from lora_runs import lora, model, peft_deltas
from nextrl.errors import InputError
from nextrl.leaps.leap import leap
from nextrl.trajectory.trajectory import Trajectory

A, B = torch.arange(12.0).reshape(2, 6), torch.arange(10.0).reshape(5, 2)
STEPS = (10, 20, 30)


def run(steps: Any = STEPS, **options: Any) -> Trajectory:
    return Trajectory.from_factors(steps, [{"w": (A, B * s)} for s in (1, 2, 3)], **options)


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({"r": 2, "lora_alpha": 8}, 4.0),
        ({"r": 2, "lora_alpha": 8, "use_rslora": True}, 8 / 2**0.5),
        ({"r": 8, "lora_alpha": 8, "rank_pattern": {"w": 2}}, 4.0),
        ({"r": 2, "lora_alpha": 8, "alpha_pattern": {"w": 2}}, 1.0),
        ({"target_modules": ["w"]}, 1.0),
        (None, 1.0),
    ],
)
def test_the_scaling_is_the_configurations(config: dict[str, Any] | None, scaling: float, tmp_path) -> None:
    traj = run(adapter_config=config)
    assert traj.scaling("w") == pytest.approx(scaling)
    leap(traj, "secant", horizon=10).save_adapter(tmp_path / "out")
    written = Trajectory.load({10: tmp_path / "out"}, start=0)
    assert written.scaling("w") == pytest.approx(scaling)


@pytest.mark.parametrize(
    "scaling", [2, np.float32(2.0), np.array(2.0), torch.tensor(2.0), {"w": torch.tensor([2.0])}]
)
@pytest.mark.parametrize("steps", [STEPS, np.array(STEPS), torch.tensor(STEPS), (10.0, 20.0, 30.0)])
def test_numbers_of_any_library_are_numbers(scaling: Any, steps: Any, tmp_path) -> None:
    traj = run(steps, scaling=scaling)
    assert traj.steps == STEPS
    assert traj.scaling("w") == 2.0
    leap(traj, "secant", horizon=10).save_adapter(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "nextrl.json").read_text())["checkpoints"] == list(STEPS)


def test_modules_may_be_named_as_in_peft_s_model(tmp_path) -> None:
    peft_model = PeftModel(model("llama"), lora())
    snapshots = []
    for _ in STEPS:
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
        layers = {n: m for n, m in peft_model.named_modules() if hasattr(m, "lora_A")}
        snapshots.append(
            {n: (m.lora_A["default"].weight, m.lora_B["default"].weight) for n, m in layers.items()}
        )
    config = {"r": 4, "lora_alpha": 8, "init_lora_weights": True}
    traj = Trajectory.from_factors(STEPS, snapshots, adapter_config=config)
    assert traj.modules[0] == "model.layers.0.self_attn.q_proj"
    leap(traj, "none", horizon=10).save_adapter(tmp_path / "out")
    loaded = peft_deltas(PeftModel.from_pretrained(model("llama"), tmp_path / "out"))
    for module, delta in peft_deltas(peft_model).items():
        torch.testing.assert_close(loaded[module], delta)


def test_parameters_that_train_on_are_copied() -> None:
    a, b = nn.Parameter(A.clone()), nn.Parameter(B.clone())
    snapshots = []
    for step in STEPS:
        b.data.fill_(step)
        snapshots.append(Trajectory.from_factors([step], [{"w": (a, b)}]))
    assert [float(traj.factors(traj.steps[0], "w")[1][0, 0]) for traj in snapshots] == [10.0, 20.0, 30.0]
    assert not any(t.requires_grad for t in snapshots[0].factors(10, "w"))
    leap(
        Trajectory.from_factors(STEPS, [{"w": (a, b * s)} for s in STEPS]), "secant", horizon=10
    ).leap_state()


@pytest.mark.parametrize(
    ("factors", "options", "words"),
    [
        ([{"w": (B, A)}] * 3, {}, r"w at step 10 has A \[5, 2\] and B \[2, 6\].*the other way round"),
        ([{"w": (A, B.mT)}] * 3, {}, r"w at step 10 has A .* and B .*A is \(r, n\) and B \(m, r\)"),
        (
            [{"w": (A, B)}, {"w": (A, B), "x": (A, B)}, {"w": (A, B)}],
            {},
            "x is there at step 20 and not at step 30",
        ),
        ([{"w": (A, B)}, {}, {"w": (A, B)}], {}, "w is there at step 30 and not at step 20"),
        (
            [{"w": (A, B)}, {"w": (A[:1], B[:, :1])}, {"w": (A, B)}],
            {},
            r"w has A and B of .* at step 20, of .* at step 30",
        ),
        ([{"w": (A.int(), B.int())}] * 3, {}, "give float16, bfloat16, float32 or float64"),
        ([{"w": A}] * 3, {}, "needs two tensors"),
        ([{"w": (A.numpy(), B.numpy())}] * 3, {}, "needs two tensors"),
        ([[("w", A, B)]] * 3, {}, "must map modules"),
        ([{"w": (A, B), "base_model.model.w": (A, B)}] * 3, {}, "w is there twice"),
        ([{"w": (A, B)}] * 3, {"scaling": {"v": 2.0}}, "scaling has none for w"),
        ([{"w": (A, B)}] * 3, {"scaling": "2"}, "scaling must be a number"),
        ([{"w": (A, B)}] * 3, {"scaling": 0.0}, "scaling must be finite and not 0"),
        (
            [{"w": (A, B)}] * 3,
            {"scaling": 2.0, "adapter_config": {"r": 2, "lora_alpha": 8}},
            "adapter_config gives it 4",
        ),
        (
            [{"w": (A, B)}] * 3,
            {"adapter_config": {"r": 4, "lora_alpha": 8}},
            "w has rank 2, adapter_config says 4",
        ),
        ([{"w": (A, B)}] * 3, {"start": "x"}, "start must be a whole number"),
    ],
)
def test_what_does_not_fit_is_one_line(factors: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        Trajectory.from_factors(STEPS, factors, **options)
    assert "\n" not in str(caught.value)
