"""The config: what is refused and in which words, what follows from it, and that it survives YAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from nextrl.cli.run import _RUN
from nextrl.engines import named_optimizers
from nextrl.errors import InputError
from nextrl.runs import engines
from nextrl.runs.config import RunConfig, known_keys
from nextrl.runs.config_file import load
from nextrl.runs.engines import verl_settings

EXAMPLES = Path(__file__).parents[2] / "examples"


def config(**values: Any) -> RunConfig:
    return RunConfig(**values)


def refused(tmp_path: Path, text: str, *overrides: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load(path, overrides)
    message = str(error.value)
    assert "\n" not in message
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]
    return message


def loaded(tmp_path: Path, text: str, *overrides: str) -> RunConfig:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return load(path, overrides)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert loaded(tmp_path, "") == RunConfig()
    assert loaded(tmp_path, "train:\nleap:\n") == RunConfig()
    assert loaded(tmp_path, "leap:\n  controller:\n") == RunConfig()


def test_overrides_are_yaml_and_win(tmp_path: Path) -> None:
    got = loaded(
        tmp_path,
        "train: {learning_rate: 1e-3}\n",
        "train.learning_rate=1e-4",
        "leap.method=secant",
        "leap.at=[100, 200]",
        "lora.use_rslora=true",
        "report_to=tensorboard",
    )
    assert got.train.learning_rate == 1e-4
    assert got.leap.at == (100, 200)
    assert got.lora.use_rslora is True
    assert got.report_to == ("tensorboard",)


def test_yaml_and_back_is_the_same_config(tmp_path: Path) -> None:
    one = config(seed=3, train={"steps": 60}, leap={"method": "next", "at": [30]}, output_dir="x")
    assert loaded(tmp_path, one.as_yaml()) == one
    folder = one.model_copy(update={"output_dir": Path("1e-5")})  # a text that looks like a number
    assert loaded(tmp_path, folder.as_yaml()) == folder
    assert RunConfig(**one.as_dict()) == one
    assert "seed" not in yaml.safe_load(one.as_yaml())["train"]


def test_a_method_s_own_parameters_reach_the_arm(tmp_path: Path) -> None:
    named = ("leap.method=window", "leap.at=[100]", "leap.params={rank: 2}")
    one = loaded(tmp_path, "", *named)
    assert one.arm().leap is not None
    assert one.arm().leap.params == {"rank": 2}
    assert loaded(tmp_path, one.as_yaml()) == one
    assert "leap.params.rank" in one.differences(loaded(tmp_path, "", *named[:2]))
    for text, says in {
        "leap.params={foo: 1}": "method 'window' has no parameter 'foo'; it takes rank",
        "leap.params={rank: many}": "method 'window': rank must be a whole number",
        "leap.params={rank: [1]}": "leap.params",
        "leap.params=3": "leap.params",
    }.items():
        assert says in refused(tmp_path, "", *named[:2], text)
    assert "leap.params: auto decides" in refused(tmp_path, "", "leap.params={rank: 2}")


def test_the_seed_at_the_top_is_the_trainer_s() -> None:
    assert config(seed=7).train.seed == 7
    assert config(seed=7).arm().train.seed == 7
    assert config(seed=7, train=config(seed=3).train).train.seed == 7


@pytest.mark.parametrize(
    ("text", "overrides", "wanted"),
    [
        ("train: {learning_rte: 1}", (), "train.learning_rte is no key of a config; did you mean train.learning_rate?"),
        ("modle: tiny", (), "modle is no key of a config; did you mean model?"),
        ("learning_rate: 1", (), "did you mean train.learning_rate?"),
        ("goal: 1", (), "goal is no key of a config; did you mean leap.controller.goal?"),
        ("qqq: 1", (), "--print-config lists every key"),
        ("", ("train.stepz=3",), "train.stepz=3: train.stepz is no key of a config; did you mean train.steps?"),
        ("", ("train.steps=0",), "train.steps=0: train.steps must be greater than or equal to 1, not 0"),
        ("train: {steps: many}", (), "c.yaml: train.steps must be a valid integer"),
        ("train: {learning_rate: .inf}", (), "train.learning_rate must be a finite number"),
        ("train: {learning_rate: -1}", (), "train.learning_rate must be greater than 0, not -1"),
        ("train: {seed: 1}", (), "train.seed is set at the top"),
        ("train: 3", (), "train"),
        ("leap: {method: nxt}", (), "leap.method: 'nxt' is unknown; did you mean next?"),
        ("leap: {method: next}", (), "leap.method next needs leap.at"),
        ("leap: {method: next, at: [50], every: 50}", (), "one of the two"),
        ("leap: {method: next-paper, at: [50], every: 50}", (), "one of the two"),
        ("leap: {method: next-paper}\ntrain: {steps: 100}", (),
         "between 1 and train.steps - 1 = 99, not [150] (where next-paper leaps if nothing else is said; set leap.at)"),
        ("leap: {method: next-paper}\ntrain: {save_every: 20}", (),
         "150 is no multiple of train.save_every = 20, so no checkpoint is there (where next-paper leaps if"),
        ("leap: {method: next, at: [55]}", (), "55 is no multiple of train.save_every = 10"),
        ("leap: {method: next, at: [400]}", (), "ascending steps between 1 and train.steps - 1 = 399, not [400]"),
        ("leap: {method: next, at: [100, 50]}", (), "ascending steps"),
        ("leap: {method: next, at: []}", (), "ascending steps"),
        ("leap: {method: next, at: [50], horizon: 50}", (), "needs 8 checkpoints for a horizon of 50"),
        ("leap: {method: next, at: [50], alpha: 1e9}", (), "alpha must be a number from -8 to 64"),
        ("leap: {method: next, at: [50], alpha: lots}", (), "leap.alpha"),
        ("leap: {at: [50]}", (), "leap.at: auto decides that itself"),
        ("leap: {horizon: 50}", (), "leap.horizon: auto decides that itself"),
        ("leap: {alpha: 2}", (), "leap.alpha: auto decides that itself"),
        ("leap: {controller: {targt: 1}}", (), "did you mean leap.controller.target?"),
        ("leap: {controller: {target: 1}}", (), "leap.controller: target must be above 0 and at most far, not 1.0"),
        ("leap: {controller: {undo: -1}}", (), "leap.controller: undo must be at least 0 standard errors, not -1.0"),
        ("leap: {method: next, at: [50], controller: {undo: 1}}", (), "a named method has no controller"),
        ("leap: {prompts: 32}", (), "leap.prompts: auto asks no validation prompts"),
        ("engine: verl\nleap: {method: linear, at: [40]}", (), "engine verl takes auto or none"),
        ("algorithm: grppo", (), "algorithm: 'grppo' is unknown; did you mean grpo?"),
        ("algorithm: dapo", ("train.save_every=5",), "train.save_every must be a multiple of 2"),
        ("engine: vllm", (), "engine: 'vllm' is unknown"),
        ("engine: verl\nleap: {method: none}\ntrain: {optimizer: mechanic}", (),
         "train.optimizer: engine verl does not use it"),
        ("report_to: tensorbord", (), "did you mean tensorboard?"),
        ("seed: -1", (), "seed must be greater than or equal to 0"),
        ("eval: {prompts: 1}", (), "eval.prompts must be greater than or equal to 2"),
        ("seed: 1\nseed: 2", (), "seed is there twice"),
        ("a: [", (), "is not YAML"),
        ("- 1", (), "must hold keys and values"),
        ("", ("train",), "'train' is no key=value"),
        ("seed: 1", ("seed.x=1",), "seed holds a value"),
        ("", ("seed=[",), "seed=["),
        ("model: 3\nseed: x", (), "(and 1 more)"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_that_says_where(
    tmp_path: Path, text: str, overrides: tuple[str, ...], wanted: str
) -> None:
    assert wanted in refused(tmp_path, text, *overrides)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        load(tmp_path / "none.yaml")


def test_python_callers_are_refused_too() -> None:
    with pytest.raises(ValidationError, match="did you mean next"):
        config(leap={"method": "nxt"})


def test_what_follows_from_a_config() -> None:
    got = config(
        train={"steps": 45, "save_every": 10, "prompts_per_step": 4, "completions_per_prompt": 2},
        leap={"method": "secant", "every": 20},
        eval={"every": 20},
        output_dir="o",
    ).derived()
    assert got["completions"] == 8 * 45
    assert got["checkpoints"] == [10, 20, 30, 40, 45]
    assert got["evaluations"] == [0, 20, 40, 45]
    assert got["leap"]["at"] == [20, 40]
    assert got["leap"]["horizon"] == 10
    assert got["final"] == "o/final"
    assert got["max_completion_length"] == 6


def test_the_arm_is_what_the_config_says() -> None:
    derived = config(leap={"every": 5}).derived()["leap"]
    assert derived == {"method": "auto", "every": 5}  # it asks no prompts
    through_verl = config(engine="verl", leap={"every": 5, "controller": {"goal": 0.01}})
    assert verl_settings(through_verl).dials == {"every": 5, "goal": 0.01}
    assert verl_settings(config(engine="verl", leap={"method": "none"})).dials is None
    # TRL takes two steps on each batch of this algorithm, verl is told to take one.
    assert verl_settings(config(engine="verl", algorithm="gspo", train={"save_every": 5})).algorithm == "gspo"
    auto = config(leap={"every": 5, "controller": {"undo": 3}}).arm()
    assert (auto.kind, auto.auto, auto.window, auto.leap) == ("auto", True, 5, None)
    assert auto.dials["undo"] == 3.0
    none = config(leap={"method": "none", "at": [10]}).arm()
    assert (none.kind, none.auto, none.leap) == ("plain", False, None)
    fixed = config(leap={"method": "secant", "at": 100, "alpha": 2}).arm().leap
    assert fixed is not None
    assert (fixed.at, fixed.alphas, fixed.search, fixed.horizon) == ((100,), (2.0,), False, 50)
    published = config(leap={"method": "next-paper", "at": 150}).arm().leap
    assert published is not None
    assert (published.alphas, published.search) == ((1.5,), False)
    unsaid = config(leap={"method": "next-paper"})
    assert unsaid.arm().leap == published
    assert unsaid.derived()["leap"]["at"] == [150]
    assert RunConfig(**unsaid.as_dict()) == unsaid
    assert config(leap={"method": "next-paper", "every": 100}).leap_steps() == (100, 200, 300)
    searched = config(leap={"method": "next-paper", "at": 150, "alpha": "auto"}).arm().leap
    assert searched is not None
    assert (searched.alphas[-1], searched.search) == (4.0, True)


def test_without_an_adapter_all_weights_are_trained_and_nothing_leaps() -> None:
    assert config(lora=None).arm().auto
    full = config(lora=None, leap={"method": "none"})
    assert full.arm().lora is None
    assert full.arm().label.startswith("all weights, lr ")
    assert RunConfig(**full.as_dict()) == full
    adapted = config(leap={"method": "none"})
    assert full.differences(adapted) == adapted.differences(full) == ["lora"]
    with pytest.raises(ValidationError, match="lora: null trains all weights"):
        config(lora=None, leap={"method": "secant", "at": 100})
    with pytest.raises(ValidationError, match="engine verl trains an adapter"):
        config(lora=None, leap={"method": "none"}, engine="verl")


def test_differences_name_what_is_trained_otherwise() -> None:
    assert config().differences(config(output_dir="elsewhere", report_to="tensorboard")) == []
    assert config(train={"steps": 10}).differences(config(seed=1)) == ["seed", "train.steps"]


def test_every_key_says_what_it_is() -> None:
    keys = known_keys()
    assert {"model", "train.learning_rate", "lora.r", "leap.at", "eval.every"} <= keys.keys()
    missing = [name for name, field in keys.items() if not field.description]
    assert not missing, f"give Field(description=...) to {', '.join(missing)}"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.name)
def test_the_examples_are_valid(path: Path) -> None:
    assert load(path).output_dir


def key_table() -> str:
    """The table of docs/run.md, from the config itself."""
    defaults: dict[str, Any] = {}

    def collect(value: dict[str, Any], prefix: str = "") -> None:
        for key, item in value.items():
            if isinstance(item, dict):
                collect(item, f"{prefix}{key}.")
            else:
                defaults[prefix + key] = item

    collect(RunConfig().as_dict())
    lines = ["| key | default | what it is |", "|---|---|---|"]
    for key, field in known_keys().items():
        value = defaults[key]
        shown = f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')
        lines.append(f"| `{key}` | `{shown}` | {field.description} |")
    return "\n".join(lines)


def test_the_documentation_has_every_key_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "run.md").read_text()
    assert key_table() in page, f"put this table into docs/run.md:\n{key_table()}"


def test_a_temperature_has_the_bounds_of_eval() -> None:
    for value in (1e-40, 0.009, 1001.0):
        with pytest.raises(ValidationError, match="temperature"):
            RunConfig.model_validate({"train": {"temperature": value}})
    assert RunConfig.model_validate({"train": {"temperature": 0.01}}).train.temperature == 0.01


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("seed: 1:30", "1:30 is 90 in YAML; write 90"),
        ("seed: 010", "010 is 8 in YAML; write 8"),
        ("train: {learning_rate: 1:30.5}", "1:30.5 is a number to the base 60"),
    ],
)
def test_numbers_that_yaml_reads_otherwise_than_people_are_refused(
    tmp_path: Path, text: str, wanted: str
) -> None:
    message = refused(tmp_path, text)
    assert wanted in message
    assert "is not YAML" not in message


def test_a_whole_number_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    found = loaded(tmp_path, "train: {steps: 1e3, learning_rate: 1e-5}", "eval.every=5e1", "leap.every=+2E1")
    assert (found.train.steps, found.eval.every, found.leap.every) == (1000, 50, 20)
    assert found.train.learning_rate == 1e-5


@pytest.mark.parametrize("optimizer", [optimizer.name for optimizer in named_optimizers.rate_free()])
@pytest.mark.parametrize("leap", [{}, {"method": "secant", "at": [20]}])
def test_an_optimizer_that_finds_its_own_rate_goes_with_no_leaps(
    optimizer: str, leap: dict[str, Any]
) -> None:
    train = {"optimizer": optimizer}
    with pytest.raises(ValidationError, match=r"finds its own learning rate.*set leap\.method: none"):
        RunConfig(train=train, leap=leap)
    assert RunConfig(train=train, leap={"method": "none"}).train.optimizer == optimizer


@pytest.mark.parametrize(("lora", "plain"), [({}, "plain"), (None, "all weights")])
def test_a_label_names_no_rate_that_is_not_read(lora: dict[str, Any] | None, plain: str) -> None:
    train = {"optimizer": "mechanic", "learning_rate": 1e-3}
    label = RunConfig(train=train, leap={"method": "none"}, lora=lora).arm().label
    assert label == f"{plain}, Mechanic around AdamW"


def test_an_engine_that_is_registered_checks_and_derives(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(given: RunConfig) -> None:
        if given.seed:
            raise ValueError("engine mine has no seed")

    monkeypatch.setattr(engines._ENGINES, "_entries", {name: engines.get(name) for name in engines.names()})
    engines.register(engines.Engine("mine", check, lambda given: {"steps": given.train.steps}))
    assert config(engine="mine").derived() == {"steps": 400}
    with pytest.raises(ValidationError, match="engine mine has no seed"):
        config(engine="mine", seed=1)
    with pytest.raises(ValidationError, match="'min' is unknown; did you mean mine"):
        config(engine="min")


def test_the_command_line_can_run_every_engine() -> None:
    missing = set(engines.names()) - set(_RUN)
    assert not missing, f"add {missing} to _RUN in src/nextrl/cli/run.py, with the function that runs it"
