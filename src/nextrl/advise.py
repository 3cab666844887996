"""What to do with a run now, from its checkpoints alone: leap, raise the rate, go on, average, or lower the
rate.

`features` measures, `decide` rules on the measurements only, so that the rule can be recalibrated from a
table of features without touching a checkpoint. The thresholds come from tiny runs (DESIGN section 2: 430k
and 135M parameters, two tasks, LoRA with Adam at a constant rate); nothing larger has been tried.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import torch

from nextrl import trainer_state
from nextrl.backtest import DEFAULT_BETA1, backtest
from nextrl.errors import InputError
from nextrl.extrapolators import known_steps
from nextrl.extrapolators.gram import even_grid, pooled_gram
from nextrl.persistence import adam_persistence, excess
from nextrl.scores import NONE
from nextrl.trajectory import Trajectory

Regime = Literal["signal", "mixed", "noise"]
Action = Literal["leap", "raise_lr", "continue", "average", "lower_lr"]

# Excess persistence, mean over windows. Lab, successive windows of 50 steps: .93-.97 at a rate 10x too low (a
# leap # pays), .5-.8 at 2.5x too low (it pays a little), -.1 to .1 at a tuned rate (it hurts). Single values
# scatter by .2.
SIGNAL = 0.75
MIXED = 0.25
# Below this the run oscillates: a tuned rate reads 0 +- .2, a rate 5x too high -.3 and less.
OSCILLATES = -0.3
# The reward of the last window lies so far below the best one: the lab's controller undoes a window at .08.
REWARD_DROP = 0.08
# The reward no longer rises: less than this over the last three windows (the SE of a window of 10 x 128 is
# .014).
REWARD_FLAT = 0.02
# How much to raise the rate by: `auto` follows a validated leap of alpha = 8 with x3 and one of alpha = 2
# with x2.
RAISE = {"signal": 3.0, "mixed": 2.0}
# After an overshoot: `auto` divides by three.
LOWER = 1 / 3
SCATTER = 0.2  # of a single excess value, DESIGN section 2
WINDOWS = (1, 2, 5)  # in checkpoint spacings
# Methods that advice may rest on: cheap, and none of them trains.
CANDIDATES = ("factors", "secant", "window", "linear", "ols", "relex-pinned", "dmd")


@dataclass(frozen=True)
class Window:
    """Persistence over one window length at the end of the run.

    Attributes:
        steps: window length. c: cosine of the last two windows. c0: what Adam's momentum alone gives.
        e: the excess (c - c0) / (1 - c0).
    """

    steps: int
    c: float
    c0: float
    e: float


@dataclass(frozen=True)
class AdviceFeatures:
    """Everything that `decide` looks at; plain numbers, so a table of them can be stored.

    Attributes:
        step: T. windows: persistence by window length. beta1: Adam's. beta1_known: read from optimizer.pt.
        drift_to_noise: |mean window|^2 over the windows' scatter, over the last half; unbiased, may be
            negative.
        recommended, horizon, alpha, skill: of the backtest ("none", 0, 0, 0 where the run is too short).
        backtested: whether there was a backtest. control: what "not leaping" was best there.
        reward: mean of the last window, best: of the best window, rise: over the last three windows; None if
            no
            rewards were logged.
    """

    step: int
    windows: tuple[Window, ...]
    beta1: float
    beta1_known: bool
    drift_to_noise: float
    recommended: str
    horizon: int
    alpha: float
    skill: float
    backtested: bool
    control: str
    reward: float | None = None
    best: float | None = None
    rise: float | None = None

    @property
    def excess(self) -> float:
        """Mean excess over the windows."""
        return sum(w.e for w in self.windows) / len(self.windows)


@dataclass(frozen=True)
class Advice:
    """What to do.

    Attributes:
        regime: "signal" (the path keeps its direction), "mixed", "noise" (no more than Adam's memory).
        advice: the action. confidence: "low", "medium" or "high".
        method, horizon: of the leap advised, None otherwise. factor: to multiply the learning rate by, None
            where it should stay. reasons: sentences with figures. features: the measurements.
    """

    regime: Regime
    advice: Action
    confidence: str
    reasons: tuple[str, ...]
    features: AdviceFeatures
    method: str | None = None
    horizon: int | None = None
    factor: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The object that `nextrl advise --json` prints."""
        f = self.features
        return {
            "persistence": {str(w.steps): {"c": w.c, "c0": w.c0, "excess": w.e} for w in f.windows},
            "regime": self.regime,
            "advice": self.advice,
            "confidence": self.confidence,
            "method": self.method,
            "horizon": self.horizon,
            "factor": self.factor,
            "reasons": list(self.reasons),
            "features": asdict(f) | {"excess": f.excess},
        }

    def __str__(self) -> str:
        return f"{self.advice} ({self.regime}, confidence {self.confidence}). " + " ".join(self.reasons)


def advise(traj: Trajectory) -> Advice:
    """Measure and decide.

    Raises:
        InputError: fewer than three known checkpoints, or a run that does not move.
    """
    return decide(features(traj))


def features(traj: Trajectory) -> AdviceFeatures:
    """The measurements, from checkpoints and from what the trainer left beside the last one.

    Raises:
        InputError: fewer than three known checkpoints, or a run that does not move.
    """
    known = known_steps(traj)
    if len(known) < 3:
        raise InputError(
            f"advice needs 3 checkpoints (the start counts where known); this run has {len(known)}"
        )
    beta1 = trainer_state.adam_beta1(traj)
    used = DEFAULT_BETA1 if beta1 is None else beta1
    windows, drift = _geometry(traj, used)
    tested = _backtest(traj)
    reward, best, rise = _rewards(traj)
    return AdviceFeatures(
        traj.steps[-1], windows, used, beta1 is not None, drift, *tested, reward=reward, best=best, rise=rise
    )


def _geometry(traj: Trajectory, beta1: float) -> tuple[tuple[Window, ...], float]:
    """Persistence by window and drift against noise, from the Gram matrix of the run on an even grid."""
    grid, k = even_grid(traj), traj.spacing
    gram = grid @ pooled_gram(traj) @ grid.mT
    windows = []
    for count in WINDOWS:
        if 2 * count >= len(grid):
            continue
        late = _difference(len(grid), -1 - count, -1)
        early = _difference(len(grid), -1 - 2 * count, -1 - count)
        size = math.sqrt(max(0.0, float(late @ gram @ late) * float(early @ gram @ early)))
        if size > 0:
            c, c0 = float(late @ gram @ early) / size, adam_persistence(count * k, beta1)
            windows.append(Window(count * k, c, c0, excess(c, c0)))
    if not windows:
        raise InputError(
            f"the adapter does not move in the last {2 * k} steps: there is nothing to advise on"
        )
    half = list(range(len(grid) // 2, len(grid)))
    moves = torch.stack([_difference(len(grid), i - 1, i) for i in half])
    inner = moves @ gram @ moves.mT
    n, mean_square = len(half), float(inner.mean())
    noise = (float(inner.diagonal().sum()) - n * mean_square) / max(1, n - 1)
    drift = (mean_square - noise / n) / noise if noise > 0 else math.inf
    return tuple(windows), min(drift, 1e6)


def _difference(size: int, start: int, stop: int) -> torch.Tensor:
    c = torch.zeros(size, dtype=torch.float64)
    c[stop] += 1.0
    c[start] -= 1.0
    return c


def _backtest(traj: Trajectory) -> tuple[str, int, float, float, bool, str]:
    """(recommended, horizon, alpha, skill, whether there was one, best control)."""
    try:
        result = backtest(traj, methods=CANDIDATES)
    except InputError:
        return NONE, 0, 0.0, 0.0, False, "stay"
    control = result.horizons[result.horizon].control
    if result.recommended == NONE:
        return NONE, 0, 0.0, 0.0, True, control
    score = result.methods[result.recommended]
    return result.recommended, result.horizon, score.best_alpha, score.mean("skill"), True, control


def _rewards(traj: Trajectory) -> tuple[float | None, float | None, float | None]:
    """(last window, best window, rise over the last three windows); a window ends at each checkpoint."""
    means = list(trainer_state.reward_by_checkpoint(traj, trainer_state.rewards(traj)).values())
    if not means:
        return None, None, None
    # The best of many noisy windows is mostly luck, so pairs of windows are compared once there are four.
    smooth = [(a + b) / 2 for a, b in pairwise(means)] if len(means) >= 4 else means
    return smooth[-1], max(smooth), smooth[-1] - smooth[max(0, len(smooth) - 4)]


def decide(f: AdviceFeatures) -> Advice:
    """The rule: danger first, then direction, then whether there is anything left to gain by going on.

    Args:
        f: measurements, from `features` or from a stored table.
    """
    regime: Regime = "signal" if f.excess > SIGNAL else "mixed" if f.excess > MIXED else "noise"
    reasons = [_persistence_sentence(f)]
    fell = f.reward is not None and f.best is not None and f.best - f.reward > REWARD_DROP
    if fell or f.excess < OSCILLATES:
        if fell:
            reasons.append(f"The reward fell from {f.best:.2f} at best to {f.reward:.2f} in the last window.")
        if f.excess < OSCILLATES:
            reasons.append("Successive windows undo each other: the run oscillates.")
        sure = "high" if fell and f.excess < OSCILLATES else "medium"
        return Advice(regime, "lower_lr", sure, tuple(reasons), f, factor=LOWER)
    if regime == "noise":
        return _no_direction(f, reasons)
    factor = RAISE[regime]
    if f.recommended != NONE and regime == "signal":
        reasons.append(
            f"On its own past {f.recommended} at a horizon of {f.horizon} had a skill of {f.skill:.2f}. "
            f"Validate the step length (0, 2, 8); if it holds, multiply the rate by about {factor:g}."
        )
        sure = "high" if f.excess > SIGNAL + SCATTER / 2 and f.skill > 0.5 else "medium"
        return Advice(regime, "leap", sure, tuple(reasons), f, f.recommended, f.horizon, factor)
    reasons.append(f"A rate about {factor:g} times higher would use that direction.")
    if f.backtested and f.recommended == NONE:
        reasons.append("No method beat standing still on the run's past, so a leap is not advised.")
    return Advice(regime, "raise_lr", _sure(f, regime), tuple(reasons), f, factor=factor)


def _no_direction(f: AdviceFeatures, reasons: list[str]) -> Advice:
    if f.rise is not None and f.rise > REWARD_FLAT:
        reasons.append(f"But the reward still rises (+{f.rise:.2f} over the last windows): go on.")
        return Advice("noise", "continue", _sure(f, "noise"), tuple(reasons), f)
    if len(f.windows) < 2:
        reasons.append("The run is too short to average: go on.")
        return Advice("noise", "continue", "low", tuple(reasons), f)
    if f.rise is None:
        reasons.append(
            "No rewards were found, so whether it still improves is unknown; averaging costs nothing."
        )
    else:
        reasons.append(
            f"The reward is flat ({f.rise:+.2f} over the last windows): average the last checkpoints."
        )
    return Advice("noise", "average", _sure(f, "noise"), tuple(reasons), f, method="lawa")


def _sure(f: AdviceFeatures, regime: Regime) -> str:
    """How far the excess lies from the nearest threshold, in units of its scatter; rewards add to it."""
    edge = min(abs(f.excess - t) for t in (SIGNAL, MIXED, OSCILLATES)) * math.sqrt(len(f.windows))
    if edge < SCATTER / 2:
        return "low"
    return "high" if edge > SCATTER and f.reward is not None else "medium"


def _persistence_sentence(f: AdviceFeatures) -> str:
    parts = ", ".join(f"{w.c:.2f} over {w.steps} steps (Adam alone: {w.c0:.2f})" for w in f.windows)
    source = "optimizer.pt" if f.beta1_known else "assumed; no optimizer.pt"
    at = f"Persistence at step {f.step} is {parts}"
    return f"{at}; excess {f.excess:+.2f} with beta1 = {f.beta1:g} ({source})."
