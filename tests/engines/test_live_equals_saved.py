"""The callback and the command line measure the same: a live adapter beside the checkpoints that PEFT writes of it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

import lora_runs
from nextrl.engines.live_adapter import LiveAdapter
from nextrl.trajectory.lowrank import cosine
from nextrl.trajectory.trajectory import Trajectory

EXPERTS = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}

# Name -> (model, LoRA options), as in the suite of PEFT's variants (tests/checkpoints/test_peft_variants.py).
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "rslora": ("llama", {"use_rslora": True}),
    "patterns": (
        "llama",
        {"rank_pattern": {"down_proj": 2, "layers.1.self_attn.q_proj": 6}, "alpha_pattern": {"v_proj": 3}},
    ),
    "rslora patterns": (
        "llama",
        {"use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 5}},
    ),
    "one layer": ("qwen2", {"layers_to_transform": [1]}),
    "all linear": ("qwen2", {"target_modules": "all-linear"}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "gaussian": ("llama", {"init_lora_weights": "gaussian"}),
    "orthogonal": ("llama", {"init_lora_weights": "orthogonal"}),
    "pissa": ("llama", {"init_lora_weights": "pissa"}),
    "bias": ("llama", {"lora_bias": True}),
    "modules to save": ("llama", {"modules_to_save": ["lm_head"]}),
    "experts": ("mixtral", EXPERTS),
}


def drift(model: Any, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.02 * torch.randn(p.shape, generator=random) + 0.02


def watched(out: Path, kind: str, options: dict[str, Any], name: str = "default", others: Any = ()) -> Any:
    """(live adapter, its states at steps 0, 10, 20, 30), with PEFT's checkpoints of the steps in `out`."""
    torch.manual_seed(0)
    model = get_peft_model(lora_runs.model(kind), lora_runs.lora(**options), adapter_name=name)
    for other in others:
        model.add_adapter(other, lora_runs.lora(r=3))
    model.set_adapter(name)
    live, states = LiveAdapter(model), []
    for step in (0, 10, 20, 30):
        if step:
            drift(model, step)
        model.save_pretrained(str(out / f"checkpoint-{step}"))
        states.append(live.read())
    return live, states


def assert_equal(live: LiveAdapter, states: list[Any], traj: Trajectory) -> None:
    """Persistence, and each matrix of each displacement, to 1e-5 of its length."""
    assert traj.steps == (0, 10, 20, 30)
    moved = [lora_runs.displacement(live, a, b) for a, b in itertools.pairwise(states)]
    for window, (first, second) in enumerate(itertools.pairwise(moved)):
        assert cosine(second, first) == pytest.approx(traj.persistence(10, at=10 * window + 20), abs=1e-5)
    names = [name.removeprefix("base_model.model.") for name in live.scalings()]
    assert len(names) == len(traj.modules)
    lengths = []
    for start, deltas in zip(traj.steps, moved, strict=False):
        for name, delta in zip(names, deltas, strict=True):
            saved = traj.delta(_named(name, traj), start, start + 10).dense()
            ours = delta.dense().double()
            assert float((ours - saved).norm()) <= 1e-5 * float(saved.norm())
            lengths.append(float(saved.norm()))
    assert all(length > 0.0 and math.isfinite(length) for length in lengths)


def _named(name: str, traj: Trajectory) -> str:
    return name if name in traj.modules else next(m for m in traj.modules if m.endswith(name))


@pytest.mark.parametrize("variant", VARIANTS)
def test_persistence_and_displacement_are_those_of_the_saved_checkpoints(
    tmp_path: Path, variant: str
) -> None:
    live, states = watched(tmp_path, *VARIANTS[variant])
    assert_equal(live, states, Trajectory.load(tmp_path))


@pytest.mark.parametrize("others", [(), ("other",)])
def test_an_adapter_under_another_name_is_measured_alike(tmp_path: Path, others: Any) -> None:
    live, states = watched(tmp_path, "llama", {}, "policy", others)
    assert_equal(
        live, states, Trajectory.load({s: tmp_path / f"checkpoint-{s}" / "policy" for s in (0, 10, 20, 30)})
    )


def test_a_reference_beside_the_trained_adapter_changes_nothing(tmp_path: Path) -> None:
    live, states = watched(tmp_path, "llama", {}, others=("ref",))
    assert_equal(live, states, Trajectory.load(tmp_path))
