"""What an extrapolator is: fit on a trajectory up to its last checkpoint T, then say where the weights go.

Three kinds of answer, and a method picks one: a combination of checkpoints (only coefficients are computed),
a new direction (a low-rank matrix a module), or a step inside the factors (the adapter stays a plain rank-r
adapter).
`alpha` scales a prediction: alpha = 1 is "h steps further by this method's own reckoning", so alphas compare
across methods. This file holds the interface, the registry and the checks every method shares; it knows no
method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from nextrl.errors import InputError
from nextrl.trajectory.combinations import combine, known_steps, moves, wide
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.trajectory import Trajectory

ENTRY_POINT_GROUP = "nextrl.extrapolators"

# A leap of more than 64 horizons, or of more than 8 backwards, is a typing mistake: the widest search of the
# lab # went to 16, and -1 already undoes the last window.
MAX_ALPHA = 64.0
MIN_ALPHA = -8.0

Coefficients = Callable[[float], Tensor]
"""alpha -> (T,) float64, one coefficient a checkpoint of the trajectory, see `CombinationOfCheckpoints`."""


@runtime_checkable
class Prediction(Protocol):
    """What `fit` returns: for any alpha, the change from the weights at T."""

    def delta(self, module: str, alpha: float = 1.0) -> LowRank:
        """`W_predicted - W_T` of one module, (m, n)."""
        ...


class Extrapolator(Protocol):
    """A method. One file each in this package; `register` makes it known by name."""

    name: ClassVar[str]
    reference: ClassVar[str]  # where the formula comes from: a paper, its section
    summary: ClassVar[str]  # one line for tables and --help
    averages: ClassVar[bool]  # True: pulls back to the middle of the past; a control, never a leap

    def min_checkpoints(self, horizon: int, spacing: int) -> int:
        """Checkpoints needed at an even `spacing`, the start (step 0) counted where it is known."""
        ...

    def fit(self, traj: Trajectory, horizon: int, *, seed: int = 0) -> Prediction:
        """Fit on every checkpoint of `traj` (its last is T) for `horizon` steps ahead. Deterministic in
        `seed`.

        Raises:
            InputError: too few checkpoints for the horizon, or an adapter that does not move.
        """
        ...


# ---------------------------------------------------------------------------------------------- predictions


@dataclass(frozen=True)
class CombinationOfCheckpoints:
    """`W_T + sum_t c_t (W_t - W_0)`: nothing is stored but coefficients over the checkpoints on disk.

    Written over displacements from the start, so that the start itself takes part: a method that uses only
    differences of checkpoints has coefficients that sum to zero and works where `W_0` is not known.

    Attributes:
        traj: the trajectory that the coefficients refer to, in the order of `traj.steps`.
        shared: alpha -> (T,) float64, for all modules; None where `by_module` has one for each.
        by_module: the same per module.
    """

    traj: Trajectory
    shared: Coefficients | None = None
    by_module: Mapping[str, Coefficients] = field(default_factory=dict)

    def coefficients(self, module: str, alpha: float = 1.0) -> Tensor:
        """(T,) float64: what each `W_t - W_0` contributes to `W_predicted - W_T`."""
        rule = self.shared if self.shared is not None else self.by_module[module]
        return rule(check_alpha(alpha)).double()

    def delta(self, module: str, alpha: float = 1.0) -> LowRank:
        """`W_predicted - W_T`, (m, n), stored with the columns of every checkpoint that takes part."""
        return combine(self.traj, module, self.coefficients(module, alpha))


@dataclass(frozen=True)
class NewDirection:
    """`W_T + alpha D`, one low-rank matrix D a module, already scaled so that alpha = 1 is `horizon`
    steps."""

    directions: Mapping[str, LowRank]

    def delta(self, module: str, alpha: float = 1.0) -> LowRank:
        """`alpha * D` of one module."""
        return self.directions[module] * check_alpha(alpha)


FactorRule = Callable[[str, float], tuple[Tensor, Tensor]]
"""(module, alpha) -> (A (r, n), B (m, r)): the factors after the leap."""


@dataclass(frozen=True)
class InsideFactors:
    """A leap of A and B themselves: the result is a rank-r adapter in the same gauge, exactly."""

    traj: Trajectory
    rule: FactorRule

    def factors(self, module: str, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
        """The predicted factors (A (r, n), B (m, r)), float32 or wider."""
        return self.rule(module, check_alpha(alpha))

    def delta(self, module: str, alpha: float = 1.0) -> LowRank:
        """`s (B' A' - B A)` without the cancellation of two nearly equal products."""
        a_new, b_new = self.factors(module, alpha)
        a_old, b_old = (wide(f) for f in self.traj.factors(self.traj.steps[-1], module))
        scale = self.traj.scaling(module)
        left = torch.cat([(b_new - b_old) * scale, b_old * scale], -1)
        right = torch.cat([a_new, a_new - a_old], 0).mT
        return LowRank(left, right)


# --------------------------------------------------------------------------------------------------- checks


def check_alpha(alpha: float) -> float:
    """`alpha` as a float.

    Raises:
        InputError: not a finite number, or outside [MIN_ALPHA, MAX_ALPHA].
    """
    value = float(alpha)
    if not math.isfinite(value) or not MIN_ALPHA <= value <= MAX_ALPHA:
        raise InputError(f"alpha must be a number from {MIN_ALPHA:g} to {MAX_ALPHA:g}, not {alpha}")
    return value


def require(method: Extrapolator, traj: Trajectory, horizon: int) -> None:
    """The checks that every `fit` begins with.

    Raises:
        InputError: horizon < 1, too few checkpoints for it (says how many are needed and which horizon would
            work), or an adapter whose last two checkpoints are the same.
    """
    if horizon < 1:
        raise InputError(f"the horizon must be at least 1 step, not {horizon}")
    known, k = known_steps(traj), traj.spacing
    reach = known[-1] - known[0]
    needed = method.min_checkpoints(horizon, k)
    if len(known) < method.min_checkpoints(1, k) or reach < (needed - 1) * k - k / 2:
        raise InputError(
            f"{method.name} needs {needed} checkpoints {k} steps apart for a horizon of {horizon}; this run "
            f"has {len(known)} (steps {known[0]} to {known[-1]}); "
            + _what_would_work(method, len(known), reach, k)
        )
    if len(known) > 1 and method.name != "none" and not moves(traj):
        raise InputError(
            f"the adapter does not move between steps {known[-2]} and {known[-1]}: "
            "there is nothing to extrapolate"
        )


def _what_would_work(method: Extrapolator, count: int, reach: int, k: int) -> str:
    """The largest horizon that `require` would accept, in words."""
    for h in range(reach // k * k, 0, -k):
        if method.min_checkpoints(h, k) <= min(count, reach // k + 1):
            return f"a horizon of {h} steps would work"
    return f"no horizon works yet: wait for {method.min_checkpoints(1, k)} checkpoints"


# ------------------------------------------------------------------------------------------------- registry

_METHODS: dict[str, type[Any]] = {}
M = TypeVar("M", bound=type)


def register(cls: M) -> M:
    """Class decorator: make a method known under its `name` (letters, digits and hyphens).

    Raises:
        ValueError: an attribute of the interface is missing, or the name is taken by another class.
    """
    missing = [a for a in ("name", "reference", "summary", "min_checkpoints", "fit") if not hasattr(cls, a)]
    if missing:
        raise ValueError(f"extrapolator {cls.__name__} lacks {', '.join(missing)}")
    if not hasattr(cls, "averages"):
        cls.averages = False  # type: ignore[attr-defined]
    name: str = cls.name  # type: ignore[attr-defined]
    taken = _METHODS.get(name)
    if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"the name {name!r} is taken by {taken.__module__}.{taken.__qualname__}")
    _METHODS[name] = cls
    return cls


def _plugins() -> dict[str, EntryPoint]:
    return {e.name: e for e in entry_points(group=ENTRY_POINT_GROUP)}


def names() -> tuple[str, ...]:
    """Every method's name: those of this package in the order of their import, then installed plugins."""
    return tuple(dict.fromkeys([*_METHODS, *_plugins()]))


def get(name: str, **params: Any) -> Extrapolator:
    """A method by name, built with its own parameters (its dataclass fields).

    Raises:
        InputError: unknown name (the message lists those known), unknown parameter, or a plugin that fails to
            load.
    """
    if name not in _METHODS and name in _plugins():
        try:
            _plugins()[name].load()
        except (ImportError, AttributeError) as error:
            raise InputError(f"the plugin for method {name!r} does not load: {error}") from error
    if name not in _METHODS:
        raise InputError(f"unknown method {name!r}; known: {', '.join(names())}")
    try:
        method: Extrapolator = _METHODS[name](**params)
    except TypeError as error:
        raise InputError(f"method {name!r}: {error}") from error
    return method


def resolve(methods: str | Sequence[str] | None) -> list[Extrapolator]:
    """Methods from names, a comma-separated string of names, or None for all."""
    if methods is None:
        return [get(n) for n in names()]
    wanted = methods.split(",") if isinstance(methods, str) else methods
    return [get(n.strip()) for n in wanted if n.strip()]
