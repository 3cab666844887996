"""A leap's folder appears as a whole: killed, refused or out of disk, the old one is there to the byte, or none."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import hostile_inputs as hostile
import lora_runs
from nextrl.checkpoints import atomic
from nextrl.checkpoints.adapter import NOTE
from nextrl.checkpoints.atomic import replacing_folder, sha256
from nextrl.errors import InputError
from nextrl.leaps.adapter_file import write_adapter
from nextrl.leaps.merged_model import write_merged
from nextrl.trajectory.trajectory import Trajectory


@pytest.fixture(scope="module")
def traj(tmp_path_factory: pytest.TempPathFactory) -> Trajectory:
    run = tmp_path_factory.mktemp("run")
    lora_runs.write_run(run)
    return Trajectory.load(run)


def whole(folder: Path) -> int:
    """The step of a leap whose every file is what its note says, and there is no other."""
    return whole_but(folder)


def whole_but(folder: Path, *mine: str) -> int:
    """The same with files of a user's beside it."""
    note = json.loads((folder / NOTE).read_text())
    assert note["sha256"] == {"adapter_model.safetensors": sha256(folder / "adapter_model.safetensors")}
    assert sorted(note["files"]) == sorted(p.name for p in folder.iterdir() if p.name not in (NOTE, *mine))
    return int(note["from_step"])


def test_twenty_kills_leave_the_old_leap_or_the_new_one(tmp_path: Path, traj: Trajectory) -> None:
    out, draw, killed = tmp_path / "leap", random.Random(0), 0
    seconds = time.perf_counter()
    write_adapter(traj, 10, {}, out)
    seconds = time.perf_counter() - seconds
    for kill in range(20):
        before, after = whole(out), (10, 20)[kill % 2]
        child = os.fork()
        if not child:
            write_adapter(traj, after, {}, out)
            os._exit(0)
        time.sleep(draw.random() * 1.5 * seconds)
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert whole(out) in (before, after)
    assert killed >= 5
    write_adapter(traj, 30, {}, out)  # never blocked, and it clears what the killed ones left
    assert whole(out) == 30
    assert [p.name for p in tmp_path.iterdir()] == ["leap"]


def test_a_first_leap_that_is_killed_does_not_block_its_rerun(tmp_path: Path, traj: Trajectory) -> None:
    out = tmp_path / "leap"
    child = os.fork()
    if not child:
        with replacing_folder(out, lambda entry: True) as folder:
            (folder / "adapter_model.safetensors").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert not out.exists()
    write_adapter(traj, 20, {}, out)
    assert whole(out) == 20
    assert [p.name for p in tmp_path.iterdir()] == ["leap"]


def test_what_a_user_keeps_beside_a_leap_stays(tmp_path: Path, traj: Trajectory) -> None:
    out = write_adapter(traj, 10, {}, tmp_path / "leap")
    (out / "README.md").write_text("mine")
    (out / "notes").mkdir()
    (out / "notes" / "a.txt").write_text("too")
    write_adapter(traj, 20, {}, out)
    assert (out / "README.md").read_text() == "mine"
    assert (out / "notes" / "a.txt").read_text() == "too"
    assert json.loads((out / NOTE).read_text())["from_step"] == 20


def test_only_what_the_note_lists_is_replaced(tmp_path: Path, traj: Trajectory) -> None:
    out = write_adapter(traj, 10, {}, tmp_path / "leap")
    mine = (
        "value_head.safetensors",
        "adapter_model.v1.bak",
        "pytorch_model_mine.bin",
        "x.safetensors.index.json",
    )
    for name in mine:
        (out / name).write_text("mine")
    write_adapter(traj, 20, {}, out)
    assert [(out / name).read_text() for name in mine] == ["mine"] * 4
    assert json.loads((out / NOTE).read_text())["from_step"] == 20


def test_a_file_that_the_leap_would_take_the_place_of_is_refused(tmp_path: Path, traj: Trajectory) -> None:
    lora_runs.model().save_pretrained(tmp_path / "base")
    out = write_adapter(traj, 10, {}, tmp_path / "leap")
    (out / "config.json").write_text("mine")
    with pytest.raises(InputError, match=r"already holds config.json, not written by nextrl"):
        write_merged(traj, 20, {}, tmp_path / "base", out)
    assert (out / "config.json").read_text() == "mine"
    assert whole_but(out, "config.json") == 10


def test_weights_that_were_trained_on_are_not_replaced(tmp_path: Path, traj: Trajectory) -> None:
    out = write_adapter(traj, 10, {}, tmp_path / "leap")
    weights = out / "adapter_model.safetensors"
    atomic.write_tensors(weights, {key: tensor + 1 for key, tensor in load_file(weights).items()})
    trained = weights.read_bytes()
    with pytest.raises(InputError, match=r"adapter_model.safetensors was changed since nextrl wrote it"):
        write_adapter(traj, 20, {}, out)
    assert weights.read_bytes() == trained


@pytest.mark.parametrize("note", ["{", "[]", "{}"])
def test_weights_under_a_note_that_is_not_ours_are_not_replaced(
    tmp_path: Path, traj: Trajectory, note: str
) -> None:
    out = write_adapter(traj, 10, {}, tmp_path / "leap")
    (out / NOTE).write_text(note)
    with pytest.raises(InputError, match="not written by nextrl"):
        write_adapter(traj, 20, {}, out)
    assert (out / NOTE).read_text() == note


def test_a_folder_that_holds_the_run_or_the_base_is_not_replaced(tmp_path: Path) -> None:
    lora_runs.write_run(tmp_path / "all" / "run")
    lora_runs.model().save_pretrained(tmp_path / "bases" / "base")
    (tmp_path / "link").symlink_to(tmp_path / "all")
    traj = Trajectory.load(tmp_path / "all" / "run")
    before = sorted(tmp_path.rglob("*"))
    for out in (tmp_path / "all" / "run", tmp_path / "all", tmp_path / "link"):
        with pytest.raises(InputError, match="which the leap is made from"):
            write_adapter(traj, 20, {}, out)
    with pytest.raises(InputError, match="holds the base"):
        write_merged(traj, 20, {}, tmp_path / "bases" / "base", tmp_path / "bases")
    assert sorted(tmp_path.rglob("*")) == before
    assert whole(write_adapter(traj, 20, {}, tmp_path / "all" / "run" / "leap")) == 20


def test_a_folder_in_which_something_is_written_meanwhile_is_left_alone(
    tmp_path: Path, traj: Trajectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = write_adapter(traj, 10, {}, tmp_path / "leap")
    (out / "logs").mkdir()
    copy = atomic.shutil.copytree

    def copied(*arguments: object, **options: object) -> None:
        copy(*arguments, **options)
        (out / "logs" / "late").write_text("mine")

    monkeypatch.setattr(atomic.shutil, "copytree", copied)
    with pytest.raises(InputError, match="something writes there") as error:
        write_adapter(traj, 20, {}, out)
    assert ".partial" not in str(error.value)
    assert (out / "logs" / "late").read_text() == "mine"
    assert json.loads((out / NOTE).read_text())["from_step"] == 10


def test_without_the_exchange_of_linux_it_is_renamed(
    tmp_path: Path, traj: Trajectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic.sys, "platform", "darwin")
    out = write_adapter(traj, 10, {}, tmp_path / "leap")
    write_adapter(traj, 20, {}, out)
    assert whole(out) == 20
    assert [p.name for p in tmp_path.iterdir()] == ["leap"]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_refuses_is_one_line_and_changes_nothing(
    tmp_path: Path, traj: Trajectory, monkeypatch: pytest.MonkeyPatch, old: bool, code: int
) -> None:
    out = tmp_path / "deep" / "leap"
    if old:
        write_adapter(traj, 10, {}, out)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic, "save_file", full)
    with pytest.raises(InputError, match=os.strerror(code)) as error:
        write_adapter(traj, 20, {}, out)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{out}/adapter_model.safetensors: cannot be written")
    assert (whole(out) == 10) if old else (list(tmp_path.iterdir()) == [])


PLACES = {
    "a parent that is a file": lambda root: root / "file" / "leap",
    "a name that is too long": lambda root: root / ("x" * 256),
    "a path that is too long": lambda root: root / "/".join(["x" * 200] * 30),
    "a name with NUL": lambda root: root / "a\0b",
    "a name that is no text": lambda root: root / "a\udcff",
    "a link to itself": lambda root: root / "loop",
    "a device": lambda root: Path("/dev/null"),
    "under a device": lambda root: Path("/dev/null/leap"),
    "the working folder": lambda root: Path("."),
    "a folder above it": lambda root: Path("/"),
    "a user who is not there": lambda root: Path("~no-such-user-at-all/leap"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, traj: Trajectory, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError) as error:
        write_adapter(traj, 20, {}, PLACES[place](tmp_path))
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_tilde_is_the_home_folder(
    tmp_path: Path, traj: Trajectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_adapter(traj, 20, {}, "~/leap")
    assert whole(tmp_path / "leap") == 20


def test_a_leap_without_a_number_is_not_written(tmp_path: Path, traj: Trajectory) -> None:
    module = traj.modules[0]
    a, b = traj.factors(20, module)
    with pytest.raises(InputError, match="NaN or Inf"):
        write_adapter(traj, 20, {module: (a, b * float("inf"))}, tmp_path / "leap")
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_with_the_name_of_a_left_over_folder_is_not_waited_for(
    tmp_path: Path, traj: Trajectory
) -> None:
    pipe = tmp_path / ".leap.abc.partial"
    os.mkfifo(pipe)
    with hostile.bounded(60):  # an `open` that waits for a writer is interrupted by the signal
        write_adapter(traj, 10, {}, tmp_path / "leap")
    assert whole(tmp_path / "leap") == 10
    assert pipe.is_fifo()
