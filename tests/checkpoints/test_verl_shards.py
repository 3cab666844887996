"""`python -m nextrl.checkpoints.verl_adapter RUN`: what shards of verl may hold, and adapters older than they are."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nextrl.checkpoints import open_run, verl_adapter
from nextrl.checkpoints.fsdp_shards import read_shards
from nextrl.errors import InputError
from nextrl.trajectory.trajectory import Trajectory

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


def of_factors(change: Callable[[Tensor], Any]) -> Callable[[State], State]:
    return lambda shard: {k: change(v) if "lora_" in k else v for k, v in shard.items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (twice, "lora_A.weight' is there twice under two names"),
        (lambda shard: {1: torch.ones(2), **shard}, "not a state dict"),
        (of_factors(lambda _: "x"), "lora_A.default.weight' is no tensor"),
        (of_factors(lambda t: t.to("meta")), "tensor on meta, not a plain one"),
        (of_factors(lambda t: t.to_sparse()), "sparse_coo tensor on cpu, not a plain one"),
        (of_factors(lambda t: torch.zeros(1).expand(200_000, 200_000)), "larger than what is stored for it"),
        (of_factors(lambda t: t.to(torch.int8)), "lora_A.weight is int8; float16"),
        (of_factors(lambda t: t * torch.nan), "lora_A.weight' holds NaN or infinity"),
        (lambda shard: {k: v for k, v in shard.items() if "lora_B" not in k}, "has only one of lora_A"),
        (of_factors(lambda t: t[:3]), "do not fit"),
    ],
)
def test_shards_of_no_adapter_are_one_line_and_nothing_is_written(tmp_path, capsys, change, says):
    folder = actor(tmp_path)
    torch.save(change(state()), folder / SHARD)
    assert says in told(tmp_path, capsys)
    assert sorted(path.name for path in folder.iterdir()) == [META, SHARD]


@pytest.mark.parametrize(
    ("meta", "says"),
    [
        ({"r": 64}, f"has rank 4, {META} says 64"),
        ({"r": -1}, f"{META}: r is -1"),
        ({"r": 4.5}, f"{META}: r is 4.5"),
        ({"r": None}, f"{META}: r is None"),
        ({"lora_alpha": 0}, f"{META}: lora_alpha is 0"),
        ({"lora_alpha": -8}, f"{META}: lora_alpha is -8"),
        ({"task_type": {"a": 1}}, f"{META}: task_type is {{'a': 1}}"),
    ],
)
def test_metadata_that_cannot_be_are_one_line_and_nothing_is_written(tmp_path, capsys, meta, says):
    folder = actor(tmp_path, **meta)
    assert says in told(tmp_path, capsys)
    assert sorted(path.name for path in folder.iterdir()) == [META, SHARD]


@pytest.mark.parametrize(
    "put",
    [lambda out: out.write_text("mine"), lambda out: out.symlink_to(out.parents[3] / "elsewhere")],
    ids=["file", "dead link"],
)
def test_what_is_no_folder_stays_as_it_is(tmp_path, capsys, put):
    folder = actor(tmp_path / "run")
    put(folder / "lora_adapter")
    assert "lora_adapter: is no folder" in told(tmp_path / "run", capsys)
    assert sorted(path.name for path in folder.iterdir()) == ["lora_adapter", META, SHARD]
    assert not (tmp_path / "elsewhere").exists()


def test_one_broken_checkpoint_does_not_keep_the_others_from_being_written(tmp_path, capsys):
    for step in (10, 20, 30):
        actor(tmp_path, step)
    torch.save({}, tmp_path / "global_step_20" / "actor" / SHARD)
    assert "global_step_20" in told(tmp_path, capsys)
    assert Trajectory.load(tmp_path, skip_bad_checkpoints=True).steps == (10, 30)


def test_shards_of_two_saves_in_one_folder_are_refused_by_name(tmp_path):
    folder = actor(tmp_path)
    for rank in (0, 1):
        torch.save(state(7.0), folder / f"model_world_size_2_rank_{rank}.pt")
    with pytest.raises(
        InputError, match=r"model_world_size_1_rank_\* and model_world_size_2_rank_\*.*move the earlier"
    ):
        read_shards(folder)


def test_a_tensor_that_the_first_process_lacks_is_missed(tmp_path):
    folder = actor(tmp_path)
    (folder / SHARD).unlink()
    whole = state()
    torch.save({k: v for k, v in whole.items() if "lora_B" not in k}, folder / "model_world_size_2_rank_0.pt")
    torch.save(whole, folder / "model_world_size_2_rank_1.pt")
    with pytest.raises(InputError, match=r"lora_B.weight is not in the shards of all ranks"):
        read_shards(folder)


def trained_anew(folder: Path, scale: float) -> None:
    """verl writes other weights into the same folder, later."""
    torch.save(state(scale), folder / SHARD)
    later = time.time() + 5
    os.utime(folder / SHARD, (later, later))


def test_an_adapter_older_than_its_shards_is_named_and_written_anew(tmp_path):
    folders = [actor(tmp_path, step) for step in (10, 20)]
    assert verl_adapter.main([str(tmp_path)]) == 0
    assert not open_run(tmp_path).problems
    settings = [folder / "lora_adapter" / "adapter_config.json" for folder in folders]
    for path in settings:
        path.write_text(json.dumps({**json.loads(path.read_text()), "use_rslora": True}))
    trained_anew(folders[0], -3.0)
    [problem] = open_run(tmp_path).problems
    assert "older than the FSDP shards" in str(problem)
    assert f"python -m nextrl.checkpoints.verl_adapter {tmp_path}" in str(problem)
    with pytest.raises(InputError, match="older than the FSDP shards"):
        Trajectory.load(tmp_path)
    assert Trajectory.load(tmp_path, skip_bad_checkpoints=True).steps == (20,)
    assert verl_adapter.main([str(tmp_path)]) == 0
    found = load_file(folders[0] / WEIGHTS)[f"{LAYER}.lora_A.weight"]
    assert torch.equal(found, state(-3.0)[f"{LAYER}.lora_A.default.weight"])
    assert json.loads(settings[0].read_text())["use_rslora"] is True  # which verl does not know


def test_an_adapter_with_the_values_of_its_shards_is_left_alone(tmp_path, capsys):
    folder = actor(tmp_path)
    assert verl_adapter.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(folder / "lora_adapter")]
    written = (folder / WEIGHTS).stat()
    assert verl_adapter.main([str(tmp_path)]) == 0
    assert (folder / WEIGHTS).stat() == written
    trained_anew(folder, 1.0)  # a copy of the folder may turn the times around
    os.utime(folder / SHARD, (written.st_mtime + 1e-3, written.st_mtime + 1e-3))
    assert open_run(tmp_path).problems
    assert verl_adapter.main([str(tmp_path)]) == 0
    assert not open_run(tmp_path).problems
    assert (folder / WEIGHTS).stat().st_ino == written.st_ino
    assert len(capsys.readouterr().out.split()) == 0


def test_an_adapter_that_an_older_verl_saved_beside_its_shards_is_left_alone(tmp_path):
    folder = actor(tmp_path)
    assert verl_adapter.main([str(tmp_path)]) == 0
    (folder / META).unlink()
    written = (folder / WEIGHTS).read_bytes()
    trained_anew(folder, 2.0)
    assert verl_adapter.main([str(tmp_path)]) == 0
    assert (folder / WEIGHTS).read_bytes() == written
    assert not open_run(tmp_path).problems
