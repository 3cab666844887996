"""Adapters out of verl's checkpoints: shards as two real processes write them, and what can be broken."""

import json
import os
import shutil
from importlib import resources
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from peft import PeftModel
from safetensors.torch import load_file, save_file

import nextrl
from nextrl.engines.settings import LoraSettings
from nextrl.engines.verl.adapters import collect, fresh_adapter, read_shards
from nextrl.errors import InputError
from nextrl.tasks.bases import tiny

BASE = str(resources.files("nextrl.tasks") / "bases" / "chain")
LORA = LoraSettings(r=4, alpha=8, target_modules=["q_proj", "down_proj"])
WEIGHTS = "adapter_model.safetensors"


def tensors(seed):
    """LoRA tensors in float32, seven rows on two ranks so that the shards are uneven, and one frozen weight."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "base_model.model.model.layers.0.q_proj.lora_A.default.weight": torch.randn(
            7, 5, generator=generator
        ),
        "base_model.model.model.layers.0.q_proj.lora_B.default.weight": torch.randn(
            6, 7, generator=generator
        ),
        "base_model.model.model.layers.1.q_proj.lora_A.default.weight": torch.randn(
            1, 5, generator=generator
        ),
        "base_model.model.model.layers.0.q_proj.base_layer.weight": torch.randn(6, 5, generator=generator),
    }


def write_rank(rank, store, folder, replicas):
    """What one rank of FSDP2 saves: DTensors cut along rows, on a mesh with or without replicas (HSDP)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    shape, names = ((2, 1), ("ddp", "fsdp")) if replicas else ((2,), ("fsdp",))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    placements = [Replicate(), Shard(0)] if replicas else [Shard(0)]
    state = {name: distribute_tensor(tensor, mesh, placements) for name, tensor in tensors(0).items()}
    torch.save(state, f"{folder}/model_world_size_2_rank_{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[False, True], ids=["fsdp", "hsdp"])
def shards(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    actor = root / "global_step_2" / "actor"
    actor.mkdir(parents=True)
    mp.spawn(write_rank, args=(str(root / "store"), str(actor), request.param), nprocs=2)
    return actor


def test_shards_of_two_processes_make_the_whole_tensors_bit_for_bit(shards):
    found = read_shards(shards)
    wanted = {k: v for k, v in tensors(0).items() if "lora_" in k}
    assert sorted(found) == sorted(name.replace(".default", "") for name in wanted)
    assert all(torch.equal(found[name.replace(".default", "")], tensor) for name, tensor in wanted.items())


def test_parts_that_do_not_fit_together_are_one_line(shards, tmp_path):
    folder = Path(shutil.copytree(shards, tmp_path / "actor"))
    path = folder / "model_world_size_2_rank_0.pt"
    state = torch.load(path, weights_only=True)
    for part in state.values():
        part._local_tensor = part.to_local()[:, :2].clone()
    torch.save(state, path)
    with pytest.raises(InputError, match=r"do not fit together|but its shards make"):
        read_shards(folder)


def fresh(out: Path, seed=0) -> Path:
    fresh_adapter(BASE, LORA, seed).write(out)
    return out


def write_plain(actor: Path, adapter: Path, change=None):
    """Shards of one process: plain tensors."""
    actor.mkdir(parents=True, exist_ok=True)
    state = {k.replace(".weight", ".default.weight"): v + 1 for k, v in load_file(adapter / WEIGHTS).items()}
    torch.save(change(state) if change else state, actor / "model_world_size_1_rank_0.pt")


def test_a_fresh_adapter_loads_in_peft_and_changes_nothing(tmp_path):
    model, tokenizer = tiny.load("chain")
    inputs = tokenizer(["3+4*5-2="], return_tensors="pt")
    kept = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    before = model(**kept).logits
    policy = PeftModel.from_pretrained(model, str(fresh(tmp_path / "a")), is_trainable=True)
    assert torch.equal(policy(**kept).logits, before)
    assert any(p.requires_grad for p in policy.parameters())


def test_a_fresh_adapter_starts_as_pefts_own(tmp_path):
    found = load_file(fresh(tmp_path / "a") / WEIGHTS)
    a = next(t for name, t in found.items() if "down_proj.lora_A" in name)
    bound = a.shape[1] ** -0.5
    assert a.abs().max() <= bound
    assert float(a.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    again, other = (
        load_file(fresh(tmp_path / "b") / WEIGHTS),
        load_file(fresh(tmp_path / "c", seed=1) / WEIGHTS),
    )
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert not any(torch.equal(found[name], other[name]) for name in found if "lora_A" in name)


def test_collect_writes_a_peft_adapter_with_the_runs_own_configuration(tmp_path):
    like = fresh(tmp_path / "like")
    write_plain(tmp_path / "global_step_2" / "actor", like)
    out = collect(tmp_path / "global_step_2", like)
    found, start = load_file(out / WEIGHTS), load_file(like / WEIGHTS)
    assert all(torch.equal(found[name], start[name] + 1) for name in start)
    assert json.loads((out / "adapter_config.json").read_text())["lora_alpha"] == 8
    assert nextrl.Trajectory.load(tmp_path).steps == (2,)  # where `nextrl analyze` finds it


def test_an_adapter_that_an_older_verl_saved_is_taken(tmp_path):
    like = fresh(tmp_path / "like")
    saved = tmp_path / "global_step_2" / "actor" / "lora_adapter"
    saved.mkdir(parents=True)
    save_file({k: v + 2 for k, v in load_file(like / WEIGHTS).items()}, saved / WEIGHTS)
    assert collect(tmp_path / "global_step_2", like) == saved
    start = load_file(like / WEIGHTS)
    assert all(torch.equal(t, start[n] + 2) for n, t in load_file(saved / WEIGHTS).items())


def test_an_adapter_is_written_again_where_verl_has_written_its_shards_again(tmp_path):
    like, folder = fresh(tmp_path / "like"), tmp_path / "global_step_2"
    write_plain(folder / "actor", like)
    out = collect(folder, like)
    written = (out / WEIGHTS).stat().st_mtime_ns
    assert collect(folder, like) == out
    assert (out / WEIGHTS).stat().st_mtime_ns == written  # nothing to do
    write_plain(folder / "actor", like, lambda state: {k: v + 6 for k, v in state.items()})
    start = load_file(like / WEIGHTS)
    assert all(
        torch.equal(t, start[n] + 1 + 6) for n, t in load_file(collect(folder, like) / WEIGHTS).items()
    )
    (out / WEIGHTS).write_bytes(b"torn")
    assert all(
        torch.equal(t, start[n] + 1 + 6) for n, t in load_file(collect(folder, like) / WEIGHTS).items()
    )


def drop_one(state):
    del state[next(iter(state))]
    return state


def poison(state):
    next(iter(state.values()))[0] = float("nan")
    return state


def rank_two(state):
    return {k: v[:2] if "lora_A" in k else v[:, :2] for k, v in state.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_one, "has no .*did target_modules change"),
        (poison, "holds NaN or infinity"),
        (rank_two, r"is \(2, .*the run's is \(4, "),
        (lambda state: {"model.embed": torch.zeros(2)}, "hold no LoRA tensors"),
        (lambda state: [1, 2], "not a state dict"),
    ],
)
def test_wrong_shards_are_one_line_and_nothing_is_written(tmp_path, change, words):
    like = fresh(tmp_path / "like")
    write_plain(tmp_path / "global_step_2" / "actor", like, change)
    with pytest.raises(InputError, match=words) as error:
        collect(tmp_path / "global_step_2", like)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "global_step_2" / "actor" / "lora_adapter").exists()


def test_a_missing_checkpoint_a_missing_rank_and_a_torn_file(tmp_path):
    like, actor = fresh(tmp_path / "like"), tmp_path / "global_step_2" / "actor"
    with pytest.raises(InputError, match="verl left no actor checkpoint"):
        collect(tmp_path / "global_step_2", like)
    actor.mkdir(parents=True)
    with pytest.raises(InputError, match="shards of ranks none"):
        read_shards(actor)
    (actor / "model_world_size_2_rank_1.pt").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"ranks \[1\], not of all 2"):
        read_shards(actor)
    (actor / "model_world_size_2_rank_0.pt").write_bytes(b"torn")
    with pytest.raises(InputError, match="not a readable FSDP shard"):
        read_shards(actor)
