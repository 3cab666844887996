"""What is in git: no pickles, no large files, no checkpoints of studies, no paths of somebody's machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
PICKLES = {".pt", ".pth", ".bin", ".pkl", ".pickle"}
LARGEST = 2_000_000  # bytes
# Folders of a user or of a build machine. /tmp and /path/to in examples are fine.
MACHINE = re.compile(rb"(?<![\w.-])/(?:root|home/[a-z][\w.-]*|Users/[A-Za-z][\w.-]*|work)/")


def machine_paths(content: bytes) -> list[bytes]:
    """Absolute paths of a machine in a text; none in a binary file."""
    return [] if b"\0" in content else MACHINE.findall(content)


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Every tracked file, relative to the root, as git writes it."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout (an sdist?), or no git here: there is no list of tracked files")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    files = [name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    assert "pyproject.toml" in files, "git lists another repository"
    return files


def test_nothing_tracked_is_a_pickle(tracked: list[str]) -> None:
    assert [name for name in tracked if PurePosixPath(name).suffix.lower() in PICKLES] == []


def test_nothing_tracked_is_large(tracked: list[str]) -> None:
    assert [name for name in tracked if (ROOT / name).stat().st_size > LARGEST] == []


def test_studies_hold_no_checkpoints(tracked: list[str]) -> None:
    parts = [(name, PurePosixPath(name).parts) for name in tracked]
    assert [n for n, p in parts if p[0] == "studies" and any(x.startswith("checkpoint-") for x in p)] == []


def test_no_path_of_a_machine_is_tracked(tracked: list[str]) -> None:
    found = {n: machine_paths((ROOT / n).read_bytes()) for n in tracked if n != "tests/test_tree.py"}
    assert {name: paths for name, paths in found.items() if paths} == {}


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        (b'"output_dir": "/root/runs"', True),
        (b"/home/anna/models/x", True),
        (b"/work/main/src", True),
        (b"/Users/anna/runs", True),
        (b"/tmp/nextrl-studies/auto", False),
        (b"https://example.org/work/x", False),
        (b"/home/<user>/x", False),
        (b"\0/root/x", False),
    ],
)
def test_what_counts_as_a_path_of_a_machine(text: bytes, bad: bool) -> None:
    assert bool(machine_paths(text)) is bad
