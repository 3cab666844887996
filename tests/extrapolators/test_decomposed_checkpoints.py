"""Adapters that were taken out of whole models one by one: their factors have no path, the weights that they add do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nextrl.errors import InputError
from nextrl.leaps.leap import leap
from nextrl.trajectory.trajectory import Trajectory

STEPS = range(10, 81, 10)
SHAPES = {"model.layers.0.self_attn.q_proj": (24, 16), "model.layers.0.mlp.up_proj": (40, 16)}
Split = Callable[[Tensor], tuple[Tensor, Tensor]]


def displacement(module: str, step: int, rank: int = 4) -> Tensor:
    """W_t - W_base of rank 4: a straight line, and a wobble of its own at each checkpoint."""
    m, n = SHAPES[module]
    draws = torch.Generator().manual_seed(m)
    left, right = torch.randn(m, rank, generator=draws), torch.randn(rank, n, generator=draws)
    wobble = torch.randn(m, rank, generator=torch.Generator().manual_seed(m + step))
    return (0.01 * step * left + 0.05 * wobble) @ right


def split_evenly(weights: Tensor) -> tuple[Tensor, Tensor]:
    """A and B as mergekit-extract-lora 0.1.5 writes them."""
    u, s, vh = torch.linalg.svd(weights, full_matrices=False)
    root = s[:4].sqrt()
    return root[:, None] * vh[:4], u[:, :4] * root


def split_onto_a(weights: Tensor) -> tuple[Tensor, Tensor]:
    """The same under --no-distribute-scale."""
    u, s, vh = torch.linalg.svd(weights, full_matrices=False)
    return s[:4, None] * vh[:4], u[:, :4]


def extracted(run: Path, split: Split = split_evenly, dtype: torch.dtype = torch.float32) -> Path:
    """A folder of adapters with the configuration that mergekit-extract-lora 0.1.5 writes."""
    for step in STEPS:
        folder, state = run / f"checkpoint-{step}", {}
        for module in SHAPES:
            a, b = split(displacement(module, step))
            stem = f"base_model.model.{module}"
            state[f"{stem}.lora_A.weight"] = a.to(dtype).contiguous()
            state[f"{stem}.lora_B.weight"] = b.to(dtype).contiguous()
        folder.mkdir(parents=True)
        save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "base_model_name_or_path": "base",
            "peft_type": "LORA",
            "use_rslora": False,
            "target_modules": ["q_proj", "up_proj"],
            "modules_to_save": [],
            "task_type": "CAUSAL_LM",
            "r": 4,
            "lora_alpha": 4,
            "rank_pattern": {},
            "alpha_pattern": {},
            "lora_dropout": 0.0,
            "fan_in_fan_out": False,
            "inference_mode": True,
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("split", [split_evenly, split_onto_a])
@pytest.mark.parametrize("method", ["factors", "nowcast"])
def test_no_method_steps_inside_factors_of_models_taken_apart_one_by_one(
    tmp_path: Path, method: str, split: Split, dtype: torch.dtype
) -> None:
    run = extracted(tmp_path / "run", split, dtype)
    fast = {"updates": 5} if method == "nowcast" else {}
    with pytest.raises(InputError, match=r'run: .*mergekit-extract-lora.*method="secant"'):
        leap(run, method, horizon=10, alpha=1.0, **fast)


def test_differences_of_weights_are_right_all_the_same(tmp_path: Path) -> None:
    made = leap(extracted(tmp_path / "run"), "secant", horizon=10, alpha=1.0)
    for module in SHAPES:
        last, before = displacement(module, 80).double(), displacement(module, 70).double()
        torch.testing.assert_close(made.delta(module).dense(), last - before, atol=1e-4, rtol=1e-4)


def trained(start: Split) -> Trajectory:
    """A run from a start that is itself a decomposition, as PiSSA's: factors that move on from it."""
    a, b = start(displacement("model.layers.0.mlp.up_proj", 10))
    path = []
    for step in (0, *STEPS):
        draws = torch.Generator().manual_seed(step)
        wobbles = [torch.randn(f.shape, generator=draws) for f in (a, b)]
        path.append(tuple(f * (1 + 0.001 * step) + 0.01 * w for f, w in zip((a, b), wobbles, strict=True)))
    path[0] = (a, b)
    factors = [{"m": pair} for pair in path]
    return Trajectory.from_factors([0, *STEPS], factors, adapter_config={"init_lora_weights": "pissa"})


def test_a_trained_adapter_may_begin_as_a_decomposition() -> None:
    traj = trained(split_evenly)
    leap(traj, "factors", horizon=10)
    leap(traj.at([0, 10]), "factors", horizon=10)


def test_rows_that_are_orthogonal_still_are_no_decomposition() -> None:
    """PEFT's `init_lora_weights="orthogonal"`, early in a run at a low rate: B's even columns are A's odd ones."""
    draws = torch.Generator().manual_seed(0)
    base = torch.linalg.qr(torch.randn(64, 16, generator=draws)).Q.mT
    a, b = base[::2].clone(), base[1::2].mT.clone()
    path = []
    for _ in range(4):
        path.append({"m": (a, b)})
        a, b = (f + 1e-6 * torch.randn(f.shape, generator=draws) for f in (a, b))
    traj = Trajectory.from_factors([0, 1, 2, 3], path, adapter_config={"init_lora_weights": "orthogonal"})
    leap(traj, "factors", horizon=2)
