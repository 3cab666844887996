"""One process per run's folder: the folder made, and a lock file in it.

The lock is the kernel's (flock) and ends with its process. Where a disk has none (Lustre mounted without it), filelock
takes the file itself for the lock, with the holder's number and machine in it: one of a process that died on another
machine stays, and nobody but a user can tell.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from nextrl.checkpoints.atomic import making_folder
from nextrl.errors import InputError

LOCK = ".nextrl.lock"

_YOUNG = 10.0  # seconds; a process that makes the file the lock writes its number into it at once


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is there.

    Raises:
        InputError: another process holds it, or the folder cannot be written.
    """
    lock = FileLock(out / LOCK)
    try:
        _acquire(lock, out / LOCK)
    except Timeout:
        raise InputError(
            f"{out}: another process is running there; wait for it or stop it (if there is none, on any machine, "
            f"remove {out / LOCK})"
        ) from None
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, path: Path) -> None:
    """Take the lock, or raise its Timeout at once; a file that a run on another disk has left is none."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not _left_over(path):
            raise
        path.unlink(missing_ok=True)
        lock.acquire(timeout=0)


def _left_over(path: Path) -> bool:
    """Whether a lock file is nobody's: empty, where the disk has no flock and a holder writes its number into it.

    Where there is flock, a run leaves the empty file behind, and it goes wherever the folder is copied.
    """
    if sys.platform == "win32" or not hasattr(SoftFileLock, "pid") or not path.is_file():
        # An older filelock writes no number; and what is no file was not left by one.
        return False
    import fcntl

    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size or time.time() - status.st_mtime < _YOUNG:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno == errno.ENOSYS
    return False


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Make the folder where it is not there, and hold its lock; what fails before it writes leaves nothing.

    Raises:
        InputError: it cannot be made, or as `locked`.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(making_folder(out))
        except OSError as error:
            raise _unwritable(out, error) from error
        before = _names(out)
        stack.enter_context(locked(out))
        try:
            yield
        except BaseException:
            if _names(out) - before == {LOCK}:
                (out / LOCK).unlink(missing_ok=True)
            raise


def _names(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}): choose another output_dir") from error


def _unwritable(out: Path, error: OSError) -> InputError:
    return InputError(f"{out} cannot be written ({error.strerror}): choose another output_dir")
