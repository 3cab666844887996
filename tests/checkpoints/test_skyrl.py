"""Archives of SkyRL's Tinker server, unpacked: the layout of `save_lora_checkpoint` (skyrl-tx/tx/utils/models.py).

Its configuration is `peft.LoraConfig(base_model_name_or_path, r, lora_alpha)` and names no target_modules; its tensors
are named as PEFT names them, embeddings left out unless they are trained.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from typer.testing import CliRunner

import nextrl
from nextrl.cli import build

MODULES = ("self_attn.q_proj", "mlp.down_proj")


def unpacked(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """What is in the archive `<checkpoint id>.tar.gz`, unpacked under its id."""
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for module in MODULES:
        name = f"base_model.model.model.layers.0.{module}"
        tensors[f"{name}.lora_A.weight"] = torch.randn(4, 6, generator=generator)
        tensors[f"{name}.lora_B.weight"] = torch.randn(5, 4, generator=generator) * step / 100
    place = folder / f"{step:06d}"
    place.mkdir(parents=True)
    save_file(tensors, place / "adapter_model.safetensors")
    LoraConfig(base_model_name_or_path="Qwen/Qwen3-0.6B", r=4, lora_alpha=32).save_pretrained(place)
    return tensors


def test_unpacked_archives_are_a_run(tmp_path: Path) -> None:
    written = {step: unpacked(tmp_path, step) for step in (10, 20, 30)}
    traj = nextrl.Trajectory.load(tmp_path)
    assert traj.steps == (10, 20, 30)
    for module in traj.modules:
        a, b = (written[30][f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
        assert torch.allclose(traj.weight(30, module).dense().float(), 8.0 * b @ a, atol=1e-5)
    shown = CliRunner().invoke(build(["inspect"]), ["inspect", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert "folders" in shown.output


@pytest.mark.parametrize("command", ["advise", "analyze"])
def test_and_the_verbs_take_them(tmp_path: Path, command: str) -> None:
    for step in range(10, 70, 10):
        unpacked(tmp_path, step)
    done = CliRunner().invoke(build([command]), [command, str(tmp_path)])
    assert done.exit_code == 0, done.output
