"""`python -m nextrl.checkpoints.verl_adapter RUN`: what shards of verl may hold, and adapters older than they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nextrl.checkpoints import verl_adapter

SHARD, META = "model_world_size_1_rank_0.pt", "lora_train_meta.json"
LAYER = "base_model.model.model.layers.0.q_proj"
WEIGHTS = "lora_adapter/adapter_model.safetensors"
State = dict[Any, Any]


def state(scale: float = 1.0) -> dict[str, Tensor]:
    """What one process of verl saves of an adapter."""
    torch.manual_seed(0)
    shapes = {"lora_A": (4, 6), "lora_B": (5, 4)}
    factors = {f"{LAYER}.{side}.default.weight": scale * torch.randn(shape) for side, shape in shapes.items()}
    return {f"{LAYER}.base_layer.weight": torch.randn(5, 6), **factors}


def actor(run: Path, step: int = 10, **meta: object) -> Path:
    folder = run / f"global_step_{step}" / "actor"
    folder.mkdir(parents=True)
    torch.save(state(step / 10), folder / SHARD)
    (folder / META).write_text(json.dumps({"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **meta}))
    return folder


def told(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the command refuses a run."""
    assert verl_adapter.main([str(run)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def twice(shard: State) -> State:
    return {**shard, **{name.replace("default", "ref"): 0 * value for name, value in shard.items()}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (twice, "lora_A.weight' is there twice under two names"),
    ],
)
def test_shards_of_no_adapter_are_one_line_and_nothing_is_written(tmp_path, capsys, change, says):
    folder = actor(tmp_path)
    torch.save(change(state()), folder / SHARD)
    assert says in told(tmp_path, capsys)
    assert sorted(path.name for path in folder.iterdir()) == [META, SHARD]
