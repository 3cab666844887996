"""Adapter parameters that lie in pieces on several processes: gather them alone, write each process its piece.

Three layouts, told apart by what the parameter itself carries:

- FSDP2 (`torch.distributed.fsdp.fully_shard`): a DTensor. `full_tensor()` gathers it, `distribute_tensor` cuts a full
  tensor as the parameter is cut. The optimizer steps on these very pieces, so nothing else holds a copy.
- DeepSpeed ZeRO-3: `ds_id` and `ds_shape`, the parameter itself empty between uses;
  `deepspeed.zero.GatheredParameters` collects it and cuts it again.
- DeepSpeed ZeRO-1 and -2, and its bf16 optimizer: `_hp_mapping`, the parameter whole but its float32 master in pieces.

In both DeepSpeed layouts the optimizer steps on a float32 master and overwrites the parameter from it. A leap written
into the parameter alone would be gone after one step, so it is written into the master as well
(`deepspeed.utils.safe_set_full_fp32_param`), and the path is read from there, where bf16 has not rounded it.

Every function here but `local` is a collective operation: all processes call it with the same names in the same order.
FSDP1 keeps a module's parameters in one flat tensor, where an adapter has no pieces of its own: it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nextrl.errors import InputError


def shape(parameter: Any) -> torch.Size:
    """The whole parameter's shape, wherever its pieces are."""
    return torch.Size(parameter.ds_shape) if hasattr(parameter, "ds_shape") else parameter.shape


def read(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Whole, detached copies, on each parameter's device; float32 where DeepSpeed keeps a float32 master."""
    return {name: _read(p) for name, p in parameters.items()}


def write(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Copy whole tensors, equal on all processes, into the live parameters and their masters, in place."""
    with torch.no_grad():
        for name, p in parameters.items():
            _write(p, values[name])


def forget_gathered(model: nn.Module) -> None:
    """Have FSDP2 gather anew what was written: where it keeps a layer whole after a forward pass, that is stale now.

    It does so under `fsdp_reshard_after_forward: false`, and at the root of a model always.
    """
    for module in model.modules():
        if callable(reshard := getattr(module, "reshard", None)):
            reshard()


def is_flat(model: nn.Module) -> bool:
    """Whether a model is wrapped in FSDP1, which keeps the parameters of a module in one flat tensor."""
    return any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())


def refuse_flat(model: nn.Module) -> None:
    """Check that no parameter lies inside a flat one.

    Raises:
        InputError: the model is wrapped in FSDP1.
    """
    if is_flat(model):
        raise InputError("leaps cannot find an adapter inside FSDP1's flat tensors: set fsdp_version to 2")


def local(tensor: Any) -> Tensor:
    """This process's part of a tensor, sharing its memory."""
    own: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return own.detach()


def _read(p: Any) -> Tensor:
    if hasattr(p, "full_tensor"):
        full: Tensor = p.detach().full_tensor().clone()
        return full
    if hasattr(p, "ds_id") or hasattr(p, "_hp_mapping"):
        from deepspeed.utils import safe_get_full_fp32_param

        master: Tensor = safe_get_full_fp32_param(p)
        return master.detach().clone().reshape(shape(p))
    own: Tensor = p.detach().clone()
    return own


def _write(p: Any, value: Tensor) -> None:
    if hasattr(p, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        cut = distribute_tensor(value.to(p.device, p.dtype), p.device_mesh, p.placements)
        p.to_local().copy_(cut.to_local())
        return
    if not (hasattr(p, "ds_id") or hasattr(p, "_hp_mapping")):
        p.copy_(value)
        return
    from deepspeed.utils import safe_set_full_fp32_param

    safe_set_full_fp32_param(p, value.float())
    if not hasattr(p, "ds_id"):
        p.copy_(value)
        return
    # `deepspeed.zero` is an attribute, not a module that could be imported from (read in DeepSpeed 0.19).
    import deepspeed

    with deepspeed.zero.GatheredParameters([p], modifier_rank=0):
        p.copy_(value)
