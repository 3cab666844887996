"""One file of named tensors, read lazily: safetensors always, a pickle only when the user allows it.

Opening checks the header (with the safetensors library) and keeps the offsets; a tensor's bytes are read, not
mapped, when it is asked for. Mapped pages of a large run would count as this process's memory until the
kernel takes them back, and a file that shrinks under a map kills the process instead of raising an error.
"""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from nextrl.errors import InputError, first_line, shown
from nextrl.files import NoSuchFile, no_safetensors, parse_json, regular_file

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Carried along as they are, never computed with.
OTHERS = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


# What `torch.load` raises on bytes that are no state dict. The pickle module's documentation says that unpickling may
# raise whatever its opcodes lead to; these are the families that were met.
UNREADABLE = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)
_MAX_HEADER = 100_000_000  # safetensors' own limit
_MAX_NAME = 1000


class Version(NamedTuple):
    """What tells a file from the one that was written in its place.

    One that was rewritten in place, at the same size, within the file system's clock tick (some ms; two seconds on FAT)
    is not told. The time of the inode's change is left out: a hard link or a move changes that, and no tensor.
    """

    size: int
    written: int
    inode: int

    @classmethod
    def of(cls, file: int) -> Version:
        """Of an open file, by its descriptor."""
        found = os.fstat(file)
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)


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
        self._spans: dict[str, tuple[int, int]] = {}
        try:
            regular_file(path)
        except NoSuchFile as error:
            raise InputError(f"{error}; restore it or leave this checkpoint out") from None
        if path.suffix == ".safetensors":
            _refuse_length(path)
            try:
                with safe_open(path, framework="pt"):
                    pass  # the library's own checks: sizes, overlaps, JSON, truncation
                self._version, self._entries, self._spans = _read_header(path)
            except (SafetensorError, OSError, UnicodeEncodeError) as error:
                raise no_safetensors(path, error) from error
        else:
            self._pickle = _load_pickle(path, allow_pickle)
            self._entries = {name: (tuple(t.shape), t.dtype) for name, t in self._pickle.items()}

    @property
    def entries(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype | str]]:
        """Name -> (shape, dtype); the dtype is its safetensors code where we do not compute with it."""
        return self._entries

    def get(self, name: str) -> Tensor:
        """A fresh copy of the tensor, in its stored dtype.

        Raises:
            KeyError: no such tensor.
            InputError: the file has changed or vanished since it was opened.
        """
        if self._pickle is not None:
            return self._pickle[name].clone()
        (shape, stored), (start, stop) = self._entries[name], self._spans[name]
        dtype = OTHERS.get(stored) if isinstance(stored, str) else stored
        if dtype is None:
            raise InputError(f"{self.path}: {name} is stored as {stored}, which cannot be read here")
        raw = torch.empty(stop - start, dtype=torch.uint8, device="cpu")
        try:
            with self.path.open("rb", buffering=0) as file:
                if Version.of(file.fileno()) != self._version:
                    raise InputError(
                        f"{self.path}: was written anew since it was opened, so that its tensors may lie elsewhere: "
                        "load the run again"
                    )
                file.seek(start)
                view = raw.numpy().data
                while len(view) and (count := file.readinto(view)):
                    view = view[count:]
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read any more ({error.strerror})") from error
        if len(view):
            raise InputError(f"{self.path}: became shorter while it was read; is the run still writing it?")
        return raw.view(dtype).view(shape)


def _refuse_length(path: Path) -> None:
    """Refuse what cannot be a header before the library maps the whole file, which may be sparse and of any size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(_MAX_HEADER, size - 8):
        raise no_safetensors(path, f"a header of {length} bytes in {size}")


def _read_header(
    path: Path,
) -> tuple[Version, dict[str, tuple[tuple[int, ...], torch.dtype | str]], dict[str, tuple[int, int]]]:
    """Which file it is, shapes and dtypes, and each tensor's byte span (format: 8 bytes of length, JSON, data)."""
    with path.open("rb") as file:
        version = Version.of(file.fileno())
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(min(length, _MAX_HEADER)), str(path))
    entries: dict[str, tuple[tuple[int, ...], torch.dtype | str]] = {}
    spans: dict[str, tuple[int, int]] = {}
    for name, field in header.items():
        if len(name) > _MAX_NAME:
            raise InputError(
                f"{path}: a tensor's name has {len(name)} characters ({shown(name, 40)}); save it again"
            )
        if name != "__metadata__":
            start, stop = field["data_offsets"]
            entries[name] = tuple(field["shape"]), DTYPES.get(field["dtype"], field["dtype"])
            spans[name] = 8 + length + start, 8 + length + stop
    return version, entries, spans


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file at once, in whatever dtype: of one that nextrl or verl wrote for itself.

    Raises:
        InputError: it is missing, truncated or no such file.
    """
    regular_file(path)
    _refuse_length(path)
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise no_safetensors(path, error) from error


def _load_pickle(path: Path, allow_pickle: bool) -> dict[str, Tensor]:
    if not allow_pickle:
        raise InputError(
            f"{path}: a pickle, which can run code when it is read; "
            "convert it to safetensors or pass --allow-pickle if you trust it"
        )
    try:
        state = read_pickle(path)
    except UNREADABLE as error:
        raise InputError(
            f"{path}: cannot be read as a plain dictionary of tensors ({first_line(error)})"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise InputError(
            f"{path}: holds something else than a dictionary of tensors; save the adapter's state dict"
        )
    for name, t in state.items():
        refuse_odd(path, name, t)
    return {str(name): t for name, t in state.items()}


def refuse_odd(path: Path, name: str, t: Tensor) -> None:
    """Refuse a tensor out of a pickle whose values are not all there, one after the other.

    Raises:
        InputError: it is none such.
    """
    if t.layout != torch.strided or t.device.type != "cpu":
        raise InputError(f"{path}: {shown(name)} is a {t.layout} tensor on {t.device}, not a plain one")
    if t.numel() * t.element_size() > min(t.untyped_storage().nbytes(), path.stat().st_size):
        # Strides of zero make any shape out of one stored number, and torch.FloatTensor(n) any out of none: whatever is
        # computed with it fills the memory.
        raise InputError(f"{path}: {shown(name)} is larger than what is stored for it; save it again")


def _refuse_calls(pickled: bytes) -> None:
    """Refuse what a safe load calls with any number, to fill as many bytes of memory: its list has `bytearray`."""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL" and argument in ("builtins bytearray", "__builtin__ bytearray"):
            raise ValueError("a bytearray, which torch.save writes of no tensor")


def read_pickle(path: Path, *, mmap: bool = False) -> object:
    """What `torch.save` wrote, read with `weights_only=True`, which runs no code of the file's.

    Only the zip format (torch 1.6 and later) with its records stored as they are, as torch writes it: there the sizes
    are known before anything is allocated, and a compressed record could become any amount of memory.

    Args:
        mmap: read tensors only when they are used.

    Raises:
        one of `UNREADABLE`, or what `files.regular_file` raises.
    """
    regular_file(path)
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("a compressed record, which torch.save does not write")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("records larger than the file")
        for record in records:
            if record.filename.endswith("data.pkl"):
                _refuse_calls(archive.read(record))
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
