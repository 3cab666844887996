"""`report_to`: what the callback logs arrives where people look, without a network."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

import trl_runs
from nextrl.engines.trl.callback import LeapCallback


def _train(out: Path, logger: str) -> None:
    trainer: Any = trl_runs.trainer(out, [LeapCallback(every=2)], report_to=logger, max_steps=2, run_name="r")
    trainer.train()


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    _train(tmp_path / "out", "tensorboard")
    (events,) = (tmp_path / "logs").rglob("events.*")
    read = EventAccumulator(str(events))
    read.Reload()
    assert {"train/leap/lr", "train/leap/alpha"} <= set(read.Tags()["scalars"])


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    _train(tmp_path / "out", "wandb")
    summary = dict(wandb.run.summary)
    wandb.finish()
    assert {"train/leap/lr", "train/leap/alpha"} <= set(summary)
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An empty one is taken for a name, and a login is asked for.
    monkeypatch.delenv("TRACKIO_SPACE_ID", raising=False)
    pytest.importorskip("trackio")
    # The variable of this name is read when trackio is imported, which other libraries have done by now.
    for name, module in list(sys.modules.items()):
        if name.startswith("trackio") and hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    _train(tmp_path / "out", "trackio")
    (database,) = (tmp_path / "trackio").rglob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select metrics from metrics").fetchall()
    logged = {key for (row,) in rows for key in json.loads(row)}
    assert {"train/leap/lr", "train/leap/alpha"} <= logged
