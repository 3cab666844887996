"""What a verl run is asked for under `trainer.v1.nextrl`, and the runs that are refused.

The keys are the dials of `auto` (`ControllerConfig`), `adapt_lr` and `take_back`, which are true, and `leaps`: for runs
that leap at given steps and leave the rate alone. verl's yaml has none of them, so that hydra wants a `+` before each.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import metadata
from typing import Any

from nextrl.errors import InputError
from nextrl.judge.controller_config import ControllerConfig

WORKS = "0.9."
"""The releases of verl that are known to work begin with this; every name was read in 0.9.1."""

NAMELESS = (0, 21)
"""From this PEFT on, what an adapter holds is looked up by the names of modules. FSDP1 puts a name of its own between
them, so that verl 0.9.1 (`utils/fsdp_utils.py:collect_lora_params`) finds nothing and sends its rollout servers an
empty adapter. tests/engines/real/test_verl_flat.py calls it."""

_DIALS = tuple(dial.name for dial in fields(ControllerConfig))


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


def options_of(asked: Mapping[str, Any]) -> Options:
    """The options under `trainer.v1.nextrl`.

    Raises:
        InputError: a key is unknown, or a value is out of range.
    """
    own = ("adapt_lr", "take_back", "leaps")
    for key in asked:
        if key not in (*_DIALS, *own):
            raise InputError(f"trainer.v1.nextrl.{key}: unknown; known are {', '.join((*own, *_DIALS))}")
    try:
        leaps = {int(step): float(alpha) for step, alpha in (asked.get("leaps") or {}).items()}
    except (AttributeError, TypeError, ValueError):
        raise InputError(
            "trainer.v1.nextrl.leaps: give a step and an alpha for each leap, {6: 1.5}"
        ) from None
    if any(step < 1 for step in leaps):
        raise InputError("trainer.v1.nextrl.leaps: steps count from 1")
    for name in ("adapt_lr", "take_back"):
        if not isinstance(asked.get(name, True), bool):
            raise InputError(f"trainer.v1.nextrl.{name}: true or false, not {asked[name]!r}")
    dials = {key: asked[key] for key in _DIALS if key in asked}
    for key, value in dials.items():
        whole = isinstance(getattr(ControllerConfig, key), int)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise InputError(f"trainer.v1.nextrl.{key}: a {'whole ' * whole}number, not {value!r}")
    return Options(
        ControllerConfig(**dials), asked.get("adapt_lr", True), asked.get("take_back", True), leaps
    )


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
        InputError: it trains with Megatron or another engine than FSDP, or synchronises its rollouts in a way that was
            not tried, or has an adapter and sends them none (`check_delivery`).
    """
    model, actor = config.actor_rollout_ref.model, config.actor_rollout_ref.actor
    rank = (model.get("lora") or {}).get("rank", 0) or model.get("lora_rank", 0) or 0
    adapted = rank > 0 or model.get("lora_adapter_path") is not None
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
    merged = bool((model.get("lora") or {}).get("merge", False))
    check_delivery(actor.strategy, merged=merged or not adapted)
    if not config.trainer.get("use_v1", True):
        raise InputError("nextrl in verl needs verl's V1 trainer: set trainer.use_v1=True")
    if (config.trainer.v1.get("sync") or {}).get("parameter_sync_step", 1) != 1:
        raise InputError(
            "nextrl in verl judges a step by the batch that it was taken on: "
            "leave trainer.v1.sync.parameter_sync_step out"
        )
    rollout = config.actor_rollout_ref.rollout
    if not rollout.get("calculate_log_probs", True):
        raise InputError(
            "nextrl in verl checks by the rollouts' own log-probabilities that they follow the weights: set "
            "actor_rollout_ref.rollout.calculate_log_probs=True"
        )
