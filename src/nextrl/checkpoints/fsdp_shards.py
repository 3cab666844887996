"""FSDP shards of verl: LoRA tensors whole, and whatever else one process of it saved.

verl 0.9.1 saves `model_world_size_W_rank_R.pt` and `optim_world_size_W_rank_R.pt`, dicts of DTensors (in its source:
utils/checkpoint/fsdp_checkpoint_manager.py). Its model merger casts every tensor to bf16 and writes the whole model
(model_merger/fsdp_model_merger.py), which rounds a window's small movement away (docs/precision.md). So the
LoRA tensors are read from the shards as they are, and joined along the dimension that each was cut along.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextrl.checkpoints.tensorfile import UNREADABLE, read_pickle
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
    found = {int(m[2]): (int(m[1]), p) for p in actor.glob("*.pt") if (m := _SHARD.match(p.name))}
    world = max((size for size, _ in found.values()), default=0)
    if not world or sorted(found) != list(range(world)):
        raise InputError(
            f"{actor}: holds FSDP shards of ranks {sorted(found) or 'none'}, not of all {world or 'ranks'}"
        )
    parts = [_lora_only(found[rank][1]) for rank in range(world)]
    if not parts[0]:
        raise InputError(f"{actor}: its shards hold no LoRA tensors; did verl run with lora_rank > 0?")
    return {name: _joined(actor, name, [part.get(name) for part in parts]) for name in parts[0]}


def _lora_only(path: Path) -> dict[str, Any]:
    try:
        state = read_shard(path)
    except UNREADABLE as error:
        raise InputError(f"{path}: not a readable FSDP shard ({first_line(error)})") from None
    if not isinstance(state, dict):
        raise InputError(f"{path}: not a state dict")
    found: dict[str, Any] = {}
    for name in (name for name in state if ".lora_" in name):
        plain = _plain(name)
        if plain in found:
            raise InputError(
                f"{path}: {shown(plain)} is there twice under two names, the second of which is {shown(name)}: of two "
                "adapters nobody can tell which was trained; save that one alone"
            )
        found[plain] = state[name]
    return found


def _plain(name: str) -> str:
    """PEFT's saved name of a LoRA tensor. FSDP1 puts its wrapper's name between the modules'."""
    name = name.replace("_fsdp_wrapped_module.", "").replace("_checkpoint_wrapped_module.", "")
    return re.sub(r"(\.lora_(?:A|B))\.[^.]+\.weight$", r"\1.weight", name)


def _joined(actor: Path, name: str, parts: list[Any]) -> Tensor:
    """One tensor from its parts on all ranks; with replicas (HSDP) each part is taken once."""
    if any(part is None for part in parts):
        raise InputError(f"{actor}: {name} is not in the shards of all ranks")
    placements = getattr(parts[0], "placements", None)
    if placements is None:
        return torch.as_tensor(parts[0]).detach()
    cut = next((p for p in placements if p.is_shard()), None)
    if cut is None:
        return torch.as_tensor(parts[0].to_local().detach())
    groups = parts[0].device_mesh.mesh.reshape(-1, parts[0].device_mesh.mesh.shape[-1])[0].tolist()
    whole = torch.cat([parts[rank].to_local().detach() for rank in groups], dim=cut.dim)
    if whole.shape != parts[0].shape:
        raise InputError(
            f"{actor}: {name} is {tuple(parts[0].shape)}, but its shards make {tuple(whole.shape)}"
        )
    return whole
