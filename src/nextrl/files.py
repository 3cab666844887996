"""The door for what others wrote: a path to bytes, bytes to JSON, and a number to one that can be counted with.

Whoever reads a file that a user named or a stranger made comes through here. A path is looked at before it is opened,
so that a pipe, a terminal or a device is refused and never waited for; what is read has a size limit, what is parsed a
depth, and numbers have bounds. Everything that is wrong is one `InputError` that names the file.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from nextrl.errors import InputError, one_line, shown

MAX_TEXT = 64 * 2**20
"""Bytes of a text file that is read whole: the log of a long run has a few megabytes, a config 4 kB."""

MAX_CONFIG = 8 * 2**20
"""Of a configuration in JSON: one that names each expert of each layer of the largest models has some 3 MB."""

MAX_DEPTH = 64
"""Objects and lists inside each other; what trainers write has less than ten."""

MAX_DIGITS = 40
"""Of a whole number in a file; 2^64 has 20."""

MAX_STEP = 10**9
"""Optimizer steps of any run. Arithmetic on steps (grids, windows) is bounded by it."""

MAX_UPDATES = 10_000
"""Optimizer updates in one step of a run whose steps are batches of rollouts."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)
_HALF_A_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


class NoSuchFile(InputError):
    """The file is not there, which a caller may know more about."""


def no_safetensors(path: Path, why: object) -> InputError:
    """The error for a file that should hold tensors and cannot be read as safetensors; `why` in a few words."""
    return InputError(
        f"{path}: truncated or not a safetensors file ({one_line(str(why))}); copy it again from where it was written"
    )


def usable_path(given: str | Path) -> Path:
    """A path as it is used from here on: `~` is the home folder, relative ones count from the working folder.

    Raises:
        InputError: it is empty, holds NUL or what is no text, is too long for any file system, or names the home of
            a user who does not exist.
    """
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(text, str):
        raise InputError(f"a file or folder must be named by a path, not {shown(given)}")
    if not text:
        raise InputError("a path is empty: name a file or folder")
    if "\0" in text:
        raise InputError(f"{text!r}: a path cannot hold NUL")
    try:
        sizes = [len(part.encode()) for part in text.split(os.sep)]
    except UnicodeEncodeError:
        raise InputError(f"{text}: the name is not UTF-8 text; rename it") from None
    if max(sizes) > 255 or sum(sizes) + len(sizes) > 4096:
        raise InputError(f"{shown(text)}: too long for a path (255 bytes for each name, 4096 in all)")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{text}: there is no such user's home folder; write the path out") from None


def regular_file(path: Path) -> Path:
    """The path itself, where it is a file that can be read to its end.

    Raises:
        NoSuchFile: nothing is there.
        InputError: a folder, pipe, device or socket is, or it cannot be looked at.
    """
    path = usable_path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise NoSuchFile(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "something else")
        raise InputError(f"{path}: is {kind}, not a file")
    return path


def visible(folder: Path) -> set[str]:
    """Names of what a folder holds, but hidden files: those are an editor's, or left by a write that was killed.

    Raises:
        OSError: the folder cannot be listed.
    """
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def read_bytes(path: Path, limit: int = MAX_TEXT) -> bytes:
    """All of a file.

    Raises:
        NoSuchFile: nothing is there.
        InputError: it is no file, cannot be read, or has more than `limit` bytes.
    """
    with _opened(path, limit) as file:
        data = file.read(limit + 1)
    if len(data) > limit:  # it has grown since
        raise _too_long(path, limit)
    return data


def read_lines(path: Path, limit: int) -> Iterator[bytes]:
    """The lines of a file, which is not held in memory as a whole. Raises as `read_bytes`, before the first line."""
    with _opened(path, limit) as file:
        yield from file


@contextmanager
def _opened(path: Path, limit: int) -> Iterator[BinaryIO]:
    """A file to read, whose size is looked at first: nothing is allocated for what is refused."""
    path = regular_file(path)
    try:
        if path.stat().st_size > limit:
            raise _too_long(path, limit)
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _too_long(path: Path, limit: int) -> InputError:
    return InputError(f"{path}: has more than {limit:,} bytes, far more than such a file has: not read")


def read_text(path: Path, limit: int = MAX_TEXT) -> str:
    """All of a text file in UTF-8, with or without a byte order mark. Raises as `read_bytes` and `as_text`."""
    return as_text(read_bytes(path, limit), str(path))


def as_text(data: bytes, where: str) -> str:
    """UTF-8 bytes as text.

    Raises:
        InputError: they are none; a file in UTF-16 is named as such.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte {error.start} is none"
        raise InputError(f"{where}: not UTF-8 text ({kind}); save it as UTF-8") from None


def read_json(path: Path, limit: int = MAX_TEXT) -> Any:
    """The value in a JSON file. Raises as `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, limit), str(path))


def read_object(path: Path, limit: int = MAX_TEXT) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: as `read_json`, or the value in it is a list, a number or the like.
    """
    value = read_json(path, limit)
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds no JSON object; restore it")
    return value


def parse_json(data: bytes, where: str) -> Any:
    """The value of a JSON text in UTF-8.

    NaN and Infinity are read, as Python writes them: whoever uses a number asks `finite`.

    Args:
        where: file (and line) for messages.

    Raises:
        InputError: it is no JSON, has a key twice in one object, is nested deeper than `MAX_DEPTH`, holds a number of
            more than `MAX_DIGITS` digits or beyond every float, or text that is half a surrogate pair.
    """
    text = as_text(data, where)
    try:
        value = json.loads(text, parse_int=_integer, parse_float=_real, object_pairs_hook=_once)
    except RecursionError:
        raise InputError(f"{where}: not readable as JSON (nested too deeply)") from None
    except ValueError as error:
        raise InputError(f"{where}: not readable as JSON ({error})") from None
    halves = _HALF_A_PAIR.search(text) is not None
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise InputError(f"{where}: not readable as JSON (nested more than {MAX_DEPTH} deep)")
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
                if halves:
                    inner += item.keys()
            elif isinstance(item, list):
                inner += item
            elif halves and isinstance(item, str):
                _refuse_halves(item, where)
        level = inner
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are there once each; Python would keep the last value and say nothing."""
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise ValueError(f"key {shown(key)} is there twice")
        value[key] = item
    return value


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{shown(text)} is beyond every float")
    return value


def _refuse_halves(text: str, where: str) -> None:
    if not encodable(text):
        raise InputError(f"{where}: {shown(text)} holds half a surrogate pair, which is no text")


def encodable(text: str) -> bool:
    """Whether a text is one: half a surrogate pair is in a Python string and in no file or tokenizer."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value from a file is a finite number that a float can hold; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300


def is_step(value: object) -> TypeGuard[int | float]:
    """Whether a value from a file is an optimizer step: a whole number (6 or 6.0) from 0 to `MAX_STEP`."""
    return is_number(value) and 0 <= value <= MAX_STEP and value == int(value)


def finite(value: float, what: str, low: float, high: float) -> float:
    """The number itself, where it is one from `low` to `high`.

    Raises:
        InputError: it is not (NaN is in no range); `what` names the option or the key.
    """
    if not low <= value <= high:
        raise InputError(f"{what} must be a number from {low:g} to {high:g}, not {shown(value)}")
    return value


def in_range(value: int, what: str, low: int, high: int = MAX_STEP) -> int:
    """The same of a whole number."""
    if not low <= value <= high:
        raise InputError(f"{what} must be a whole number from {low} to {high}, not {shown(value)}")
    return value
