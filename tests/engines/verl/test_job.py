"""`engine: verl` of `nextrl run` around a stand-in for verl's process: begin, collect, resume, and what is refused."""

import json
import shlex
import sys
from importlib import resources

import pytest
from safetensors.torch import load_file

import nextrl
from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.engines.verl import job, options, process
from nextrl.engines.verl.config import VerlSettings
from nextrl.errors import InputError

BASE = str(resources.files("nextrl.tasks") / "bases" / "chain")

# Writes what verl would: a shard of the adapter for each checkpoint, and its tracker; goes on from its last one.
STANDIN = """
import os, sys, pathlib, torch
from safetensors.torch import load_file
words = dict(w.lstrip("+").split("=", 1) for w in sys.argv[1:])
out = pathlib.Path(words["trainer.default_local_dir"])
tracker = out / "latest_checkpointed_iteration.txt"
done = int(tracker.read_text()) if tracker.is_file() else 0
start = load_file(words["actor_rollout_ref.model.lora_adapter_path"] + "/adapter_model.safetensors")
print("resumed at", done)
for step in range(done + 1, int(words["trainer.total_training_steps"]) + 1):
    if step % int(words["trainer.save_freq"]) == 0:
        actor = out / f"global_step_{step}" / "actor"
        actor.mkdir(parents=True)
        state = {n.replace(".weight", ".default.weight"): t + step for n, t in start.items()}
        torch.save(state, actor / "model_world_size_1_rank_0.pt")
        tracker.write_text(str(step))
    if os.environ.get("STOP_AFTER") == str(step):
        sys.exit("verl says why")
"""


def settings(steps=4, **changes):
    train = TrainSettings(
        steps=steps, save_every=2, learning_rate=3e-5, prompts_per_step=4, completions_per_prompt=2
    )
    lora = LoraSettings(r=4, alpha=8, target_modules=["q_proj"])
    return VerlSettings(
        **{"model": BASE, "task": "chain", "train": train, "lora": lora, "dials": {}, **changes}
    )


@pytest.fixture
def standin(tmp_path, monkeypatch):
    script = tmp_path / "standin.py"
    script.write_text(STANDIN)
    monkeypatch.setattr(process, "COMMAND", (sys.executable, str(script)))
    monkeypatch.setattr(options, "_sees_trl", lambda: False)


def test_a_run_leaves_adapters_that_nextrl_reads(tmp_path, standin):
    out = tmp_path / "run"
    outcome = job.run(settings(), out)
    assert (outcome.step, outcome.decisions) == (4, [])
    assert outcome.adapter == out / "global_step_4" / "actor" / "lora_adapter"
    start, end = (
        load_file(out / job.config.START / "adapter_model.safetensors"),
        load_file(outcome.adapter / "adapter_model.safetensors"),
    )
    assert all((end[name] - start[name] - 4).abs().max() < 1e-6 for name in start)
    assert nextrl.Trajectory.load(out).steps == (0, 2, 4)


def test_the_same_command_goes_on_where_verl_was_stopped(tmp_path, standin, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setenv("STOP_AFTER", "3")
    with pytest.raises(InputError, match=r"engine verl: exit code 1: verl says why; see .*verl.log"):
        job.run(settings(), out)
    monkeypatch.delenv("STOP_AFTER")
    start = (out / job.config.START / "adapter_model.safetensors").read_bytes()
    assert job.run(settings(steps=6), out).step == 6
    assert (out / job.config.START / "adapter_model.safetensors").read_bytes() == start
    assert "resumed at 2" in (out / "verl.log").read_text()


def test_other_settings_and_other_folders_are_refused(tmp_path, standin):
    out = tmp_path / "run"
    job.run(settings(), out)
    with pytest.raises(InputError, match="holds a run with other settings"):
        job.run(settings(dials={"every": 5}), out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="is not empty and holds no verl run"):
        job.run(settings(), tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_a_model_that_is_not_there_and_a_wrong_key_are_found_before_anything_is_written(tmp_path, standin):
    with pytest.raises(InputError, match=r"is not a folder with a config\.json"):
        job.run(settings(model="/nowhere"), tmp_path / "run")
    with pytest.raises(InputError, match=r"Could not override 'trainer\.no_such_key'"):
        job.run(settings(overrides=["trainer.no_such_key=1"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_plan_reads_no_model(tmp_path):
    words = shlex.split(job.plan(settings(model="/nowhere", dials={"every": 7}), tmp_path / "run"))
    assert words[1:3] == ["-m", "verl.trainer.main_ppo"]
    assert "trainer.v1.trainer_mode=nextrl" in words
    assert "+trainer.v1.nextrl.every=7" in words
    assert not (tmp_path / "run").exists()


def test_settings_are_json(tmp_path, standin):
    job.run(settings(), tmp_path / "run")
    assert json.loads((tmp_path / "run" / job.SETTINGS).read_text())["task"] == "chain"
