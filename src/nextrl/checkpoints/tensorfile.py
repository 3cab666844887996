"""One file of named tensors, read lazily: safetensors always, a pickle only when the user allows it.

Opening reads the header only; a tensor's bytes are read when it is asked for.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nextrl.errors import InputError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class TensorFile:
    """Named tensors of one file.

    Args:
        path: a `.safetensors` file, or a pickle (`.bin`, `.pt`) when `allow_pickle`.
        allow_pickle: read a pickle with `torch.load(weights_only=True)`, which runs no code of the file's.

    Raises:
        InputError: the file is missing, truncated, not what its name says, or a pickle that is not allowed.
    """

    def __init__(self, path: Path, *, allow_pickle: bool = False) -> None:
        self.path = path
        self._pickle: dict[str, Tensor] | None = None
        self._handle: Any = None
        if not path.is_file():
            raise InputError(f"{path}: no such file; restore it or leave this checkpoint out")
        if path.suffix == ".safetensors":
            try:
                self._handle = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"{path}: truncated or not a safetensors file ({error}); copy it again from where it "
                    "was written"
                ) from error
            self._entries = self._read_header()
        else:
            self._pickle = _load_pickle(path, allow_pickle)
            self._entries = {name: (tuple(t.shape), t.dtype) for name, t in self._pickle.items()}

    def _read_header(self) -> dict[str, tuple[tuple[int, ...], torch.dtype | str]]:
        entries: dict[str, tuple[tuple[int, ...], torch.dtype | str]] = {}
        for name in self._handle.keys():  # noqa: SIM118 (a safe_open handle is no mapping)
            view = self._handle.get_slice(name)
            code = str(view.get_dtype())
            entries[str(name)] = (tuple(view.get_shape()), DTYPES.get(code, code))
        return entries

    @property
    def entries(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype | str]]:
        """Name -> (shape, dtype); the dtype is its safetensors code where we do not compute with it."""
        return self._entries

    def get(self, name: str) -> Tensor:
        """The tensor as stored (memory-mapped where the format allows).

        Raises:
            KeyError: no such tensor.
        """
        if self._pickle is not None:
            return self._pickle[name]
        if name not in self._entries:
            raise KeyError(name)
        tensor: Tensor = self._handle.get_tensor(name)
        return tensor


def _load_pickle(path: Path, allow_pickle: bool) -> dict[str, Tensor]:
    if not allow_pickle:
        raise InputError(
            f"{path}: a pickle, which can run code when it is read; "
            "convert it to safetensors or pass --allow-pickle if you trust it"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: cannot be read as a plain dictionary of tensors ({line})") from error
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise InputError(
            f"{path}: holds something else than a dictionary of tensors; save the adapter's state dict"
        )
    return {str(name): t for name, t in state.items()}
