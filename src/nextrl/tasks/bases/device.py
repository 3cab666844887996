"""Where a model that only answers prompts lies; a trainer sees to its own."""

from __future__ import annotations

from typing import Any

import torch

from nextrl.errors import InputError, first_line, shown


def placed(model: Any, device: str | None = None) -> Any:
    """The model on a device.

    Args:
        device: as PyTorch names them ("cpu", "cuda", "cuda:1", "mps"); None for CUDA's first where there is one, else
            the CPU.

    Raises:
        InputError: PyTorch knows no such device, has none here, or the model does not fit on it.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(name)
        (torch.zeros(1, device=target) + 1).cpu()  # an old GPU is there, and has no kernel for it
    except torch.OutOfMemoryError as error:
        raise InputError(f"{shown(name)} has no memory left: use --device cpu, or another one") from error
    # An AssertionError is what a PyTorch without CUDA raises.
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        why = first_line(error).split(". ")[0]
        raise InputError(
            f"{shown(name)} is not a device that this PyTorch can use ({why}): use --device cpu, or another one"
        ) from error
    try:
        return model.to(target)
    except torch.OutOfMemoryError as error:
        raise InputError(f"the model does not fit on {name}: use --device cpu, or another one") from error
