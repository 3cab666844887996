"""A run killed with SIGKILL at ten random moments ends as one that was left alone; fifty with `-m slow`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kills", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_kills_change_nothing(tmp_path: Path, kills: int) -> None:
    # A process of its own: the killed runs are forked from one that has not computed anything yet.
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    arguments = ["--kills", str(kills), "--seed", "1", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "studies.resume.kill", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
        timeout=1200,
    )
    assert done.stdout, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["differences"] == []
    assert report["kills"] == kills
    # Some of them came before the first whole checkpoint, some after.
    assert {kill["whole_checkpoints"] > 0 for kill in report["moments"]} == {True, False}
    assert done.returncode == 0
