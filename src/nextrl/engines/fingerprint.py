"""Whether a state that lies in a checkpoint was written beside the weights that are loaded from it.

A trainer that writes into the folder of an earlier run replaces its own files and leaves everybody else's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Fingerprint = dict[str, tuple[str, int]]
"""Name -> (dtype, sum of the bit patterns as whole numbers, modulo 2^64)."""

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(tensors: Mapping[str, Tensor]) -> Fingerprint:
    """Of each tensor what tells it from another one of its name; computed where it lies, and a GPU waited for once."""
    if not tensors:
        return {}
    sums = [_sum(tensor) for tensor in tensors.values()]
    found = torch.stack([one.to(sums[0].device) for one in sums]).tolist()
    return {name: (str(t.dtype), one) for (name, t), one in zip(tensors.items(), found, strict=True)}


def _sum(tensor: Tensor) -> Tensor:
    plain = tensor.detach().contiguous()
    return plain.view(_WHOLE[plain.element_size()]).sum(dtype=torch.int64)


def belongs(known: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the weights are those of the fingerprint; True where that is not known.

    Weights that were widened when they were loaded (PEFT makes a half-precision adapter float32) are compared in the
    dtype they were saved in; those that were narrowed have lost what would tell.
    """
    if not known:
        return True
    stored: dict[str, Any] = {
        name: getattr(torch, str(known[name][0]).removeprefix("torch."), None) for name in known
    }
    comparable = {
        name: tensor.detach().to(stored[name])
        for name, tensor in tensors.items()
        if isinstance(stored.get(name), torch.dtype)
        and torch.promote_types(tensor.dtype, stored[name]) == tensor.dtype
    }
    return agrees(known, fingerprint(comparable))


def agrees(known: Mapping[str, Any], now: Fingerprint) -> bool:
    """Whether two fingerprints are of the same values, wherever names and dtypes are the same."""
    return all(
        one == int(known[name][1])
        for name, (dtype, one) in now.items()
        if name in known and known[name][0] == dtype
    )
