"""What a verl run is asked for under `trainer.v1.nextrl`, and the runs that are refused.

The keys are the dials of `auto` (`ControllerConfig`), `adapt_lr` and `take_back`, which are true, and `leaps`: for runs
that leap at given steps and leave the rate alone. verl's yaml has none of them, so that hydra wants a `+` before each.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from importlib import metadata
from typing import Any

from nextrl.engines.optimizers import HOLDS_WEIGHTS
from nextrl.errors import InputError
from nextrl.judge.controller_config import ControllerConfig

WORKS = "0.9."
"""The releases of verl that are known to work begin with this; every name was read in 0.9.1."""

NAMELESS = (0, 21)
"""From this PEFT on, what an adapter holds is looked up by the names of modules. FSDP1 puts a name of its own between
them, so that verl 0.9.1 (`utils/fsdp_utils.py:collect_lora_params`) finds nothing and sends its rollout servers an
empty adapter. tests/engines/real/test_verl_flat.py calls it."""

LEAST_SHARE = 0.8
"""The least `top_p` at which it was tried that stale rollouts are told from others."""

_DIALS = tuple(dial.name for dial in fields(ControllerConfig))
_OWN = ("adapt_lr", "take_back", "leaps")


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
        dials: of `auto`.
        adapt_lr: whether the learning rate may be changed.
        take_back: whether a step or a window may be taken back.
        leaps: step -> alpha, in steps since the leap before; with any, nothing else is decided.
    """

    dials: ControllerConfig
    adapt_lr: bool = True
    take_back: bool = True
    leaps: Mapping[int, float] = field(default_factory=dict)


def options_of(asked: Any) -> Options:
    """The options under `trainer.v1.nextrl`.

    Args:
        asked: the keys there; None where there are none.

    Raises:
        InputError: it is something else than keys, a key is unknown, or a value is out of range.
    """
    if asked is None:
        return Options(ControllerConfig())
    if not isinstance(asked, Mapping):
        raise InputError(f"trainer.v1.nextrl: give keys (+trainer.v1.nextrl.every=10), not {asked!r}")
    for key in asked:
        if key not in (*_OWN, *_DIALS):
            raise InputError(f"trainer.v1.nextrl.{key}: unknown; known are {', '.join((*_OWN, *_DIALS))}")
    for name in ("adapt_lr", "take_back"):
        if not isinstance(asked.get(name, True), bool):
            raise InputError(f"trainer.v1.nextrl.{name}: true or false, not {asked[name]!r}")
    dials = {key: asked[key] for key in _DIALS if key in asked}
    for key, value in dials.items():
        integer = isinstance(getattr(ControllerConfig, key), int)
        if isinstance(value, bool) or not isinstance(value, int if integer else int | float):
            raise InputError(f"trainer.v1.nextrl.{key}: a {'whole ' * integer}number, not {value!r}")
    leaps, take_back = _leaps(asked.get("leaps")), asked.get("take_back", True)
    for name in (*dials, *(() if take_back else ("take_back",))) if leaps else ():
        raise InputError(
            f"trainer.v1.nextrl.{name}: of no use beside leaps, which are made where they were asked for and leave all "
            "else alone: leave it out"
        )
    return Options(ControllerConfig(**dials), asked.get("adapt_lr", True), take_back, leaps)


def _leaps(asked: Any) -> dict[int, float]:
    """Step -> alpha.

    Raises:
        InputError: they are not that.
    """
    try:
        items = [] if asked is None else list(asked.items())
        if any(isinstance(part, bool) for item in items for part in item):
            raise TypeError
        if any(int(step) != float(step) for step, _ in items):
            raise ValueError
        leaps = {int(step): float(alpha) for step, alpha in items}
    except (AttributeError, TypeError, ValueError):
        raise InputError(
            "trainer.v1.nextrl.leaps: give a step and an alpha for each leap, {6: 1.5}"
        ) from None
    if any(step < 1 for step in leaps):
        raise InputError("trainer.v1.nextrl.leaps: steps count from 1")
    for step, alpha in leaps.items():
        # -1 leads back to where the way began, and no way leads further back.
        if not -1.0 <= alpha < math.inf:
            raise InputError(
                f"trainer.v1.nextrl.leaps: alpha of step {step} is {alpha}: give a number, at least -1"
            )
    return leaps


def check(config: Any, verl: str) -> Options:
    """Refuse whatever of a run can be refused by its words alone.

    Args:
        config: verl's.
        verl: its version.

    Returns:
        What was asked for.

    Raises:
        InputError: see `check_versions`, `check_run`, `options_of`; or the run comes to none of the leaps.
    """
    check_versions(verl)
    check_run(config)
    options = options_of(config.trainer.v1.get("nextrl"))
    steps = config.trainer.get("total_training_steps")
    if options.leaps and steps is not None:
        refuse_never(options.leaps, 0, steps)
    return options


def refuse_never(leaps: Iterable[int], begins: int, ends: int) -> None:
    """See to it that a run from step `begins` to step `ends` comes to one of the steps to leap at.

    Raises:
        InputError: it comes to none.
    """
    if not any(begins < step <= ends for step in leaps):
        named = ", ".join(map(str, sorted(leaps)))
        raise InputError(
            f"trainer.v1.nextrl.leaps: this run goes from step {begins} to {ends}, and never comes to step {named}"
        )


def comparable(rollout: Any) -> bool:
    """Whether the log-probabilities of rollouts say which weights sampled them.

    vLLM reports those of the distribution that is sampled from: cut off by `top_k` they may lie anywhere above the
    policy's own, cut off by `top_p` at most -log top_p above (`delivery.Delivery`).

    Args:
        rollout: verl's `actor_rollout_ref.rollout`.
    """
    most, share = rollout.get("top_k", -1), rollout.get("top_p", 1.0)
    return (most is None or most <= 0) and (share is None or share >= LEAST_SHARE)


def check_versions(verl: str) -> None:
    """See that this verl is one that was read, and that it can load.

    Args:
        verl: its version.

    Raises:
        InputError: it is another release, or TRL is installed beside it.
    """
    if not verl.startswith(WORKS):
        raise InputError(f"nextrl works in verl {WORKS}x, and this is verl {verl}: install verl==0.9.1")
    if not _sees_trl():
        return
    try:
        trl = metadata.version("trl")
    except metadata.PackageNotFoundError:
        return
    if int(trl.split(".")[0]) >= 1:
        raise InputError(
            f"TRL {trl} is installed beside verl {verl}, which imports a class that TRL 1.0 dropped and stops: "
            "pip uninstall trl, or give verl an environment of its own"
        )


def check_delivery(strategy: str, *, merged: bool = False) -> None:
    """See that verl sends the adapter, and not an empty one, to its rollout servers.

    Args:
        strategy: how verl shards the actor.
        merged: whether it sends whole weights: an adapter merged into them, or all that it trains.

    Raises:
        InputError: under FSDP1 this PEFT finds no adapter.
    """
    if strategy != "fsdp" or merged:
        return
    peft = metadata.version("peft")
    if tuple(int(part) for part in peft.split(".")[:2]) >= NAMELESS:
        raise InputError(
            f"verl 0.9.1 under FSDP1 sends its rollout servers an empty adapter with PEFT {peft}: set "
            "actor_rollout_ref.actor.strategy=fsdp2, or pip install 'peft<0.21'"
        )


def _sees_trl() -> bool:
    """Whether verl takes TRL for installed (models/transformers/monkey_patch.py asks before it imports)."""
    try:
        from verl.utils.import_utils import is_trl_available
    except ImportError:  # of what verl needs itself
        return importlib.util.find_spec("trl") is not None
    return bool(is_trl_available())


def check_run(config: Any) -> None:
    """See that a verl run is one whose weights can be moved in place.

    Args:
        config: verl's.

    Raises:
        InputError: another trainer than verl's V1 would run, or it trains with Megatron or another engine than FSDP,
            with something else than what was meant (an adapter without a rank), with an optimizer that keeps weights
            of its own, or without rewards; or synchronises its rollouts in a way that was not tried, or has an adapter
            and sends them none (`check_delivery`).
    """
    _check_trainer(config)
    _check_sharding(config)
    check_model(config)
    _check_optimizer(config.actor_rollout_ref.actor.optim)
    _check_what_judges(config)


def _check_trainer(config: Any) -> None:
    """See that a trainer runs that reads `trainer.v1.trainer_mode`."""
    if not config.trainer.get("use_v1", True):  # verl/trainer/main_ppo.py:main
        raise InputError("nextrl in verl needs verl's V1 trainer: set trainer.use_v1=True")
    # Keys of the configs of experimental/fully_async_policy and experimental/one_step_off_policy, and of no other.
    if config.get("async_training") is not None or config.get("rollout") is not None:
        raise InputError(
            "trainer.v1.trainer_mode=nextrl is read by verl.trainer.main_ppo alone, not by verl's experimental "
            "trainers: start verl.trainer.main_ppo, or leave it out"
        )
    if (config.trainer.v1.get("sync") or {}).get("parameter_sync_step", 1) != 1:
        raise InputError(
            "nextrl in verl judges a step by the batch that it was taken on: "
            "leave trainer.v1.sync.parameter_sync_step out"
        )


def _check_sharding(config: Any) -> None:
    actor = config.actor_rollout_ref.actor
    if actor.strategy not in ("fsdp", "fsdp2"):
        raise InputError(
            f"nextrl in verl was built for FSDP, not for actor_rollout_ref.actor.strategy={actor.strategy}: "
            "set it to fsdp2"
        )
    workers = config.trainer.n_gpus_per_node * config.trainer.nnodes
    if actor.strategy == "fsdp" and actor.fsdp_config.fsdp_size == 1 and workers > 1:
        # torch/distributed/fsdp/_init_utils.py: groups of one are NO_SHARD, which reduces within the group alone
        raise InputError(
            "under FSDP1 with actor_rollout_ref.actor.fsdp_config.fsdp_size=1 no gradient is exchanged between "
            "workers, so that each trains weights of its own: set actor_rollout_ref.actor.strategy=fsdp2"
        )


def check_model(config: Any) -> None:
    """See that what is trained is what was meant, and that it is delivered.

    Whether there is an adapter under FSDP, verl asks `lora_rank` alone (workers/engine/fsdp/transformer_impl.py:162);
    `lora.rank` is Megatron's.

    Raises:
        InputError: it has an adapter's path or Megatron's rank alone, or see `check_delivery`.
    """
    model, strategy = config.actor_rollout_ref.model, config.actor_rollout_ref.actor.strategy
    lora, adapted = model.get("lora") or {}, (model.get("lora_rank") or 0) > 0
    for key, meant in (
        ("lora_adapter_path", model.get("lora_adapter_path") is not None),
        ("lora.rank", (lora.get("rank") or 0) > 0),
    ):
        if meant and not adapted:
            raise InputError(
                f"with model.{key} and no model.lora_rank verl trains all weights under FSDP: set "
                f"actor_rollout_ref.model.lora_rank as well, or leave actor_rollout_ref.model.{key} out"
            )
    check_delivery(strategy, merged=bool(lora.get("merge", False)) or not adapted)


def _check_optimizer(optim: Any) -> None:
    """See that the weights are the model's alone, and the moments can be taken back (`optimizers.check_optimizer`)."""
    kind, name = str(optim.get("optimizer_impl") or ""), str(optim.get("optimizer") or "")
    key = "actor_rollout_ref.actor.optim.optimizer"
    if kind.partition(".")[0] == "torchao":
        raise InputError(
            f"{key}_impl={kind}: its moments can neither be copied nor saved, so that nothing could be taken back: "
            f"set it to torch.optim, and {key}=AdamW"
        )
    for part, held in HOLDS_WEIGHTS.items():
        if part in name:
            raise InputError(
                f"{key}={name}: it keeps weights of its own ({held}), so that the next steps would undo what is "
                "changed: set it to AdamW"
            )


def _check_what_judges(config: Any) -> None:
    """See that the batch has what decisions are made on, and what shows that the rollouts follow."""
    distillation = config.get("distillation") or {}
    loss = distillation.get("distillation_loss") or {}
    if distillation.get("enabled", False) and not loss.get("use_task_rewards", True):
        raise InputError(
            "nextrl in verl decides by the rewards that are trained on, and distillation alone has none: set "
            "distillation.distillation_loss.use_task_rewards=True, or leave trainer.v1.trainer_mode=nextrl out"
        )
    if not config.actor_rollout_ref.rollout.get("calculate_log_probs", True):
        raise InputError(
            "nextrl in verl checks by the rollouts' own log-probabilities that they follow the weights: set "
            "actor_rollout_ref.rollout.calculate_log_probs=True"
        )
