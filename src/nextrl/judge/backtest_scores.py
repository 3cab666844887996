"""What the backtest measures: one method at one origin, over origins, and over methods at one horizon.

Numbers and their means only; how they are obtained is `backtest`'s business.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NONE = "none"
FIGURES = ("cosine", "norm_ratio", "relative_error", "skill")
"""Of a `ForecastScore`, as they are shown."""

# A gain in skill below this is not worth the price of a leap (a search costs a few steps' completions).
LEAST_GAIN = 0.05
# How many standard errors the gain must lie above LEAST_GAIN: about 1 false recommendation in 40 for one method. The
# gain is taken over the best of several controls, which makes the test stricter than that; in a space of few
# dimensions, where random directions agree by chance, it is looser (docs/backtest.md).
STANDARD_ERRORS = 2.0
# With fewer than two independent origins no spread can be measured; then the gain in skill must exceed this.
UNSEEN_SPREAD = 0.25


@dataclass(frozen=True)
class ForecastScore:
    """One method at one origin, in Frobenius inner products over modules (float).

    Attributes:
        inner: <predicted, actual>.
        predicted: |predicted|^2.
        actual: |actual|^2.
    """

    inner: float
    predicted: float
    actual: float

    def __add__(self, other: ForecastScore) -> ForecastScore:
        return ForecastScore(
            self.inner + other.inner, self.predicted + other.predicted, self.actual + other.actual
        )

    @property
    def cosine(self) -> float:
        """Cosine of the predicted and the actual change; 0 for a prediction that stays put."""
        size = math.sqrt(max(self.predicted, 0.0) * self.actual)
        return 0.0 if size == 0 else self.inner / size

    @property
    def norm_ratio(self) -> float:
        """|predicted| / |actual|."""
        return math.sqrt(max(self.predicted, 0.0) / self.actual)

    @property
    def skill(self) -> float:
        """1 - squared error / squared error of staying put: 1 is exact, 0 no better than standing still."""
        return (2 * self.inner - self.predicted) / self.actual

    @property
    def relative_error(self) -> float:
        """|predicted - actual| / |actual|; 1 for staying put."""
        return math.sqrt(max(0.0, 1.0 - self.skill))


@dataclass(frozen=True)
class MethodScore:
    """One method over all origins where it could be fitted.

    Attributes:
        outcomes: origin -> how the forecast did over all modules.
        by_type: layer type ("q_proj") -> the outcomes of all origins, summed.
        gain: mean advantage in skill over the best way of not leaping.
        error: standard error of the gain; NaN with too few independent origins.
    """

    outcomes: Mapping[int, ForecastScore]
    by_type: Mapping[str, ForecastScore]
    gain: float
    error: float

    def mean(self, figure: str) -> float:
        """Mean over origins of one of `FIGURES`."""
        return statistics.fmean(getattr(o, figure) for o in self.outcomes.values())

    def spread(self, figure: str) -> float:
        """Standard deviation over origins, NaN for a single one."""
        values = [getattr(o, figure) for o in self.outcomes.values()]
        return statistics.stdev(values) if len(values) > 1 else math.nan

    def shown(self, figure: str, between: str = "±") -> str:
        """The mean to two digits, with its spread where there is one."""
        spread = self.spread(figure)
        return f"{self.mean(figure):.2f}" + ("" if math.isnan(spread) else f"{between}{spread:.2f}")

    @property
    def best_alpha(self) -> float:
        """The one alpha that would have fitted all origins best (least squares), 0 for staying put."""
        total = sum(o.predicted for o in self.outcomes.values())
        return 0.0 if total <= 0 else sum(o.inner for o in self.outcomes.values()) / total

    @property
    def convincing(self) -> bool:
        """Whether the gain is larger than noise and the price of a leap allow."""
        if math.isnan(self.error):
            return self.gain > UNSEEN_SPREAD
        return self.gain - STANDARD_ERRORS * self.error > LEAST_GAIN

    def as_dict(self) -> dict[str, Any]:
        """Figures for `--json`."""
        out: dict[str, Any] = {f: self.mean(f) for f in FIGURES}
        single = len(self.outcomes) == 1
        out["spread"] = {f: None if single else self.spread(f) for f in FIGURES}
        out |= {"origins": list(self.outcomes), "best_alpha": self.best_alpha, "gain": self.gain}
        out["gain_error"] = None if math.isnan(self.error) else self.error
        return out


def counted(origins: int) -> str:
    """So many origins, in words."""
    return "one origin" if origins == 1 else f"{origins} origins"


@dataclass(frozen=True)
class HorizonScores:
    """All methods at one horizon.

    Attributes:
        horizon: h in steps.
        origins: the steps t that were tried.
        methods: name -> scores.
        skipped: name -> why a method has no scores: it could not be fitted at any origin, or raised an exception (its
            type and text) and was not asked for by name.
        control: the way of not leaping that did best: "stay", "average" (the last h steps), "mean" (all of the
            past), "start", or "momentum" (what Adam's momentum carries on by itself).
        spans: origin -> the steps ahead that were measured there: uneven checkpoints lie only about h apart.
    """

    horizon: int
    origins: tuple[int, ...]
    methods: dict[str, MethodScore]
    skipped: dict[str, str]
    control: str
    spans: Mapping[int, int]

    def expected_steps(self, name: str) -> float:
        """What a leap is worth in steps: what remains of the way that was measured is relative_error of it."""
        score = self.methods[name]
        ahead = statistics.fmean(self.spans[t] for t in score.outcomes)
        return ahead * (1.0 - score.mean("relative_error"))

    @property
    def convincing(self) -> list[str]:
        """Methods that beat not leaping, the one worth most steps first."""
        good = [n for n, s in self.methods.items() if n != NONE and s.convincing]
        return sorted(good, key=self.expected_steps, reverse=True)
