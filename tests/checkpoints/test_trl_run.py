"""A run that TRL itself wrote, and the same checkpoints laid out as verl and OpenRLHF do: one leap, to the bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from lora_runs import PLACES
from nextrl import Trajectory
from nextrl.errors import InputError
from nextrl.leaps.leap import leap
from trl_runs import trainer

STEPS = (2, 4, 6)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trl")
    trainer(out, max_steps=6, save_strategy="steps", save_steps=2, learning_rate=1e-3).train()
    return out


@pytest.mark.parametrize("method", ["factors", "secant", "window"])
def test_the_same_leap_from_every_layout(run: Path, tmp_path: Path, method: str) -> None:
    written = {}
    for layout, place in PLACES.items():
        for step in STEPS:
            target = tmp_path / layout / place.format(step)
            target.mkdir(parents=True)
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                shutil.copy(run / f"checkpoint-{step}" / name, target / name)
        traj = Trajectory.load(tmp_path / layout)
        assert (traj.layout, traj.steps) == (layout, STEPS)
        out = tmp_path / "leaps" / layout
        leap(traj, method, horizon=2, alpha=2.0).save_adapter(out)
        written[layout] = (out / "adapter_model.safetensors").read_bytes()
    assert len(set(written.values())) == 1
    untouched = (run / "checkpoint-6" / "adapter_model.safetensors").read_bytes()
    assert written["trl"] != untouched
    leap(Trajectory.load(run), method, horizon=2, alpha=2.0).save_adapter(tmp_path / "whole")
    assert (tmp_path / "whole" / "adapter_model.safetensors").read_bytes() == written["trl"]


class Interrupts(TrainerCallback):
    """Stops a training as its third step ends, as a notebook's stop button may."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_a_training_begun_anew_in_the_same_folder_and_stopped_before_its_first_log_is_seen(
    run: Path, tmp_path: Path
) -> None:
    """Real files have the times by which it is seen; a copy without them is taken as it is."""
    out = tmp_path / "out"
    shutil.copytree(run, out)
    again = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 10, "learning_rate": 1e-4, "seed": 1}
    with pytest.raises(KeyboardInterrupt):
        trainer(out, [Interrupts()], max_steps=6, **again).train()
    with pytest.raises(InputError, match=r"step 4 was written before step 2, so it is left of an earlier"):
        Trajectory.load(out)
    assert Trajectory.load(out, skip_bad_checkpoints=True).steps == (2,)
    shutil.copytree(out, tmp_path / "copy", copy_function=shutil.copyfile)
    assert Trajectory.load(tmp_path / "copy").steps == STEPS
