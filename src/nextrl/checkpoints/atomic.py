"""Write files and folders so that a crash leaves the old one or the new one, never half of one; and their checksums.

Everything that nextrl writes comes through here. What cannot be written (no permission, a full disk, a name too long, a
parent that is a file) is one `InputError`, and what was there before is as it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from nextrl.errors import InputError
from nextrl.files import regular_file, usable_path

_PARTIAL = ".partial"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextlib.contextmanager
def writing(path: Path, left: str = "what was there before is unchanged") -> Iterator[None]:
    """Around whatever writes to `path`.

    Args:
        left: what a failure leaves behind, as a clause.

    Raises:
        InputError: in place of an OSError, or of what safetensors and torch make of one.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); {left}") from error
    except SafetensorError as error:
        raise InputError(f"{path}: cannot be written ({error}); {left}") from error
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error):
            raise
        # torch.save on a full disk: the C++ writer does not pass the system's reason on.
        raise InputError(f"{path}: cannot be written (is the disk full?); {left}") from error


@contextlib.contextmanager
def making_folder(path: Path) -> Iterator[None]:
    """A folder and those it is in, made first; where what follows fails, those that were made are removed if empty.

    Raises:
        OSError: it cannot be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; on success it is fsynced and renamed to `path`, on failure removed.

    Raises:
        InputError: it cannot be written, or what is there is not ours to replace: a read-only file, a pipe, folder,
            device or socket.
    """
    path = usable_path(path)
    with writing(path):
        if path.exists() and not regular_file(path).stat().st_mode & 0o222:
            # A rename would replace it all the same, and whoever made it so did not want that.
            raise InputError(f"{path}: is read-only; make it writable, or remove it")
        if path.is_symlink():
            path = Path(os.path.realpath(path))  # the link stays, and leads to the new file
    with writing(path), making_folder(path.parent):
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:60]}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 would lock other users of a shared run out
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path, replaced: Callable[[Path], bool]) -> Iterator[Path]:
    """A temporary folder beside `path`; on success it takes the place of `path` in one step, on failure it is removed.

    A killed process leaves the old folder whole, and a hidden one that the next call for the same `path` removes.

    Args:
        replaced: of an entry of the old folder that the new one lacks: whether it belongs to what is replaced. The
            others are a user's own and are carried over.

    Raises:
        InputError: it cannot be written, or is the working folder (or one that holds it).
    """
    given, path = path, Path(os.path.realpath(usable_path(path)))
    if path in (Path.cwd(), *Path.cwd().parents):
        raise InputError(
            f"{given}: is the working folder or holds it, and is replaced as a whole: name another"
        )
    if path.is_symlink():
        raise InputError(f"{given}: is a link that leads back to itself; remove it or name another folder")
    with writing(given), making_folder(path.parent):
        prefix = f".{path.name[:60]}."
        _remove_left_over(path.parent, prefix)
        temporary = Path(tempfile.mkdtemp(prefix=prefix, suffix=_PARTIAL, dir=path.parent))
        try:
            with _held(temporary), _named(temporary, given):
                yield temporary
                if path.is_dir():
                    _carry_over(path, temporary, replaced)
                temporary.chmod(0o777 & ~_umask())
                _sync_folder(temporary)
                _exchange(temporary, path)
                _sync_folder(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _named(temporary: Path, given: Path) -> Iterator[None]:
    """Refusals name the folder that was asked for, not the hidden one that is being filled for it."""
    try:
        yield
    except InputError as error:
        if str(temporary) not in str(error):
            raise
        raise InputError(str(error).replace(str(temporary), str(given))) from error


def _carry_over(old: Path, new: Path, replaced: Callable[[Path], bool]) -> None:
    """What a user keeps in the old folder, in the new one too: links to the same files, copies where links fail.

    Raises:
        InputError: something was written in a folder in it meanwhile, which the copy may lack.
    """
    before = _inside(old)
    _link_over(old, new, replaced)
    if _inside(old) != before:
        raise InputError(
            f"{old}: something writes there, and would be lost when the folder is replaced; name another folder"
        )


def _inside(folder: Path) -> set[tuple[str, int, int]]:
    """Name, size and time of everything that lies deeper than in the folder itself; links are not followed."""
    found = set()
    for place, folders, files in os.walk(folder):
        for name in [] if place == str(folder) else [*folders, *files]:
            status = os.lstat(os.path.join(place, name))
            found.add((os.path.join(place, name), status.st_size, status.st_mtime_ns))
    return found


def _link_over(old: Path, new: Path, replaced: Callable[[Path], bool]) -> None:
    for entry in old.iterdir():
        target = new / entry.name
        if replaced(entry) or os.path.lexists(target):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, target, symlinks=True)
            continue
        try:
            os.link(entry, target, follow_symlinks=False)
        except OSError:
            shutil.copy2(entry, target, follow_symlinks=False)


def _exchange(new: Path, path: Path) -> None:
    """Put `new` in the place of `path`; what was there is at `new` afterwards.

    Linux swaps two folders in one step. Elsewhere the old one is moved aside first: a kill between the two renames
    leaves it whole under the hidden name.
    """
    if not os.path.lexists(path):
        new.rename(path)
        return
    if sys.platform == "linux":
        library = ctypes.CDLL(None, use_errno=True)
        if hasattr(library, "renameat2"):
            names = os.fsencode(new), os.fsencode(path)
            if not library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE):
                return
            code = ctypes.get_errno()
            if code not in (errno.ENOSYS, errno.EINVAL):
                raise OSError(code, os.strerror(code), str(path))
    aside = Path(f"{new}.old")
    path.rename(aside)
    new.rename(path)
    aside.rename(new)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """A lock on a folder that dies with its process, so that others can tell a killed one's leavings."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    # A pipe under such a name would be waited for.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_left_over(parent: Path, prefix: str) -> None:
    """Remove temporary folders whose process is gone."""
    if sys.platform == "win32":
        return
    for folder in parent.iterdir():
        if folder.name.startswith(prefix) and folder.name.endswith(_PARTIAL):
            with contextlib.suppress(OSError), _held(folder):
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def replacing_all(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """`replacing` for several files: none gets its name before all are on the disk.

    Raises:
        InputError: as `replacing`.
    """
    paths = list(paths)
    with contextlib.ExitStack() as stack:
        temporary = [stack.enter_context(replacing(path)) for path in paths]
        yield temporary
        for path, written in zip(paths, temporary, strict=True):
            with writing(path), written.open("rb+") as file:
                os.fsync(file.fileno())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one JSON object, indented; a crash leaves the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(json_text(value), encoding="utf-8")


def json_text(value: Mapping[str, Any]) -> str:
    """A JSON object as it is written to files."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file; a crash leaves the old file or the new one.

    Args:
        tensors: on any device. The same memory may stand under several names.
    """
    with replacing(path) as temporary:
        save_file(_apart(tensors), temporary, metadata={"format": "pt"})


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU that share no memory, which safetensors refuses; what shares none already is not copied."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        held = tensor.detach().cpu().contiguous()
        apart[name] = held.clone() if held.untyped_storage().data_ptr() in seen else held
        seen.add(apart[name].untyped_storage().data_ptr())
    return apart


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes to a file; a crash leaves the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces.

    Raises:
        InputError: it is no file, or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with regular_file(path).open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its own digest in it, so that a changed digit is seen: `sealed(value) == value` says it is
    as it was written. Of the value as JSON gives it back, in which keys are text and tuples are lists."""
    bare = json.loads(json.dumps({key: item for key, item in value.items() if key != "digest"}))
    return {**bare, "digest": hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()}


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
