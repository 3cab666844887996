"""Tensors that lie on an accelerator, as far as Python can tell, on a machine without one.

    with accelerator():
        model.to(DEVICE)            # `device` is DEVICE from here on, and numbers are computed on the CPU
        model(ids.to(DEVICE)) + torch.ones(2)       # RuntimeError: tensors of two devices, as on a GPU

What CUDA refuses is refused: an operation on tensors of both sides, but for single numbers and indices on the CPU. This
shows where code leaves a tensor on the wrong side, and nothing else: no speed, no rounding, no streams.

Importing this module registers a device with PyTorch, for the rest of the process: have a process of its own. It is not
called `accelerator`, since DeepSpeed imports whatever module is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import accelerate
import peft
import torch
import transformers
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

backend_registration._setup_privateuseone_for_python_backend("pretended")
DEVICE = torch.device("pretended", 0)

_MOVES = {"_to_copy", "copy_"}
_TAKES_CPU_INDICES = {"index", "index_put", "index_put_"}
_TAKES_NO_CPU_NUMBERS = {"cat", "stack"}


class OnDevice(Tensor):
    """A tensor on the accelerator; `inner` holds its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        made: OnDevice = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    # PyTorch has no operation for these that could be seen here.
    def __float__(self) -> float:
        return float(self.inner)

    def __int__(self) -> int:
        return int(self.inner)

    def tolist(self) -> Any:
        return self.inner.tolist()


class _Mode(TorchDispatchMode):
    """Sees the operations that make tensors, which have none among their arguments."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def plain(tree: Any) -> Any:
    """The same with tensors on the CPU, not copied."""
    return tree_map(lambda t: t.inner if isinstance(t, OnDevice) else t, tree)


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    here = any(isinstance(t, OnDevice) for t in tensors)
    if here and name not in _MOVES:
        _refuse_two_devices(func, name, args, tensors)
    if name == "copy_":
        here = isinstance(args[0], OnDevice)
    options = dict(kwargs)
    if options.get("device") is not None:
        here = torch.device(options["device"]).type == DEVICE.type
        options["device"] = "cpu" if here else options["device"]
    out = func(*plain(list(args)), **plain(options))
    if "out" in kwargs:
        return kwargs["out"]
    if func._schema.is_mutable and isinstance(out, Tensor):
        return args[0]
    return tree_map(lambda t: OnDevice(t) if here and isinstance(t, Tensor) else t, out)


def _refuse_two_devices(func: Any, name: str, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    free = tree_flatten(args[1])[0] if name in _TAKES_CPU_INDICES and isinstance(args[0], OnDevice) else []
    for t in tensors:
        number = t.dim() == 0 and name not in _TAKES_NO_CPU_NUMBERS
        if not (isinstance(t, OnDevice) or number or any(t is index for index in free)):
            raise RuntimeError(
                f"{func}: expected all tensors to be on the same device, but found {DEVICE} and cpu"
            )


def _made_on_the_cpu(name: str) -> Any:
    """Patches a function of torch that reads Python's numbers, which no mode sees: made on the CPU, and moved."""
    make = getattr(torch, name)

    def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        out: Tensor = make(*args, **kwargs)
        return out if device is None else out.to(device)

    return mock.patch.object(torch, name, made)


def _of_plain_tensors(module: Any, name: str) -> Any:
    """Patches a function that writes tensors to a file: no storage of the accelerator's can be read here."""
    write = getattr(module, name)
    return mock.patch.object(module, name, lambda tree, *args, **kwargs: write(plain(tree), *args, **kwargs))


def _gives_plain_tensors(module: Any, name: str) -> Any:
    """Patches a function whose tensors are about to be written."""
    give = getattr(module, name)
    return mock.patch.object(module, name, lambda *args, **kwargs: plain(give(*args, **kwargs)))


@contextmanager
def accelerator() -> Iterator[None]:
    """Inside, tensors can be made on `DEVICE`, and Hugging Face's trainers train there."""
    own = transformers.TrainingArguments.device.fget
    assert own is not None
    read = torch.load
    with ExitStack() as stack:
        for patch in (
            _Mode(),
            _made_on_the_cpu("tensor"),
            _made_on_the_cpu("as_tensor"),
            _of_plain_tensors(torch, "save"),
            _gives_plain_tensors(peft.peft_model, "get_peft_model_state_dict"),
            mock.patch.object(
                torch, "load", lambda *a, map_location=None, **k: read(*a, map_location="cpu", **k)
            ),
            mock.patch.object(accelerate.Accelerator, "device", property(lambda self: DEVICE)),
            mock.patch.object(
                transformers.TrainingArguments, "device", property(lambda self: (own(self), DEVICE)[1])
            ),
        ):
            stack.enter_context(patch)
        yield
