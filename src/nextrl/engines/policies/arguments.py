"""The arguments of `LeapCallback`: each is of its kind, and used by what decides, before anything is built.

One table says what kind each argument is of. Numbers may come from numpy or torch, and several of them as whatever can
be gone through once. What is left out stays None, so that what was given can be told from what was not: an option that
nothing would read is refused, since its owner believes in it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from nextrl.engines.policies.base import JudgingPolicy, LeapingPolicy
from nextrl.errors import InputError, shown
from nextrl.extrapolators.base import tags_by_name
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.guard import Guard
from nextrl.registry import did_you_mean
from nextrl.scalars import MAX_SEED, Kind, integer_from, number, several


def candidates(name: str, value: Any) -> tuple[float, ...]:
    """Alphas to search, one of which is more than staying put."""
    alphas: tuple[float, ...] = several(number)(name, value)
    if not any(alphas):
        raise InputError(f"{name} has no candidate but 0, which is staying put: name others")
    return alphas


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be True or False, not {shown(value)}")
    return bool(value)


def method(name: str, value: Any) -> str:
    """A name; whether there is a method of that name is the registry's to say."""
    if not isinstance(value, str):
        raise InputError(f"{name} must be 'auto' or an extrapolator's name, not {shown(value)}")
    return value


def mapping(name: str, value: Any) -> dict[str, Any]:
    """A method's own parameters by name; which there are is the method's to say."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{name} must be a dict of a method's own parameters by name, not {shown(value)}")
    return dict(value)


def rows(name: str, value: Any) -> Any:
    """Something that rows can come from; what they are like is seen when training begins."""
    indexed = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    if isinstance(value, str | bytes) or not (indexed or hasattr(value, "__iter__")):
        raise InputError(
            f"{name} must be rows (a list of dicts, a dataset, a stream or a dict of them), not {shown(value)}"
        )
    return value


def dials(name: str, value: Any) -> ControllerConfig:
    """The dials of `auto`, each of them a number."""
    if not isinstance(value, ControllerConfig):
        raise InputError(f"{name} must be a nextrl.ControllerConfig, not {shown(value)}")
    kinds = {"int": integer_from(1), "float": number}
    # A subclass may have dials of other kinds, which are its own affair.
    known = [f for f in fields(value) if str(f.type) in kinds]
    read = {f.name: kinds[str(f.type)](f"{name}'s {f.name}", getattr(value, f.name)) for f in known}
    return replace(value, **read)


def _members(protocol: type) -> set[str]:
    """Attributes and methods that a protocol asks for."""
    named = (name for c in protocol.__mro__ for name in (*inspect.get_annotations(c), *vars(c)))
    return {name for name in named if not name.startswith("_")}


def decider(name: str, value: Any) -> JudgingPolicy | LeapingPolicy:
    """A policy, and not its class or its name."""
    if isinstance(value, type) or not callable(getattr(value, "decide", None)):
        raise InputError(
            f"{name} must be an object with the members of JudgingPolicy or LeapingPolicy, not {shown(value)}"
        )
    kind = JudgingPolicy if getattr(value, "undoes", False) else LeapingPolicy
    if lacking := sorted(member for member in _members(kind) if not hasattr(value, member)):
        raise InputError(
            f"{name} must have the members of {kind.__name__} (nextrl.engines.policies.base); {shown(value)} lacks "
            f"{', '.join(lacking)}"
        )
    found: JudgingPolicy | LeapingPolicy = value
    return found


def trainer_itself(name: str, value: Any) -> Any:
    """A trainer of transformers', as far as it can have callbacks."""
    if isinstance(value, type) or not (hasattr(value, "callback_handler") and hasattr(value, "add_callback")):
        raise InputError(
            f"{name} must be the trainer itself (TRL's GRPOTrainer, RLOOTrainer or SFTTrainer), not {shown(value)}"
        )
    return value


def function(name: str, value: Any) -> Callable[..., None]:
    """Something that can be called."""
    if not callable(value):
        raise InputError(f"{name} must be a function, not {shown(value)}")
    found: Callable[..., None] = value
    return found


def _or_none(kind: Kind) -> Kind:
    return lambda name, value: None if value is None else kind(name, value)


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "every": _or_none(integer_from(1)),
        "method": method,
        "at": _or_none(several(integer_from(1))),
        "horizon": _or_none(integer_from(1)),
        "params": _or_none(mapping),
        "alpha": _or_none(number),
        "alphas": _or_none(candidates),
        "validation": _or_none(rows),
        "prompts": _or_none(integer_from(2)),
        "config": _or_none(dials),
        "policy": _or_none(decider),
        "adapt_lr": flag,
        "leaps": flag,
        "rollback": flag,
        "longest": _or_none(number),
        "truncated": _or_none(number),
        "divergence": _or_none(number),
        "keep": _or_none(integer_from(2)),
        "seed": integer_from(0, MAX_SEED),
        "trainer": _or_none(trainer_itself),
        "on_leap": _or_none(function),
    }
)
"""Argument -> its kind; None where it may be left out."""


def refuse_unknown(given: Iterable[str]) -> None:
    """Refuse names that are none of `LeapCallback`'s arguments; a dial of `auto` is told where it goes.

    Raises:
        InputError: there is one; the message offers the nearest name.
    """
    for name in given:
        if name in KINDS:
            continue
        if name in {dial.name for dial in fields(ControllerConfig)}:
            raise InputError(f"{name} is a dial of auto: give config=nextrl.ControllerConfig({name}=...)")
        near = did_you_mean(name, KINDS, f"choose {', '.join(KINDS)}")
        raise InputError(f"LeapCallback has no argument {name}; {near}")


BOUNDS = ("longest", "truncated", "divergence")
"""What a leap that is searched may not do (`Guard`)."""

_DECIDES = ("every", "method", "at", "horizon", "params", "alpha", "alphas", "prompts", "config")
_OF_NAMED = ("at", "horizon", "params", "alpha", "alphas", "prompts", "rollback", *BOUNDS, "keep")
_OF_SEARCH = ("prompts", *BOUNDS)
_LEFT_OUT = {"method": "auto", "rollback": True}  # what an argument is where nobody gave it, if not None


@dataclass(frozen=True)
class Arguments:
    """What `LeapCallback` was given, whose arguments these are; None is what was left out."""

    every: int | None
    method: str
    at: tuple[int, ...] | None
    horizon: int | None
    params: Mapping[str, Any] | None
    alpha: float | None
    alphas: tuple[float, ...] | None
    validation: Any
    prompts: int | None
    config: ControllerConfig | None
    policy: JudgingPolicy | LeapingPolicy | None
    adapt_lr: bool
    leaps: bool
    rollback: bool
    longest: float | None
    truncated: float | None
    divergence: float | None
    keep: int | None
    seed: int
    trainer: Any
    on_leap: Callable[[int, Any, Any], None] | None

    @classmethod
    def of(cls, **given: Any) -> Arguments:
        """Read what was given.

        Raises:
            InputError: an argument is not of its kind, is used by nothing, or contradicts another.
        """
        found = cls(**{name: KINDS[name](name, value) for name, value in given.items()})
        found._refuse_unused()
        return found

    @property
    def guard(self) -> Guard:
        """The bounds that were given, the guard's own otherwise.

        Raises:
            InputError: one is out of range.
        """
        return Guard(**{name: bound for name in BOUNDS if (bound := getattr(self, name)) is not None})

    @property
    def unseen(self) -> bool:
        """Whether a named method takes its alpha without a search."""
        own = self.alphas is None and tags_by_name(self.method).alpha is not None
        return self.alpha is not None or own

    def _refuse_unused(self) -> None:
        if self.policy is not None:
            if unused := self._given(*_DECIDES):
                raise InputError(f"policy= decides in place of {unused}: give the one or the other")
            return
        if self.on_leap is not None:
            raise InputError(
                f"method '{self.method}' does not use on_leap=; only a policy= that waits for checkpoints does: leave "
                "it out"
            )
        if self.method == "auto":
            if unused := self._given(*_OF_NAMED):
                raise InputError(
                    f"auto does not use {unused}; only a named method does: give method= a name, or leave out what is "
                    "not used"
                )
            return
        if self.config is not None:
            raise InputError(f"config= holds the dials of auto, which method '{self.method}' does not have")
        if self.alpha is not None and self.alphas is not None:
            raise InputError("alpha= is taken unseen, and alphas= are searched: give the one or the other")
        if self.unseen and (unused := self._given(*_OF_SEARCH)):
            raise InputError(
                f"method '{self.method}' takes its alpha unseen and does not use {unused}; only a search does: search "
                "with alphas=, or leave out what is not used"
            )

    def _given(self, *names: str) -> str:
        """Those of some arguments that somebody gave, as a message names them."""
        return ", ".join(f"{name}=" for name in names if getattr(self, name) != _LEFT_OUT.get(name))
