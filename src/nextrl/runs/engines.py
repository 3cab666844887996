"""What can train a run, by the name in its config: what each refuses, and what follows from a config under it.

How each is run on a terminal, and how it tells what it did there, is in `nextrl.cli.run`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nextrl.engines import algorithms, named_optimizers
from nextrl.engines.settings import LoraSettings
from nextrl.engines.verl import job
from nextrl.engines.verl.config import VerlSettings
from nextrl.registry import Registry
from nextrl.runs.config_sections import EvalSection
from nextrl.runs.layout import FINAL, TRAJECTORY
from nextrl.tasks import base

if TYPE_CHECKING:
    from nextrl.runs.config import RunConfig

DEFAULT = "trl"
_ACTOR = "actor_rollout_ref.actor"


@dataclass(frozen=True)
class Engine:
    """One engine.

    Attributes:
        name: as written in `RunConfig.engine`.
        check: raises a ValueError where a config holds what this engine cannot do.
        derived: what follows from a config, as JSON holds it; reads no model and needs no engine.
    """

    name: str
    check: Callable[[RunConfig], None]
    derived: Callable[[RunConfig], dict[str, Any]]


_ENGINES: Registry[Engine] = Registry("engine")
names, get = _ENGINES.names, _ENGINES.get


def register(engine: Engine) -> None:
    """Make an engine known under its name."""
    _ENGINES.add(engine.name, engine)


def _check_trl(config: RunConfig) -> None:
    served = algorithms.get(config.algorithm).steps_per_generation
    if config.train.save_every % served:
        raise ValueError(
            f"train.save_every must be a multiple of {served}: {config.algorithm} takes {served} steps on each batch "
            "of rollouts, and a checkpoint between them could not be gone on from"
        )


def _derived_trl(config: RunConfig) -> dict[str, Any]:
    task, arm, train = base.get(config.task), config.arm(), config.train
    leap: dict[str, Any] = {"method": config.leap.method}
    if arm.leap:
        leap |= {
            "at": list(arm.leap.at),
            "horizon": arm.leap.horizon,
            "alphas": list(arm.leap.alphas),
            "prompts": arm.leap.prompts,
        }
    elif arm.auto:
        leap["every"] = arm.window
    return {
        "completions_per_step": train.completions_per_step,
        "completions": train.completions_per_step * train.steps,
        "max_completion_length": train.max_completion_length or task.max_completion_length,
        "checkpoints": [*range(train.save_every, train.steps, train.save_every), train.steps],
        "evaluations": [0, *arm.eval_at],
        "leap": leap,
        "trajectory": str(config.output_dir / TRAJECTORY),
        "final": str(config.output_dir / FINAL),
    }


def _check_verl(config: RunConfig) -> None:
    # Of steps on each batch it is told to take one, so that every algorithm can be saved at every step.
    if config.lora is None:
        raise ValueError("lora: null is for engine trl; engine verl trains an adapter")
    if config.leap.method not in ("auto", "none"):
        raise ValueError("leap.method: engine verl takes auto or none (docs/verl.md)")
    for key, asked, instead in (
        ("train.optimizer", config.train.optimizer != named_optimizers.DEFAULT, f"{_ACTOR}.optim.optimizer"),
        ("train.share_prefixes", config.train.share_prefixes, f"{_ACTOR}.use_prefix_grouper"),
        ("eval", config.eval != EvalSection(), "trainer.test_freq"),
    ):
        if asked:
            raise ValueError(
                f"{key}: engine verl does not use it; leave it out, or set {instead} in verl.overrides"
            )


def _derived_verl(config: RunConfig) -> dict[str, Any]:
    return {"command": job.plan(verl_settings(config), config.output_dir)}


def verl_settings(config: RunConfig) -> VerlSettings:
    """The run as `nextrl.engines.verl.job` takes it."""
    return VerlSettings(
        model=config.model,
        task=config.task,
        algorithm=config.algorithm,
        dials=config.leap.dials() if config.leap.method == "auto" else None,
        train=config.train,
        lora=config.lora or LoraSettings(),
        loggers=config.report_to,
        **config.verl.model_dump(),
    )


register(Engine("trl", _check_trl, _derived_trl))
register(Engine("verl", _check_verl, _derived_verl))
