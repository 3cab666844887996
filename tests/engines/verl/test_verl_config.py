"""The composed overrides against verl's real config tree, at the version that constraints.txt pins."""

from importlib.metadata import version
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from nextrl.engines import algorithms
from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.engines.verl import config
from nextrl.engines.verl.config import ALGORITHMS, VerlSettings, arguments, check, compose
from nextrl.engines.verl.options import check_run, options_of
from nextrl.errors import InputError
from nextrl.judge.controller_config import ControllerConfig

OUT = Path("/runs/a b=c")
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def settings(**changes):
    train = TrainSettings(
        steps=40, learning_rate=3e-5, prompts_per_step=16, completions_per_prompt=8, max_completion_length=6
    )
    return VerlSettings(model="/models/some base", task="chain", train=train, **changes)


def composed(*further, **changes):
    chosen = settings(**changes)
    return check(arguments(compose(chosen, OUT, TEMPLATE), further))


def test_the_keys_are_written_for_the_installed_version():
    assert version("verl") == config.VERSION


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_every_key_of_an_algorithm_is_in_verls_tree(algorithm):
    config = composed(algorithm=algorithm)
    wanted = ALGORITHMS[algorithm]
    assert config.algorithm.adv_estimator == wanted["algorithm.adv_estimator"]
    assert (
        config.actor_rollout_ref.actor.policy_loss.loss_mode
        == (wanted["actor_rollout_ref.actor.policy_loss.loss_mode"])
    )


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_names_of_estimators_and_losses_are_registered_in_verls_source(algorithm):
    """The yaml takes any text; the registry in verl's code does not."""
    source = (config.config_tree().parent / "ppo" / "core_algos.py").read_text()
    wanted = ALGORITHMS[algorithm]
    assert f' = "{wanted["algorithm.adv_estimator"]}"' in source
    assert f'@register_policy_loss("{wanted["actor_rollout_ref.actor.policy_loss.loss_mode"]}")' in source
    actor = (config.config_tree().parents[1] / "workers" / "config" / "actor.py").read_text()
    assert f'"{wanted["actor_rollout_ref.actor.loss_agg_mode"]}"' in actor


def test_an_algorithm_that_verl_is_not_told_of_is_named():
    with pytest.raises(InputError, match="algorithm 'ppo': engine verl has grpo, "):
        composed(algorithm="ppo")
    assert set(ALGORITHMS) == set(algorithms.names())


def test_values_arrive_as_they_were_given():
    config = composed(lora=LoraSettings(r=4, alpha=8, target_modules=["q_proj", "v_proj"]))
    actor = config.actor_rollout_ref
    assert actor.model.path == "/models/some base"
    assert actor.model.custom_chat_template == TEMPLATE
    assert list(actor.model.target_modules) == ["q_proj", "v_proj"]
    assert (actor.model.lora_rank, actor.model.lora_alpha) == (4, 8)
    assert actor.model.lora_adapter_path == "/runs/a b=c/global_step_0/actor/lora_adapter"
    assert actor.actor.optim.lr == 3e-5
    assert actor.rollout.n == 8
    assert config.data.train_batch_size == actor.actor.ppo_mini_batch_size == 16
    assert actor.rollout.response_length == config.data.max_response_length == 6
    assert config.trainer.total_training_steps == 40
    assert config.trainer.save_freq == 10
    assert config.trainer.default_local_dir == "/runs/a b=c"
    assert config.reward.custom_reward_function.path == "/runs/a b=c/data/reward.py"
    assert (
        config.ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH == "/runs/a b=c/metrics.jsonl"
    )


def test_only_the_adapter_is_saved():
    assert composed().actor_rollout_ref.actor.checkpoint.save_lora_only is True
    source = config.config_tree() / "config.py"
    assert "save_lora_only: bool" in source.read_text()


def test_leaps_are_two_words_and_a_plain_run_has_neither():
    plain = composed()
    assert plain.trainer.v1.trainer_mode == "sync"
    assert "nextrl" not in plain.trainer.v1
    leaping = composed(dials={"every": 5, "goal": 0.01})
    check_run(leaping)
    assert leaping.trainer.v1.trainer_mode == "nextrl"
    assert options_of(leaping.trainer.v1.nextrl).dials == ControllerConfig(every=5, goal=0.01)


def test_a_key_that_verl_does_not_have_is_one_clear_line():
    with pytest.raises(
        InputError, match=r"Could not override 'actor_rollout_ref.actor.optim.learning_rate'"
    ) as e:
        composed("actor_rollout_ref.actor.optim.learning_rate=1")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "text",
    [
        "trainer.save_freq=3",
        " ++trainer.save_freq =3",
        "+trainer.default_local_dir=x",
        "data.train_batch_size",
        "actor_rollout_ref.model.target_modules=[q_proj]",  # verl takes those of the adapter that nextrl wrote
        "data={train_batch_size:4}",
        "trainer={save_freq:5}",
        "~trainer.v1",
    ],
)
def test_overrides_of_what_the_loop_relies_on_are_refused(text):
    with pytest.raises(ValueError, match="verl override"):
        settings(overrides=[text])


def test_without_verl_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(config.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"verl is not installed here; pip install 'verl\[vllm\]==0.9.1'"):
        check([])


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"])))
def test_any_text_survives_hydras_grammar(text):
    value = OverridesParser.create().parse_override(arguments({"key": text})[0]).value()
    assert getattr(value, "text", value) == text
