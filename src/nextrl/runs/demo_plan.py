"""What the demo compares: the run as configured, `auto`, a sweep of rates, the rate that a published rule gives,
rate-free optimizers, single leaps, and controls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nextrl.engines import named_optimizers
from nextrl.engines.settings import TrainSettings
from nextrl.extrapolators.base import tags_by_name
from nextrl.leaps.leap import DEFAULT_HORIZON
from nextrl.runs.arm import ArmSettings, Kind, LeapSettings
from nextrl.runs.rate_rule import RULE, rate_of

CAUTIOUS = 5e-5
SWEEP = (2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
LEAP_METHODS = ("linear", "secant", "window", "factors", "lawa", "next-paper", "next")


@dataclass(frozen=True)
class Plan:
    """What the demo runs.

    Attributes:
        arms: in the order in which they start; "plain" first.
        leap_at: the plain run's step that single leaps start from.
        sweep: names of the learning-rate controls.
    """

    arms: tuple[ArmSettings, ...]
    leap_at: int
    sweep: tuple[str, ...]


@dataclass(frozen=True)
class _Lengths:
    """How long the arms are, in steps: the plain one, its controls, where a single leap starts, how far it goes on."""

    plain: int = 400
    control: int = 200
    leap_at: int = 200
    on: int = 100
    horizon: int = DEFAULT_HORIZON

    @property
    def end(self) -> int:
        return self.leap_at + self.on

    @property
    def looks(self) -> tuple[int, ...]:
        """Steps after a leap at which its arm is evaluated."""
        return tuple(sorted({step for step in (20, 50, self.on) if step <= self.on}))


_QUICK = _Lengths(plain=160, control=80, leap_at=80, on=40, horizon=20)


@dataclass(frozen=True)
class _Arms:
    """Builds the arms of one demo, which share a seed, a task and, but for the sweep, a learning rate."""

    seed: int
    task: str
    rate: float
    lengths: _Lengths

    def arm(
        self,
        name: str,
        kind: Kind,
        label: str,
        steps: int,
        *,
        rate: float | None = None,
        optimizer: str = named_optimizers.DEFAULT,
        **more: Any,
    ) -> ArmSettings:
        train = TrainSettings(
            steps=steps,
            learning_rate=self.rate if rate is None else rate,
            seed=self.seed,
            optimizer=optimizer,
        )
        evaluations = more.pop("eval_at", _evaluations(steps))
        return ArmSettings(
            name=name, kind=kind, label=label, task=self.task, train=train, eval_at=evaluations, **more
        )

    def main(self) -> list[ArmSettings]:
        """The run as configured, and `auto` from the same rate."""
        label = f"plain, lr {self.rate:g} (as configured)"
        return [
            self.arm("plain", "plain", label, self.lengths.plain, save=True),
            self.arm("auto", "auto", f"auto, from lr {self.rate:g}", self.lengths.control, auto=True),
        ]

    def tuned(self, rates: tuple[float, ...]) -> list[ArmSettings]:
        """The sweep of learning rates."""
        steps = self.lengths.control
        return [self.arm(f"lr-{r:g}", "control", f"plain, lr {r:g}", steps, rate=r, save=True) for r in rates]

    def by_rule(self) -> ArmSettings:
        """The rate of `learning_rate: rule`, which is known before any run."""
        rate = rate_of("tiny")
        return self.arm(RULE, "control", f"plain, lr {rate:g} (by rule)", self.lengths.control, rate=rate)

    def rate_free(self, count: int | None = None) -> list[ArmSettings]:
        """Optimizers that find their own rate: the first so many, or all."""
        steps, found = self.lengths.control, named_optimizers.rate_free()[:count]
        return [self.arm(o.name, "control", o.label, steps, optimizer=o.name) for o in found]

    def leap(self, method: str) -> ArmSettings:
        """One leap by a named method, from the plain run's checkpoint."""
        lengths = self.lengths
        # As the papers do: the best mean, however small its lead.
        settings = LeapSettings(
            method=method, horizon=lengths.horizon, alphas=tags_by_name(method).alphas, accept="argmax"
        )
        return self.arm(
            method,
            "leap",
            f"{method}, one leap at {lengths.leap_at}",
            lengths.end,
            start=lengths.leap_at,
            eval_at=tuple(lengths.leap_at + step for step in lengths.looks),
            leap=settings,
        )

    def restart(self) -> ArmSettings:
        """A fresh adapter and optimizer on the merged model: what a leap that merges has to pay for."""
        at, label = self.lengths.leap_at, f"restart at {self.lengths.leap_at}"
        looks = self.lengths.looks
        return self.arm("restart", "control", label, self.lengths.end, start=at, merge=True, eval_at=looks)

    def temperature(self) -> ArmSettings:
        """The plain run's checkpoint at a lower temperature, which sharpens for free."""
        at, label = self.lengths.leap_at, "plain at lower temperature"
        return self.arm("temperature", "control", label, self.lengths.end, start=at, eval_at=())


def plan(seed: int, quick: bool, task: str = "chain", rate: float = CAUTIOUS) -> Plan:
    """The arms of the demo; `quick` has fewer and shorter ones."""
    build = _Arms(seed, task, rate, _QUICK if quick else _Lengths())
    tuned = build.tuned((5e-4, 1e-3) if quick else SWEEP)
    arms = [
        *build.main(),
        *tuned,
        build.by_rule(),
        *build.rate_free(1 if quick else None),
        *(build.leap(method) for method in (("secant", "next") if quick else LEAP_METHODS)),
        *([] if quick else [build.restart()]),
        build.temperature(),
    ]
    return Plan(tuple(arms), build.lengths.leap_at, tuple(arm.name for arm in tuned))


def _evaluations(last: int) -> tuple[int, ...]:
    """Every 10 steps up to 100 and every 20 after, and at the end."""
    steps = [s for s in range(1, last + 1) if s % (10 if s <= 100 else 20) == 0]
    return tuple(sorted({*steps, last}))
