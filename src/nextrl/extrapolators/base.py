"""What an extrapolator is, and where it is found: the interface, its tags, the checks all share, the registry.

An extrapolator is fitted on a trajectory up to its last checkpoint T, and what `fit` returns
(`predictions.py`) says where the weights go. This file knows no method.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Protocol, TypeVar

from nextrl.errors import InputError, TooShort, shown
from nextrl.extrapolators.alphas import WIDE_ALPHAS
from nextrl.extrapolators.parameters import check_ranges, checked, from_text
from nextrl.extrapolators.predictions import Prediction
from nextrl.registry import Registry
from nextrl.trajectory.combinations import known_steps, moves
from nextrl.trajectory.trajectory import Trajectory

ENTRY_POINT_GROUP = "nextrl.extrapolators"


@dataclass(frozen=True)
class Tags:
    """What a caller has to know of a method besides its numbers.

    Attributes:
        averages: it pulls back to the middle of the past: a control in every table, and never a leap.
        trains: it trains a network, so a fit takes seconds to minutes; a backtest asks it at few origins.
        needs_accuracy: it learns from the run's accuracy, and takes what its caller measured as the parameter
            `accuracy` (step -> value).
        stays: it predicts that nothing moves, so a run that does not move is no error for it.
        slow: a fit takes minutes; a backtest asks it only where it is named.
        alphas: the step lengths that a search tries.
        alpha: the step length that is taken unseen where none is given; None: 1, and a trainer searches.
        at: the steps at which it leaps in a run where none are given; None: they have to be given.
    """

    averages: bool = False
    trains: bool = False
    needs_accuracy: bool = False
    stays: bool = False
    slow: bool = False
    alphas: tuple[float, ...] = WIDE_ALPHAS
    alpha: float | None = None
    at: tuple[int, ...] | None = None


class Extrapolator(Protocol):
    """A method. One file each in this package; `register` makes it known by name."""

    name: ClassVar[str]
    reference: ClassVar[str]  # where the formula comes from: a paper, its section
    summary: ClassVar[str]  # one line for tables and --help
    tags: ClassVar[Tags]  # may be left out: `register` adds the defaults

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """Checkpoints needed at an even `spacing`, the start (step 0) counted where it is known."""

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Prediction:
        """Fit on every checkpoint of `traj` (its last is T) for `horizon` steps ahead. Deterministic in `seed`.

        Raises:
            InputError: too few checkpoints for the horizon, or an adapter that does not move.
        """


def tags_of(method: Extrapolator | type) -> Tags:
    """A method's tags; the defaults for a class that was never registered and has none."""
    tags: Tags = getattr(method, "tags", Tags())
    return tags


# --------------------------------------------------------------------------------------------------- checks


def require(method: Extrapolator, traj: Trajectory, horizon: int) -> None:
    """The checks that every `fit` begins with.

    Raises:
        InputError: horizon < 1, or a parameter out of its range.
        TooShort: too few checkpoints for the horizon (says how many are needed and which horizon would work), or an
            adapter whose last two checkpoints are the same.
    """
    check_ranges(method)
    if horizon < 1:
        raise InputError(f"the horizon must be at least 1 step, not {horizon}")
    known, k = known_steps(traj), traj.spacing
    reach = known[-1] - known[0]
    if needed := lacking(method, known, k, horizon):
        raise TooShort(
            f"{method.name} needs {needed} checkpoints {k} steps apart for a horizon of {horizon}; this run "
            f"has {len(known)} (steps {known[0]} to {known[-1]}); "
            + _what_would_work(method, len(known), reach, k)
        )
    if len(known) > 1 and not tags_of(method).stays and not moves(traj):
        raise TooShort(
            f"the adapter does not move between steps {known[-2]} and {known[-1]}: "
            "there is nothing to extrapolate"
        )


def lacking(method: Extrapolator, known: Sequence[int], spacing: int, horizon: int) -> int:
    """How many checkpoints the method needs, where those known are too few for the horizon; 0 where they are enough.

    Args:
        method: which is to be fitted.
        known: steps of the checkpoints, ascending.
        spacing: their most common distance.
        horizon: steps ahead.
    """
    needed = method.min_checkpoints(horizon, spacing)
    reach = known[-1] - known[0]
    few = len(known) < method.min_checkpoints(1, spacing) or reach < (needed - 1) * spacing - spacing / 2
    return max(needed, 1) if few else 0


def spacings_in(horizon: int, spacing: int) -> int:
    """Checkpoint spacings in a horizon, rounded up: so many checkpoints before T lies `W_{T-h}`.

    Args:
        horizon: h, in steps.
        spacing: steps from one checkpoint to the next.
    """
    return -(-horizon // spacing)


def _what_would_work(method: Extrapolator, count: int, reach: int, k: int) -> str:
    """The largest horizon that `require` would accept, in words."""
    for h in range(reach // k * k, 0, -k):
        if method.min_checkpoints(h, k) <= min(count, reach // k + 1):
            return f"a horizon of {h} steps would work"
    return f"no horizon works yet: wait for {method.min_checkpoints(1, k)} checkpoints"


# ------------------------------------------------------------------------------------------------- registry

METHODS: Registry[type[Any]] = Registry("method")
M = TypeVar("M", bound=type)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")


def register(cls: M) -> M:
    """Class decorator: make a method known under its `name` (letters, digits and hyphens).

    Raises:
        ValueError: an attribute of the interface is missing, `tags` are no `Tags`, or the name is of other characters
            or taken by another class.
    """
    missing = [a for a in ("name", "reference", "summary", "min_checkpoints", "fit") if not hasattr(cls, a)]
    if missing:
        raise ValueError(f"extrapolator {cls.__name__} lacks {', '.join(missing)}")
    tags = tags_of(cls)
    if not isinstance(tags, Tags):
        raise ValueError(f"extrapolator {cls.__name__}: tags must be nextrl.extrapolators.Tags, not {tags!r}")
    cls.tags = tags  # type: ignore[attr-defined]
    name: str = cls.name  # type: ignore[attr-defined]
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        # A list of names is written with commas, and a name stands in commands and in files.
        raise ValueError(
            f"extrapolator {cls.__name__}: its name must be letters, digits and hyphens, not {shown(name)}"
        )
    taken = METHODS.get(name) if name in METHODS else cls
    if (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"the name {name!r} is taken by {taken.__module__}.{taken.__qualname__}")
    METHODS.add(name, cls)
    return cls


def _plugins() -> dict[str, EntryPoint]:
    return {e.name: e for e in entry_points(group=ENTRY_POINT_GROUP)}


def names() -> tuple[str, ...]:
    """Every method's name: those of this package in the order of their import, then installed plugins."""
    return tuple(dict.fromkeys([*METHODS, *_plugins()]))


def get(name: str, **params: Any) -> Extrapolator:
    """A method by name, built with its own parameters (its dataclass fields).

    Raises:
        InputError: unknown name (the message offers the nearest and lists all), unknown parameter (the message lists
            those that there are), one of another kind or out of its range, or a plugin that fails to load.
    """
    method = class_of(name)
    try:
        built: Extrapolator = method(**checked(name, method, params))
    # A parameter that has no default, and whatever a stranger's class makes of its own.
    except TypeError as error:
        raise InputError(f"method {name!r}: {error}") from error
    return built


def params_from_text(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """A method's parameters from `key=value` texts, each read by the kind of its parameter.

    Raises:
        InputError: as `get`, and for a text that is no `key=value`.
    """
    return from_text(name, class_of(name), texts)


def class_of(name: str) -> type[Any]:
    """The class of a method, its plugin loaded where it is one's.

    Raises:
        InputError: unknown name, or a plugin that fails to load.
    """
    if not isinstance(name, str):
        raise InputError(f"a method is named by text, one of {', '.join(names())}, not {shown(name)}")
    if name not in METHODS and name in _plugins():
        try:
            _plugins()[name].load()
        except (ImportError, AttributeError) as error:
            raise InputError(f"the plugin for method {name!r} does not load: {error}") from error
    if name not in METHODS:
        raise METHODS.unknown(name, known=names())
    return METHODS.get(name)


def tags_by_name(name: str) -> Tags:
    """The tags of a method by name; the defaults for a name that is none (`auto`)."""
    return tags_of(class_of(name)) if name in names() else Tags()


def resolve(methods: str | Sequence[str] | None) -> list[Extrapolator]:
    """Methods from names, a comma-separated string of names, or None for all."""
    if methods is None:
        return [get(n) for n in names()]
    wanted = methods.split(",") if isinstance(methods, str) else methods
    return [get(n.strip()) for n in wanted if n.strip()]
