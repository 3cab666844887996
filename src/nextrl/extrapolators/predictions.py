"""What a fitted extrapolator returns: for any alpha, how far the weights of each module move from W_T.

There are three kinds, and a method picks one: a combination of checkpoints (only coefficients are computed),
a new direction (one low-rank matrix per module), or a step inside the factors (the adapter stays a plain
rank-r adapter). `alpha` scales a prediction: alpha = 1 means "h steps further by this method's own
reckoning", so that alphas compare across methods, and alpha = 0 stays at W_T, whatever a method's formula would say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from nextrl.errors import InputError
from nextrl.trajectory.combinations import counts_from_start, weighted_displacement, wide
from nextrl.trajectory.decomposed import decomposed
from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.trajectory import FULL, Trajectory

# A leap of more than 64 horizons, or of more than 8 backwards, is a typing mistake: the widest search that was ever
# run went to 16, and -1 already undoes the last window.
MAX_ALPHA = 64.0
MIN_ALPHA = -8.0

Coefficients = Callable[[float], Tensor]
"""alpha -> (T,) float64, one coefficient per checkpoint of the trajectory, see `CombinationOfCheckpoints`."""

FactorRule = Callable[[str, float], tuple[Tensor, Tensor]]
"""(module, alpha) -> (A (r, n), B (m, r)): the factors after the leap."""


def in_proportion(direction: Tensor) -> Coefficients:
    """alpha -> alpha times these coefficients; no function inside another, so that a prediction can be pickled.

    Args:
        direction: (T,) float64, the coefficients at alpha = 1.
    """
    return partial(torch.mul, direction)


@runtime_checkable
class Prediction(Protocol):
    """What `fit` returns: for any alpha, the change from the weights at T."""

    def delta(self, module: str, alpha: float = 1.0) -> LowRank:
        """`W_predicted - W_T` of one module, (m, n)."""


@dataclass(frozen=True)
class CombinationOfCheckpoints:
    """`W_T + sum_t c_t (W_t - W_0)`: nothing is stored but one coefficient for each checkpoint on disk.

    Written over displacements from the start, so that the start itself takes part: a method that uses only
    differences of checkpoints has coefficients that sum to zero, and works where `W_0` is not known.

    Attributes:
        traj: the trajectory that the coefficients refer to, in the order of `traj.steps`.
        shared: alpha -> (T,) float64, for all modules; None where `by_module` has one for each.
        by_module: the same, per module.

    Raises:
        InputError: `W_0` takes part and is not known.
    """

    traj: Trajectory
    shared: Coefficients | None = None
    by_module: Mapping[str, Coefficients] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.traj.knows_start:
            return
        for module in self.traj.modules if self.shared is None else self.traj.modules[:1]:
            if counts_from_start(self.coefficients(module)):
                self.traj.base_index(module)  # refuses: here, and not where the leap is written or scored

    def coefficients(self, module: str, alpha: float = 1.0) -> Tensor:
        """(T,) float64: what each `W_t - W_0` contributes to `W_predicted - W_T`; nothing at alpha = 0."""
        rule = self.shared if self.shared is not None else self.by_module[module]
        found = rule(check_alpha(alpha)).double()
        # A fitted path (`relex`) passes W_T by, also at T itself: its rule is not zero at alpha = 0.
        return found if alpha else torch.zeros_like(found)

    def delta(self, module: str, alpha: float = 1.0) -> LowRank:
        """`W_predicted - W_T`, (m, n), stored with the columns of every checkpoint that takes part."""
        return weighted_displacement(self.traj, module, self.coefficients(module, alpha))


@dataclass(frozen=True)
class NewDirection:
    """`W_T + alpha D`, with one low-rank matrix D per module, already scaled so that alpha = 1 is `horizon` steps."""

    directions: Mapping[str, LowRank]

    def delta(self, module: str, alpha: float = 1.0) -> LowRank:
        """`alpha * D` of one module."""
        return self.directions[module] * check_alpha(alpha)


@dataclass(frozen=True)
class InsideFactors:
    """A leap of A and B themselves: the result is a rank-r adapter in the same gauge, exactly.

    Raises:
        InputError: each checkpoint was decomposed by itself (the run is of full weights, or its adapters were taken out
            of whole models), so that the factors of two have nothing to do with each other.
    """

    traj: Trajectory
    rule: FactorRule

    def __post_init__(self) -> None:
        if self.traj.layout == FULL:
            raise InputError(
                "a run of full weights has no factors to step inside (each checkpoint was decomposed by itself): take "
                'a method on differences of weights, as in method="secant"'
            )
        if decomposed(self.traj):
            named = f"{self.traj.source}: " if self.traj.source else ""
            raise InputError(
                f"{named}A has orthogonal rows and B orthogonal columns at each checkpoint, as adapters have that were "
                "taken out of whole models one by one (mergekit-extract-lora): their factors have no path; "
                'take a method on differences of weights: --method secant, in Python method="secant"'
            )

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


def check_alpha(alpha: float) -> float:
    """`alpha` as a float.

    Raises:
        InputError: not a finite number, or outside [MIN_ALPHA, MAX_ALPHA].
    """
    value = float(alpha)
    if not math.isfinite(value) or not MIN_ALPHA <= value <= MAX_ALPHA:
        raise InputError(f"alpha must be a number from {MIN_ALPHA:g} to {MAX_ALPHA:g}, not {alpha}")
    return value
