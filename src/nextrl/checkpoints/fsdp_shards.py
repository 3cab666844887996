"""FSDP shards of verl: LoRA tensors whole, and whatever else one process of it saved.

verl 0.9.1 saves `model_world_size_W_rank_R.pt` and `optim_world_size_W_rank_R.pt`, dicts of DTensors (in its source:
utils/checkpoint/fsdp_checkpoint_manager.py). Its model merger casts every tensor to bf16 and writes the whole model
(model_merger/fsdp_model_merger.py), which rounds a window's small movement away (docs/precision.md). So the
LoRA tensors are read from the shards as they are, and joined along the dimension that each was cut along.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextrl.checkpoints.atomic import writing
from nextrl.checkpoints.tensorfile import UNREADABLE, read_pickle, read_tensors, refuse_odd
from nextrl.errors import InputError, first_line, shown

_SHARD = re.compile(r"^model_world_size_(\d+)_rank_(\d+)\.pt$")


def read_shard(path: Path) -> object:
    """What one process saved, with a safe load; tensors are mapped, since a shard may hold the whole model.

    Raises:
        one of `UNREADABLE`, or what `files.regular_file` raises.
    """
    import torch.distributed.tensor  # noqa: F401  registers DTensor among the classes a safe load may build

    log = logging.getLogger("torch.distributed.device_mesh")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns that this process is no member of the mesh, which is so
    try:
        return read_pickle(path, mmap=True)
    finally:
        log.setLevel(level)


def has_shards(actor: Path) -> bool:
    """Whether an `actor` folder holds any of the model's shards."""
    return any(_SHARD.match(path.name) for path in actor.glob("*.pt"))


def read_shards(actor: Path) -> dict[str, Tensor]:
    """LoRA tensors of an `actor` folder by PEFT's saved names, whole and in the dtype they were saved in.

    Raises:
        InputError: shards missing, unreadable, or without LoRA tensors.
    """
    found = [(int(m[1]), int(m[2]), p) for p in actor.glob("*.pt") if (m := _SHARD.match(p.name))]
    worlds, ranks = sorted({world for world, _, _ in found}), sorted(rank for _, rank, _ in found)
    if len(worlds) > 1:
        sets = " and ".join(f"model_world_size_{world}_rank_*" for world in worlds)
        raise InputError(
            f"{actor}: holds shards of {len(worlds)} saves by other numbers of processes, {sets}; move the earlier "
            "ones away"
        )
    world = worlds[0] if worlds else 0
    if not world or len(ranks) != world or ranks != list(range(world)):
        raise InputError(
            f"{actor}: holds FSDP shards of ranks {ranks or 'none'}, not of all {world or 'ranks'}"
        )
    parts = [_lora_only(path) for _, _, path in sorted(found)]
    names = dict.fromkeys(name for part in parts for name in part)
    if not names:
        raise InputError(f"{actor}: its shards hold no LoRA tensors; did verl run with lora_rank > 0?")
    return {name: _joined(actor, name, [part.get(name) for part in parts]) for name in names}


def newer_shards(actor: Path, file: Path) -> bool:
    """Whether verl has written its shards after an adapter's file was written."""
    try:
        last = max(p.stat().st_mtime_ns for p in actor.glob("*.pt") if _SHARD.match(p.name))
        return last > file.stat().st_mtime_ns
    except (OSError, ValueError):  # one of them is not there
        return False


def written_out(actor: Path, file: Path, tensors: Mapping[str, Tensor]) -> bool:
    """Whether an adapter's file has the shards' tensors to the bit, and no damage; its time then says so, too."""
    try:
        there = read_tensors(file)
    except InputError:
        return False
    same = there.keys() == tensors.keys() and all(
        tensor.dtype == there[name].dtype and torch.equal(tensor, there[name])
        for name, tensor in tensors.items()
    )
    if same and newer_shards(actor, file):
        with writing(file):
            os.utime(file)
    return same


def _lora_only(path: Path) -> dict[str, Tensor]:
    try:
        state = read_shard(path)
    except UNREADABLE as error:
        raise InputError(f"{path}: not a readable FSDP shard ({first_line(error)})") from None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise InputError(f"{path}: not a state dict")
    found: dict[str, Tensor] = {}
    for name in (name for name in state if ".lora_" in name):
        plain, part = _plain(name), state[name]
        if plain in found:
            raise InputError(
                f"{path}: {shown(plain)} is there twice under two names, the second of which is {shown(name)}: of two "
                "adapters nobody can tell which was trained; save that one alone"
            )
        if not isinstance(part, Tensor):
            raise InputError(f"{path}: {shown(name)} is no tensor; write the checkpoint again")
        refuse_odd(path, name, _local(part))
        found[plain] = part
    return found


def _plain(name: str) -> str:
    """PEFT's saved name of a LoRA tensor. FSDP1 puts its wrapper's name between the modules'."""
    name = name.replace("_fsdp_wrapped_module.", "").replace("_checkpoint_wrapped_module.", "")
    return re.sub(r"(\.lora_(?:A|B))\.[^.]+\.weight$", r"\1.weight", name)


def _local(part: Any) -> Tensor:
    """What one process held of a tensor, which may be a DTensor."""
    local: Tensor = part.to_local() if hasattr(part, "placements") else part
    return local.detach()


def _joined(actor: Path, name: str, parts: list[Any]) -> Tensor:
    """One tensor from its parts on all ranks; with replicas (HSDP) each part is taken once."""
    if any(part is None for part in parts):
        raise InputError(f"{actor}: {name} is not in the shards of all ranks")
    cut = next((p for p in getattr(parts[0], "placements", ()) if p.is_shard()), None)
    if cut is None:
        return _local(parts[0])
    groups = parts[0].device_mesh.mesh.reshape(-1, parts[0].device_mesh.mesh.shape[-1])[0].tolist()
    try:
        joined = torch.cat([_local(parts[rank]) for rank in groups], dim=cut.dim)
    except (IndexError, RuntimeError) as error:
        raise InputError(f"{actor}: the shards of {name} do not fit together ({first_line(error)})") from None
    if joined.shape != parts[0].shape:
        raise InputError(
            f"{actor}: {name} is {tuple(parts[0].shape)}, but its shards make {tuple(joined.shape)}"
        )
    return joined
