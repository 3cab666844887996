"""One process per run's folder: the folder made, and a lock file in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from nextrl.checkpoints.atomic import making_folder
from nextrl.errors import InputError

LOCK = ".nextrl.lock"


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is there.

    Raises:
        InputError: another process holds it, or the folder cannot be written.
    """
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{out}: another process is running there; wait for it or stop it") from None
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        yield
    finally:
        lock.release()


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
