"""`RunConfig`: everything `nextrl run` is told, as one validated object.

Its fields are what a user decides. What follows from them (`RunConfig.derived`) is shown by `--print-config` and is no
key of a config.
`config_file.py` reads it from YAML and `key=value` overrides.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nextrl.engines import algorithms, named_optimizers
from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.engines.verl.config import VerlSection
from nextrl.errors import InputError
from nextrl.extrapolators import check_alpha
from nextrl.extrapolators import get as method_of
from nextrl.extrapolators import names as method_names
from nextrl.extrapolators.base import tags_by_name
from nextrl.files import usable_path
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.regime import DEFAULT_WINDOW
from nextrl.leaps.leap import DEFAULT_HORIZON
from nextrl.nested import dotted
from nextrl.registry import unknown
from nextrl.runs import engines
from nextrl.runs.arm import ArmSettings, LeapSettings
from nextrl.runs.config_sections import ControllerSection, EvalSection, LeapSection
from nextrl.runs.rate_rule import RULE, rate_of
from nextrl.scalars import MAX_SEED

LOGGERS = ("tensorboard", "wandb", "trackio", "mlflow")
# Set at the top of the config, where a user looks for them; `train.seed` would be a second place for the same thing.
LIFTED = ("seed", "algorithm")
# What may differ when a run is taken up again: neither changes what is trained.
FREE = ("output_dir", "report_to")


WHOLE_EXPONENT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$")
"""A number to YAML 1.2 and to us; YAML 1.1 wants a dot in it."""


class _Dumper(yaml.SafeDumper):
    """Puts a text in quotes that `config_file` would read as a number."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", WHOLE_EXPONENT, list("-+0123456789"))


class RunConfig(BaseModel):
    """A run. Build it with `config_file.load`, or in Python from keyword arguments."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str = Field("tiny", description="a name (`tiny`, ...) or a local Hugging Face folder")
    task: str = Field("chain", description="a task's name")
    algorithm: str = Field(
        "grpo",
        description="how rewards become gradients: " + ", ".join(f"`{name}`" for name in algorithms.names()),
    )
    engine: str = Field(
        engines.DEFAULT, description="what trains", json_schema_extra={"enum": [*engines.names()]}
    )
    seed: int = Field(0, ge=0, le=MAX_SEED, description="of weights, prompts and rollouts")
    output_dir: Path = Field(Path("nextrl-out"), description="folder for everything the run writes")
    train: TrainSettings = Field(TrainSettings(), validate_default=True)
    lora: LoraSettings | None = Field(
        LoraSettings(), description="the adapter; null: all weights are trained, and nothing leaps"
    )
    leap: LeapSection = LeapSection()
    eval: EvalSection = EvalSection()
    verl: VerlSection = VerlSection()
    report_to: tuple[str, ...] = Field(
        (), description="the trainer's loggers: `tensorboard`, `wandb`, `trackio`"
    )

    @field_validator("algorithm")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in algorithms.names():
            raise ValueError(unknown(name, algorithms.names()))
        return name

    @field_validator("engine")
    @classmethod
    def _known_engine(cls, name: str) -> str:
        if name not in engines.names():
            raise ValueError(unknown(name, engines.names()))
        return name

    @field_validator("output_dir", mode="before")
    @classmethod
    def _one_path(cls, value: Any) -> Any:
        """The folder as everything uses it: `~` is resolved here, once."""
        if not isinstance(value, str | Path):
            raise ValueError("must be a folder's path")
        return usable_path(value)

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_logger(cls, value: Any) -> Any:
        if value is None or value == "none":
            return ()
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _lift(cls, data: Any) -> Any:
        """Give the training settings what stands at the top."""
        if not isinstance(data, Mapping):
            return data
        # A section with nothing in it is as if it were not there; `lora: null` says something (full fine-tuning).
        values = {k: v for k, v in data.items() if v is not None or k == "lora" or k not in SECTIONS}
        train = values.get("train", {})
        if isinstance(train, TrainSettings):
            train = train.model_dump(exclude=set(LIFTED))
        if not isinstance(train, Mapping):
            return values
        for key in LIFTED:
            if key in train:
                raise ValueError(f"train.{key} is set at the top: write {key}: {train[key]} there")
        if train.get("learning_rate") == RULE:
            # Resolved here, so that a run's folder keeps the number whatever becomes of the rule.
            lora = values.get("lora", LoraSettings()) is not None
            train = {**train, "learning_rate": rate_of(str(values.get("model", "tiny")), lora=lora)}
        lifted = {key: values[key] for key in LIFTED if key in values}
        return {**values, "train": {**train, **lifted}}

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        for name in self.report_to:
            if name not in LOGGERS:
                raise ValueError(f"report_to: {unknown(name, LOGGERS)}")
        if self.lora is None:
            self._check_full()
        engines.get(self.engine).check(self)
        methods = ("auto", "none", *(n for n in method_names() if n != "none"))
        if self.leap.method not in methods:
            raise ValueError(f"leap.method: {unknown(self.leap.method, methods)}")
        if named_optimizers.get(self.train.optimizer).rate_free and self.leap.method != "none":
            raise ValueError(
                f"train.optimizer: {self.train.optimizer} finds its own learning rate, which leap.method: "
                f"{self.leap.method} would move as well: set leap.method: none"
            )
        if self.leap.method == "auto":
            self._check_auto()
        elif self.leap.method != "none":
            self._check_named()
        return self

    def _check_full(self) -> None:
        if self.leap.method not in ("auto", "none"):
            raise ValueError(
                f"lora: null trains all weights, and {self.leap.method} works on an adapter: set leap.method: auto or "
                "none, or leave lora out"
            )

    def _check_auto(self) -> None:
        for key in ("at", "horizon", "params"):
            if getattr(self.leap, key) is not None:
                raise ValueError(f"leap.{key}: auto decides that itself; leave it out or name a method")
        if self.leap.alpha not in ("auto", None):
            raise ValueError("leap.alpha: auto decides that itself; leave it out or name a method")
        if self.leap.prompts is not None:
            raise ValueError("leap.prompts: auto asks no validation prompts; leave it out or name a method")
        try:
            ControllerConfig(**self.leap.dials())
        except InputError as error:
            raise ValueError(f"leap.controller: {error}") from error

    def _check_named(self) -> None:
        if self.leap.controller != ControllerSection():
            raise ValueError("leap.controller: a named method has no controller; leave it out or choose auto")
        method, save_every = self.leap.method, self.train.save_every
        if self.leap.at is not None and self.leap.every is not None:
            raise ValueError("leap.at and leap.every both say when to leap: give one of the two")
        if self.leap.at is None and self.leap.every is None and tags_by_name(method).at is None:
            raise ValueError(f"leap.method {method} needs leap.at: [steps] or leap.every: N, one of the two")
        steps = self.leap_steps()
        if not steps or steps[0] < 1 or steps[-1] >= self.train.steps or list(steps) != sorted(set(steps)):
            raise ValueError(
                f"leap.at must be ascending steps between 1 and train.steps - 1 = {self.train.steps - 1}, "
                f"not {list(steps)}{self._whose_steps()}"
            )
        for step in steps:
            if step % save_every:
                raise ValueError(
                    f"leap.at: {step} is no multiple of train.save_every = {save_every}, so no checkpoint is there"
                    f"{self._whose_steps()}"
                )
        if (alpha := self.alpha()) is not None:
            check_alpha(alpha)
        have = self._shortest_gap() // save_every + 1
        need = method_of(method, **(self.leap.params or {})).min_checkpoints(self.horizon(), save_every)
        if need > have:
            raise ValueError(
                f"leap.method {method} needs {need} checkpoints for a horizon of {self.horizon()} steps and has {have} "
                "before a leap: lower leap.horizon or train.save_every, or leap later"
            )

    def leap_steps(self) -> tuple[int, ...]:
        """Steps of the leaps by a named method; empty for `auto` and `none`."""
        if self.leap.method in ("auto", "none"):
            return ()
        if self.leap.every is not None:
            return tuple(range(self.leap.every, self.train.steps, self.leap.every))
        if self.leap.at is not None:
            return self.leap.at
        return tags_by_name(self.leap.method).at or ()

    def _whose_steps(self) -> str:
        """For a refusal of steps that the user did not write: where they come from, and what to do."""
        if self.leap.at is not None or self.leap.every is not None:
            return ""
        return f" (where {self.leap.method} leaps if nothing else is said; set leap.at)"

    def alpha(self) -> float | None:
        """A named method's alpha that is taken without asking; None: it is searched."""
        if self.leap.alpha is None:
            return tags_by_name(self.leap.method).alpha
        return None if self.leap.alpha == "auto" else self.leap.alpha

    def _shortest_gap(self) -> int:
        steps = (0, *self.leap_steps())
        return min(b - a for a, b in itertools.pairwise(steps))

    def horizon(self) -> int:
        """The horizon of a named method: as given, else half of the shortest way to a leap, 50 at most."""
        if self.leap.horizon is not None:
            return self.leap.horizon
        k = self.train.save_every
        return max(k, min(DEFAULT_HORIZON, self._shortest_gap() // 2) // k * k)

    def evaluations(self) -> tuple[int, ...]:
        """Steps at which accuracy is measured, the start apart."""
        last = self.train.steps
        return (*range(self.eval.every, last, self.eval.every), last)

    def arm(self) -> ArmSettings:
        """The run as the one arm of a comparison, which is what the loop trains."""
        leap = self.leap
        kind: Any = {"auto": "auto", "none": "plain"}.get(leap.method, "leap")
        optimizer = named_optimizers.get(self.train.optimizer)
        # A rate that the optimizer finds itself is not the config's, which it never reads.
        rate = optimizer.label if optimizer.rate_free else f"lr {self.train.learning_rate:g}"
        plain = "all weights" if self.lora is None else "plain"
        label = {"auto": f"auto, from {rate}", "plain": f"{plain}, {rate}"}.get(
            kind, f"{leap.method}, {rate}"
        )
        more: dict[str, Any] = {}
        if kind == "auto":
            more = {"auto": True, "window": leap.every or DEFAULT_WINDOW, "dials": leap.dials()}
        elif kind == "leap":
            alpha = self.alpha()
            more["leap"] = LeapSettings(
                method=leap.method,
                horizon=self.horizon(),
                params=self.leap.params or {},
                alphas=tags_by_name(leap.method).alphas if alpha is None else (alpha,),
                prompts=leap.prompts or 128,
                at=self.leap_steps(),
                search=alpha is None,
            )
        return ArmSettings(
            name="run",
            kind=kind,
            label=label,
            task=self.task,
            model=self.model,
            train=self.train,
            lora=self.lora,
            save=True,
            eval_at=self.evaluations(),
            eval_prompts=self.eval.prompts,
            **more,
        )

    def derived(self) -> dict[str, Any]:
        """What follows from the config under its engine, for `--print-config`.

        Raises:
            InputError: the task is unknown.
        """
        return engines.get(self.engine).derived(self)

    def as_dict(self) -> dict[str, Any]:
        """The config as JSON and YAML hold it; `RunConfig(**config.as_dict())` is the same config."""
        value = self.model_dump(mode="json")
        for key in LIFTED:
            del value["train"][key]
        return value

    def as_yaml(self) -> str:
        """The config with every key, as `config_file.load` reads it."""
        text: str = yaml.dump(self.as_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        return text

    def differences(self, other: RunConfig) -> list[str]:
        """Dotted keys in which two configs train something different."""
        mine, theirs = dict(dotted(self.as_dict())), dict(dotted(other.as_dict()))
        # A section that one of them has not (`lora: null`) is a difference in itself.
        every = dict.fromkeys([*mine, *theirs])
        if (self.lora is None) != (other.lora is None):
            every = {k: None for k in every if not k.startswith("lora.")}
        return [k for k in every if k not in FREE and mine.get(k, _NONE) != theirs.get(k, _NONE)]


_NONE = object()
SECTIONS = ("train", "lora", "leap", "leap.controller", "eval", "verl")


def known_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> pydantic field of every key a config may hold."""
    keys: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        inner = field.annotation
        if inner == LoraSettings | None:
            inner = LoraSettings
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys |= known_keys(inner, f"{prefix}{name}.")
        elif f"{prefix}{name}" not in [f"train.{key}" for key in LIFTED]:
            keys[f"{prefix}{name}"] = field
    return keys
