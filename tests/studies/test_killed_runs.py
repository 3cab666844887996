"""A run killed with SIGKILL at ten random moments ends as one that was left alone (fifty: `studies.resume.kill`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_ten_kills_change_nothing(tmp_path: Path) -> None:
    # A process of its own: the killed runs are forked from one that has not computed anything yet.
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    arguments = ["--kills", "10", "--seed", "1", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "studies.resume.kill", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert done.stdout, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["differences"] == []
    assert report["kills"] == 10
    # Some of them came before the first whole checkpoint, some after.
    assert {kill["whole_checkpoints"] > 0 for kill in report["moments"]} == {True, False}
    assert done.returncode == 0
