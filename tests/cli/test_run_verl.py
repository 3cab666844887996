"""`nextrl run` with `engine: verl`: what it would start, and what it refuses."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from nextrl.cli import build
from nextrl.engines.verl import job as verl_job
from nextrl.errors import InputError
from nextrl.runs import config_file, engines

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "verl.yaml")


def test_print_config_shows_verls_command_and_needs_no_model(tmp_path):
    out = tmp_path / "run"
    arguments = [
        "run",
        EXAMPLE,
        "model=/models/that are not here",
        f"output_dir={out}",
        "verl.nodes=4",
        "--print-config",
        "--json",
    ]
    found = CliRunner().invoke(build(["run"]), arguments)
    assert found.exit_code == 0, found.output
    command = json.loads(found.stdout)["derived"]["command"]
    assert "-m verl.trainer.main_ppo" in command
    assert "trainer.nnodes=4" in command
    assert "trainer.save_freq=10" in command
    assert "actor_rollout_ref.rollout.n=8" in command
    assert "trainer.v1.trainer_mode=nextrl +trainer.v1.nextrl.every=20" in command
    assert not out.exists()


def test_the_command_is_shown_below_the_config():
    found = CliRunner().invoke(build(["run"]), ["run", EXAMPLE, "--print-config"])
    config, _, derived = found.stdout.partition("# what follows from it\n")
    assert yaml.safe_load(config)["engine"] == "verl"
    assert derived.startswith("#   command: ")
    assert derived.count("\n") == 1


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (
            "train.optimizer=prodigy-schedulefree",
            "train.optimizer: .*actor_rollout_ref.actor.optim.optimizer",
        ),
        ("train.share_prefixes=true", "train.share_prefixes: .*actor_rollout_ref.actor.use_prefix_grouper"),
        ("eval.every=20", "eval: .*trainer.test_freq in verl.overrides"),
    ],
)
def test_a_setting_that_verl_is_not_told_is_refused(setting, says):
    with pytest.raises(InputError, match=says) as error:
        config_file.load(Path(EXAMPLE), [setting, "leap={method: none}"])
    assert "\n" not in str(error.value)


def test_loggers_are_verls(tmp_path):
    settings = engines.verl_settings(config_file.load(Path(EXAMPLE), ["report_to=[wandb, tensorboard]"]))
    assert "trainer.logger=[console,file,wandb,tensorboard]" in verl_job.plan(settings, tmp_path)


def test_named_methods_and_overrides_of_ours_are_refused():
    with pytest.raises(InputError, match="engine verl takes auto or none"):
        config_file.load(Path(EXAMPLE), ["leap.method=linear", "leap.at=[40]", "leap.every=null"])
    with pytest.raises(InputError, match="nextrl sets this key"):
        config_file.load(Path(EXAMPLE), ['verl.overrides=["trainer.save_freq=1"]'])
