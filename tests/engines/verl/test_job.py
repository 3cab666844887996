"""`engine: verl` of `nextrl run` around a stand-in for verl's process: begin, collect, resume, and what is refused."""

import json
import shlex
import shutil
import sys
from importlib import resources

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

import nextrl
from nextrl.engines.folder_lock import LOCK
from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.engines.verl import job, options, process
from nextrl.engines.verl.config import VerlSettings
from nextrl.errors import InputError
from nextrl.trajectory import trainer_log

BASE = str(resources.files("nextrl.tasks") / "bases" / "chain")

# Writes what verl would: a shard of the adapter for each checkpoint, and its tracker; goes on from its last one.
STANDIN = """
import os, shutil, sys, pathlib, torch
from safetensors.torch import load_file
words = dict(w.lstrip("+").split("=", 1) for w in sys.argv[1:])
out = pathlib.Path(words["trainer.default_local_dir"])
tracker = out / "latest_checkpointed_iteration.txt"
done = int(tracker.read_text()) if tracker.is_file() else 0
start = load_file(words["actor_rollout_ref.model.lora_adapter_path"] + "/adapter_model.safetensors")
print("resumed at", done)
log = open(words["ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH"], "wb", buffering=0)
for step in range(done + 1, int(words["trainer.total_training_steps"]) + 1):
    log.write(b'{"step": %d, "data": {"critic/score/mean": %d}}\\n' % (step, 10 * done + step))
    if step % int(words["trainer.save_freq"]) == 0:
        actor = out / f"global_step_{step}" / "actor"
        actor.mkdir(parents=True)
        state = {n.replace(".weight", ".default.weight"): t + step for n, t in start.items()}
        torch.save(state, actor / "model_world_size_1_rank_0.pt")
        tracker.write_text(str(step))
        if os.environ.get("KEEP"):
            for other in out.glob("global_step_*/actor"):
                if other.parent.name not in ("global_step_0", f"global_step_{step}"):
                    shutil.rmtree(other)
    if os.environ.get("END_AFTER") == str(step):
        sys.exit(0)
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


def test_the_log_of_a_resumed_run_is_whole(tmp_path, standin, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setenv("STOP_AFTER", "3")
    with pytest.raises(InputError, match="verl says why"):
        job.run(settings(), out)
    (out / job.METRICS).write_bytes((out / job.METRICS).read_bytes() + b'{"step": 4, "da')  # killed just then
    (out / job.METRICS).rename(out / job.EARLIER_METRICS)  # and so were we, in the next attempt
    monkeypatch.delenv("STOP_AFTER")
    job.run(settings(steps=6), out)
    job.run(settings(steps=6), out)  # nothing is left to do, and verl opens its log anew
    assert not (out / job.EARLIER_METRICS).exists()
    traj = nextrl.Trajectory.load(out)
    assert trainer_log.rewards(traj) == {1: 1, 2: 2, 3: 23, 4: 24, 5: 25, 6: 26}


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        ({"target_modules": ["nope"]}, "lora: target_modules: the model has no module 'nope'"),
        ({"target_modules": "nope"}, "lora: no adapter fits"),
        ({"use_rslora": True}, "use_rslora is not carried"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused_before_anything_is_written(tmp_path, standin, lora, says):
    out = tmp_path / "runs" / "run"
    with pytest.raises(InputError, match=says) as error:
        job.run(settings(lora=LoraSettings(**lora)), out)
    assert "\n" not in str(error.value)
    assert not out.parent.exists()
    assert job.run(settings(), out).step == 4


def test_a_beginning_that_was_killed_is_begun_again(tmp_path, standin, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(job.adapters.FreshAdapter, "write", lambda self, out: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            job.run(settings(), out)
    assert {p.name for p in out.iterdir()} == {LOCK, job.SETTINGS, "data"}
    with pytest.raises(InputError, match="holds a run with other settings"):
        job.run(settings(lora=LoraSettings(r=2)), out)
    assert job.run(settings(), out).step == 4


def test_two_runs_do_not_train_in_one_folder(tmp_path, standin):
    out = tmp_path / "run"
    out.mkdir()
    with FileLock(out / LOCK), pytest.raises(InputError, match="another process is running there"):
        job.run(settings(), out)
    assert {p.name for p in out.iterdir()} == {LOCK}
    assert job.run(settings(), out).step == 4


def test_a_folder_of_somebody_else_is_left_alone(tmp_path, standin):
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match="is not empty and holds no verl run"):
        job.run(settings(), tmp_path)


def test_checkpoints_whose_actor_verl_has_removed_are_passed_over(tmp_path, standin, monkeypatch):
    """`trainer.max_actor_ckpt_to_keep=1`."""
    monkeypatch.setenv("KEEP", "1")
    out = tmp_path / "run"
    outcome = job.run(settings(steps=6, overrides=["trainer.max_actor_ckpt_to_keep=1"]), out)
    assert outcome.adapter == out / "global_step_6" / "actor" / "lora_adapter"
    assert (outcome.adapter / "adapter_model.safetensors").is_file()
    assert not (out / "global_step_2" / "actor").exists()


def test_other_folders_beside_the_checkpoints_are_passed_over(tmp_path, standin, monkeypatch):
    """Copies that a user made, and steps of a branch that verl's tracker has left."""
    out = tmp_path / "run"
    monkeypatch.setenv("STOP_AFTER", "3")
    with pytest.raises(InputError, match="verl says why"):
        job.run(settings(), out)
    monkeypatch.delenv("STOP_AFTER")
    for name in ("global_step_2_backup", "global_step_best", "global_step_8"):
        shutil.copytree(out / "global_step_2", out / name)
    assert job.run(settings(), out).step == 4
    assert not (out / "global_step_8" / "actor" / "lora_adapter").exists()


def test_a_checkpoint_that_verl_wrote_again_gets_its_own_adapter(tmp_path, standin):
    out = tmp_path / "run"
    job.run(settings(), out)
    for folder in ("global_step_2", "global_step_4"):  # verl writes the shards again, and leaves the adapter
        path = out / folder / "actor" / "model_world_size_1_rank_0.pt"
        torch.save({name: tensor + 100 for name, tensor in torch.load(path).items()}, path)
    adapter = load_file(job.run(settings(), out).adapter / "adapter_model.safetensors")
    start = load_file(out / job.config.START / "adapter_model.safetensors")
    assert all((adapter[name] - start[name] - 104).abs().max() < 1e-4 for name in start)


def test_a_run_that_verl_ended_early_is_no_success(tmp_path, standin, monkeypatch):
    monkeypatch.setenv("END_AFTER", "5")
    out = tmp_path / "run"
    with pytest.raises(InputError, match=r"verl ended after step 4 of 8.*verl\.log") as error:
        job.run(settings(steps=8), out)
    assert "\n" not in str(error.value)
    assert nextrl.Trajectory.load(out).steps == (0, 2, 4)


def test_the_passes_over_the_data_are_enough_for_the_steps(tmp_path, standin):
    """verl drops the rest of a pass that fills no batch, and ends a run after so many passes."""
    rows = len(job.base.get("chain").examples("train"))
    for batch, steps in ((rows, 7), (rows // 2 + 1, 7), (8, 500), (rows - 1, 30)):
        train = TrainSettings(steps=steps, save_every=2, prompts_per_step=batch, completions_per_prompt=2)
        table = job.config.compose(settings(train=train), tmp_path, "")
        assert table["trainer.total_epochs"] * (rows // batch) >= steps
    train = TrainSettings(steps=4, save_every=2, prompts_per_step=rows + 1, completions_per_prompt=2)
    with pytest.raises(InputError, match=rf"train.prompts_per_step: .* has {rows}"):
        job.run(settings(train=train), tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.total_epochs=1", "verl would end after step .* trainer.total_epochs"),
        ("data.train_max_samples=8", "verl would end after step .* data.train_max_samples"),
        ("actor_rollout_ref.actor.checkpoint.save_contents=[optimizer]", "save_contents: .* name 'model'"),
        ("actor_rollout_ref.actor.strategy=fsdp", "an empty adapter with PEFT"),
        ("actor_rollout_ref.rollout.calculate_log_probs=False", "calculate_log_probs=True"),
        ("+trainer.v1.nextrl.evry=3", "trainer.v1.nextrl.evry: unknown"),
    ],
)
def test_an_override_is_checked_in_the_config_that_comes_of_it(
    tmp_path, standin, monkeypatch, override, says
):
    monkeypatch.setattr(options.metadata, "version", lambda name: "0.21.2" if name == "peft" else "0.9.1")
    with pytest.raises(InputError, match=says) as error:
        job.run(settings(steps=10**6, overrides=[override]), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


TOLD = {
    "hydra": """
Traceback (most recent call last):
  File "main_ppo.py", line 70, in run_ppo
    ray.get(runner.run.remote(config))
ray.exceptions.RayTaskError(InputError): \x1b[36mray::TaskRunnerV1.run()\x1b[39m (pid=1, ip=192.0.2.2)
  File "shards.py", line 55, in trained
    raise InputError(
nextrl.errors.InputError: this actor trains nothing

Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.
\x1b[36m(WorkerDict pid=540)\x1b[0m INFO: update_weights done
""",
    "several lines": """
Traceback (most recent call last):
  File "x.py", line 1, in <module>
hydra.errors.InstantiationException: Error in call to target 'HFModelConfig':
OSError("no model")
full_key: critic.model
""",
    "an exit": """
Traceback (most recent call last):
  File "x.py", line 1, in <module>
ValueError: of no importance
one
two
three
four
five
six
verl says why
""",
    "a refusal": """
Traceback (most recent call last):
  File "x.py", line 1, in <module>
ValueError: of no importance
nextrl: set trainer.use_v1=True
""",
    "nothing": "",
}


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ("hydra", "exit code 1: nextrl.errors.InputError: this actor trains nothing; see"),
        ("several lines", r"target 'HFModelConfig': OSError\(\"no model\"\) full_key: critic.model; see"),
        ("an exit", "exit code 1: verl says why; see"),
        ("a refusal", "exit code 1: nextrl: set trainer.use_v1=True; see"),
        ("nothing", "exit code 1: it said nothing; see"),
    ],
)
def test_why_verl_failed_is_what_it_said_last(tmp_path, told, says):
    (tmp_path / "verl.log").write_text("ValueError: of an earlier run\n")
    code = f"import sys; sys.stdout.write({TOLD[told]!r}); sys.exit(1)"
    with pytest.raises(InputError, match=says):
        process.run([sys.executable, "-c", code], tmp_path / "verl.log")


def test_verl_is_asked_for_the_whole_error(tmp_path):
    code = "import os, sys; sys.exit('asked: ' + os.environ['HYDRA_FULL_ERROR'])"
    with pytest.raises(InputError, match="asked: 1"):
        process.run([sys.executable, "-c", code], tmp_path / "verl.log")


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
