"""What a verl run may be asked for, and which runs are refused in one line."""

import math
import subprocess
import sys
import textwrap

import pytest
from omegaconf import OmegaConf

from nextrl.engines.verl import config, options
from nextrl.engines.verl.options import check_run, check_versions, options_of
from nextrl.errors import InputError


def composed(*words):
    return config.check(
        ["actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.actor.strategy=fsdp2", *words]
    )


def test_the_two_words_of_the_docs_are_taken_by_verls_own_config():
    found = composed("trainer.v1.trainer_mode=nextrl", "+trainer.v1.nextrl.every=5")
    check_run(found)
    assert options_of(found.trainer.v1.nextrl).dials.every == 5
    leaps = composed("+trainer.v1.nextrl.leaps={6: 1.5}", "+trainer.v1.nextrl.adapt_lr=false")
    asked = options_of(leaps.trainer.v1.nextrl)
    assert asked.leaps == {6: 1.5}
    assert not asked.adapt_lr


def test_leaps_may_lead_back_to_where_they_began():
    assert options_of({"leaps": {6: -1, 9: 0.5}}).leaps == {6: -1.0, 9: 0.5}


def test_without_a_word_the_defaults_hold():
    assert options_of(None) == options.Options(options.ControllerConfig())
    assert options_of({}) == options.Options(options.ControllerConfig())


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"evry": 3}, r"trainer.v1.nextrl.evry: unknown; known are adapt_lr"),
        ({"leaps": [6]}, "give a step and an alpha"),
        ({"leaps": {0: 1.0}}, "steps count from 1"),
        ({"leaps": {6.5: 1.0}}, "give a step and an alpha"),
        ({"leaps": {True: 1.0}}, "give a step and an alpha"),
        ({"leaps": {6: True}}, "give a step and an alpha"),
        ({"leaps": 5}, "give a step and an alpha"),
        ({"leaps": {6: math.nan}}, "alpha of step 6 is nan: give a number, at least -1"),
        ({"leaps": {6: math.inf}}, "alpha of step 6 is inf: give a number, at least -1"),
        ({"leaps": {6: -3.0}}, "alpha of step 6 is -3.0: give a number, at least -1"),
        ({"leaps": {6: 1.0}, "every": 5}, "trainer.v1.nextrl.every: .* leave it out"),
        ({"leaps": {6: 1.0}, "take_back": False}, "trainer.v1.nextrl.take_back: .* leave it out"),
        (5, r"trainer.v1.nextrl: give keys \(\+trainer.v1.nextrl.every=10\), not 5"),
        (False, r"trainer.v1.nextrl: give keys \(\+trainer.v1.nextrl.every=10\), not False"),
        ("auto", "trainer.v1.nextrl: give keys .*, not 'auto'"),
        ([1], "trainer.v1.nextrl: give keys "),
        ({"adapt_lr": "no"}, "true or false, not 'no'"),
        ({"every": "ten"}, "trainer.v1.nextrl.every: a whole number, not 'ten'"),
        ({"every": 2.5}, "trainer.v1.nextrl.every: a whole number, not 2.5"),
        ({"goal": True}, "trainer.v1.nextrl.goal: a number, not True"),
        ({"every": 0}, "every must be at least 1"),
        ({"mode": "colocate_async"}, "trainer.v1.nextrl.mode: unknown"),
    ],
)
def test_what_cannot_be_meant_is_one_clear_line(asked, says):
    with pytest.raises(InputError, match=says) as error:
        options_of(OmegaConf.create({"nextrl": asked}).nextrl)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["actor_rollout_ref.actor.strategy=megatron"], "not for actor_rollout_ref.actor.strategy=megatron"),
        (["trainer.use_v1=False"], "trainer.use_v1=True"),
        (
            ["actor_rollout_ref.actor.strategy=fsdp", "actor_rollout_ref.actor.fsdp_config.fsdp_size=1"],
            "no gradient is exchanged between workers.*: set .*strategy=fsdp2",
        ),
        (["+trainer.v1.sync.parameter_sync_step=2"], "leave trainer.v1.sync.parameter_sync_step out"),
        (["actor_rollout_ref.rollout.calculate_log_probs=False"], "calculate_log_probs=True"),
        (
            ["actor_rollout_ref.model.lora_rank=0", "actor_rollout_ref.model.lora_adapter_path=/a"],
            "with model.lora_adapter_path and no model.lora_rank verl trains all weights under FSDP",
        ),
        (
            ["actor_rollout_ref.model.lora_rank=0", "actor_rollout_ref.model.lora.rank=8"],
            "with model.lora.rank and no model.lora_rank verl trains all weights under FSDP",
        ),
        (
            [
                "actor_rollout_ref.actor.optim.optimizer_impl=torchao.optim",
                "actor_rollout_ref.actor.optim.optimizer=_AdamW",
            ],
            "actor.optim.optimizer_impl=torchao.optim: .* set it to torch.optim",
        ),
        (
            ["actor_rollout_ref.actor.optim.optimizer=AdamWScheduleFree"],
            "actor.optim.optimizer=AdamWScheduleFree: .* set it to AdamW",
        ),
        (
            ["distillation.enabled=True", "distillation.distillation_loss.use_task_rewards=False"],
            "distillation.distillation_loss.use_task_rewards=True",
        ),
        (["+async_training.require_batches=1"], "nextrl is read by verl.trainer.main_ppo alone"),
        (["+rollout.nnodes=1"], "nextrl is read by verl.trainer.main_ppo alone"),
    ],
)
def test_runs_that_leaps_do_not_work_in_are_refused(words, says):
    with pytest.raises(InputError, match=says) as error:
        check_run(composed(*words))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        ["algorithm.adv_estimator=gae", "critic.enable=True"],
        ["algorithm.use_kl_in_reward=True"],
        ["actor_rollout_ref.actor.use_kl_loss=True"],
        ["actor_rollout_ref.actor.policy_loss.loss_mode=gspo"],
        ["algorithm.filter_groups.enable=True"],
        ["actor_rollout_ref.model.lora_adapter_path=/a"],
        ["actor_rollout_ref.model.lora_rank=0"],
        ["distillation.enabled=True"],
        # What FSDP1 and a new PEFT deliver of an adapter is no matter where there is none.
        ["actor_rollout_ref.model.lora_rank=0", "actor_rollout_ref.actor.strategy=fsdp"],
    ],
)
def test_what_is_none_of_its_business_passes(words):
    check_run(composed(*words))


def test_other_versions_and_trl_are_refused(monkeypatch):
    monkeypatch.setattr(options, "_sees_trl", lambda: False)
    check_versions("0.9.1")
    for other in ("0.8.0", "0.10.1", "1.0.0"):
        with pytest.raises(InputError, match=rf"this is verl {other}: install verl==0.9.1"):
            check_versions(other)
    monkeypatch.setattr(options, "_sees_trl", lambda: True)
    monkeypatch.setattr(options.metadata, "version", lambda name: "1.16.0")
    with pytest.raises(InputError, match=r"TRL 1\.16\.0 is installed beside verl 0\.9\.1"):
        check_versions("0.9.1")
    monkeypatch.setattr(options.metadata, "version", lambda name: "0.9.6")
    check_versions("0.9.1")


@pytest.mark.parametrize(
    ("peft", "empty"), [("0.17.0", False), ("0.20.0", False), ("0.21.2", True), ("1.0.0", True)]
)
def test_where_the_rollouts_get_no_adapter_the_run_is_refused(monkeypatch, peft, empty):
    monkeypatch.setattr(options.metadata, "version", lambda name: peft)
    flat = "actor_rollout_ref.actor.strategy=fsdp"
    if empty:
        with pytest.raises(InputError, match=rf"an empty adapter with PEFT {peft}: set .*strategy=fsdp2"):
            check_run(composed(flat))
    else:
        check_run(composed(flat))
    check_run(composed())
    check_run(composed(flat, "actor_rollout_ref.model.lora.merge=True"))


FAKE = {
    "verl/__init__.py": """
import nextrl.engines.verl.plugin
__version__ = "0.9.1"
""",
    "verl/utils/__init__.py": "",
    "verl/utils/import_utils.py": "def is_trl_available(): return False",
    "verl/trainer/__init__.py": "",
    "verl/trainer/ppo/__init__.py": "",
    "verl/trainer/ppo/v1/__init__.py": """
class PPOTrainerSync:
    def __init__(self, config): self.config = config
registry = {}
def register_trainer(name):
    return lambda cls: registry.setdefault(name, cls)
""",
    "verl/trainer/constants_ppo.py": """
def get_ppo_ray_runtime_env(config=None): return {}
""",
    "verl/trainer/main_ppo.py": """
import sys
from omegaconf import OmegaConf
from verl.trainer.constants_ppo import get_ppo_ray_runtime_env
def run_ppo(config, task_runner_class=None):
    if "started" not in config:
        get_ppo_ray_runtime_env(config)
    print("Ray was started")
if __name__ == "__main__":
    run_ppo(OmegaConf.create(sys.argv[1]))
""",
    "verl/experimental/__init__.py": "",
    "verl/experimental/other.py": """
import sys
from omegaconf import OmegaConf
from verl.trainer.main_ppo import run_ppo
run_ppo(OmegaConf.create(sys.argv[1]))
""",
}
"""What of verl the plugin waits for, as verl 0.9.1 calls it."""


@pytest.fixture
def fake_verl(tmp_path):
    for name, text in FAKE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *arguments],
            env={"PYTHONPATH": f"{tmp_path}:src"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_the_plugin_registers_its_name_and_imports_nothing(fake_verl):
    """verl loads plugins while it is itself being imported, in each of its processes."""
    code = """
        import sys
        import verl
        assert "verl.trainer" not in sys.modules
        import verl.trainer.ppo.v1 as v1
        assert list(v1.registry) == ["nextrl"], v1.registry
        assert issubclass(v1.registry["nextrl"], v1.PPOTrainerSync)
        from omegaconf import OmegaConf
        from verl.trainer.main_ppo import run_ppo
        run_ppo(OmegaConf.create({"trainer": {"use_v1": False, "v1": {"trainer_mode": "sync"}}}))
        run_ppo(OmegaConf.create({"trainer": {"use_v1": False}}))
        heavy = [m for m in sys.modules if m.startswith("nextrl.engines.trl") or m in ("torch", "nextrl.judge")]
        assert not heavy, heavy
        assert not any(type(f).__name__ == "_Watch" for f in sys.meta_path)
        from nextrl.engines.verl import plugin
        v1.registry.clear()
        plugin.install()  # where the trainers are there already
        assert list(v1.registry) == ["nextrl"]
    """
    run = fake_verl("-c", textwrap.dedent(code))
    assert run.returncode == 0, run.stderr


def settings_of_verl(**trainer):
    given = {"use_v1": True, "n_gpus_per_node": 1, "nnodes": 1, "v1": {"trainer_mode": "nextrl"}, **trainer}
    actor = {"strategy": "fsdp2", "fsdp_config": {"fsdp_size": -1}, "optim": {"optimizer": "AdamW"}}
    return {"trainer": given, "actor_rollout_ref": {"actor": actor, "model": {}, "rollout": {}}}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (settings_of_verl(use_v1=False), "set trainer.use_v1=True"),
        (
            {**settings_of_verl(), "async_training": {"require_batches": 1}},
            "is read by verl.trainer.main_ppo alone",
        ),
        (
            settings_of_verl(v1={"trainer_mode": "nextrl", "nextrl": {"evry": 3}}),
            "trainer.v1.nextrl.evry: unknown",
        ),
        (
            settings_of_verl(
                total_training_steps=6, v1={"trainer_mode": "nextrl", "nextrl": {"leaps": {9: 1.0}}}
            ),
            "this run goes from step 0 to 6, and never comes to step 9",
        ),
    ],
)
@pytest.mark.parametrize("entry", ["main_ppo", "other", "started"])
def test_a_refusal_is_one_line_before_ray_is_started(fake_verl, config, says, entry):
    """Whoever calls verl's `run_ppo`, and whether Ray is there already or not."""
    if entry == "started":
        config = {**config, "started": True}
    module = "verl.trainer.main_ppo" if entry == "main_ppo" else "verl.experimental.other"
    run = fake_verl("-m", module, str(OmegaConf.to_yaml(OmegaConf.create(config))))
    assert (run.returncode, run.stdout) == (1, "")
    [line] = run.stderr.splitlines()
    assert line.startswith("nextrl: ")
    assert says in line


def test_what_is_not_refused_is_started(fake_verl):
    config = OmegaConf.to_yaml(OmegaConf.create(settings_of_verl()))
    for module in ("verl.trainer.main_ppo", "verl.experimental.other"):
        run = fake_verl("-m", module, config)
        assert (run.returncode, run.stdout) == (0, "Ray was started\n"), run.stderr
