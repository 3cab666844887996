"""Runs on disk that leap half-way, along a straight line: what happened at which step can be read off."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from nextrl.leaps.leap import leap
from nextrl.trajectory.trajectory import Trajectory

MODULE = "model.layers.0.mlp.up_proj"
CONFIG = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "init_lora_weights": True,
    "target_modules": ["up_proj"],
}


def write(folder: Path, place: float, wobble: float = 0.0) -> Path:
    """An adapter that stands `place` steps along a straight line, with noise of its own."""
    draws = torch.Generator().manual_seed(7)
    a = torch.randn(4, 20, generator=draws, dtype=torch.float64)
    b = torch.outer(torch.randn(40, generator=draws, dtype=torch.float64), torch.tensor([1.0, 0, 0, 0]))
    noise = torch.randn(40, 4, generator=torch.Generator().manual_seed(int(place)), dtype=torch.float64)
    stem = f"base_model.model.{MODULE}"
    state = {
        f"{stem}.lora_A.weight": a,
        f"{stem}.lora_B.weight": b.double() * place / 100 + wobble * noise,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    return folder


def leapt_run(folder: Path, wobble: float = 0.0) -> dict[int, Path]:
    """Step -> folder: 100 steps, a leap of 100 at step 100, and 100 steps more; the adapter of the leap on."""
    first = {s: write(folder / f"checkpoint-{s}", s, wobble) for s in range(10, 101, 10)}
    leap(Trajectory.load(first), "secant", horizon=100).save_adapter(folder / "leap-100")
    later = {s: write(folder / f"checkpoint-{s}", s + 100, wobble) for s in range(110, 201, 10)}
    return {100: folder / "leap-100", **later}
