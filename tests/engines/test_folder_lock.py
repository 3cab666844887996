"""The lock of a run's folder, on disks with and without the kernel's locks."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from pathlib import Path

import pytest

from nextrl.engines.folder_lock import LOCK, locked
from nextrl.errors import InputError


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Lustre mounted without it."""

    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)


def left(out: Path, text: str, age: float = 3600.0) -> Path:
    """A lock file of so many seconds ago."""
    path = out / LOCK
    path.write_text(text)
    os.utime(path, (time.time() - age, time.time() - age))
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("no_flock")
def test_what_a_finished_run_left_on_another_disk_is_no_lock(tmp_path: Path) -> None:
    left(tmp_path, "")
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"{os.getpid()}\n")
        with pytest.raises(InputError, match="another process is running there"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("no_flock")
@pytest.mark.parametrize(
    ("text", "age"), [("17\nnode17\n", 7e6), ("", 0.0)], ids=["another machine", "young"]
)
def test_the_file_to_remove_is_named_where_nobody_can_tell(tmp_path: Path, text: str, age: float) -> None:
    path = left(tmp_path, text, age)
    with (
        pytest.raises(
            InputError, match=rf"\(if there is none, on any machine, remove {re.escape(str(path))}\)"
        ),
        locked(tmp_path),
    ):
        pass
    path.unlink()
    with locked(tmp_path):
        pass


def test_an_empty_file_that_the_kernel_has_locked_is_not_removed(tmp_path: Path) -> None:
    with locked(tmp_path):
        path = left(tmp_path, "")
        with pytest.raises(InputError, match="another process"), locked(tmp_path):
            pass
        assert path.exists()
