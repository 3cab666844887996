"""The dials of `auto`, in one place: `LeapCallback(config=...)` and `leap.controller` of a run's YAML set them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from nextrl.errors import InputError

LOOKS = 30
"""Windows of a run up to which the dials are as they stand."""


@dataclass(frozen=True)
class ControllerConfig:
    """The dials of `auto`, each in the unit of what it is compared with (docs/auto-evidence.md has the trials).

    Attributes:
        every: optimizer steps per window; a third and a half of it after a change of the rate, twice as many where
            nothing has changed for six windows.
        goal: nats per token by which a first step should move the policy: a start below a fifth of it is raised.
        bold: nats per token (`goal`, where that is more) beyond which a first step puts the rate on probation: the
            run begins again, at the rate of `goal`, if one of the next steps goes twice as far as `reckless`, if the
            reward falls at once, or unless the last ten of 25 rewards or more are above the first five.
        rise: standard errors by which they must be.
        reckless: nats per token beyond which a single step is taken back, but for a run's first one.
        ruinous: nats per token (`reckless`, where that is more) beyond which a run's first step is.
        target: nats per token of a further window beyond which more evidence is asked for before the rate rises.
        far: nats per token beyond which a fallen reward undoes a window, and beyond which nothing is tried.
        undo: standard errors by which a window's start must be better for the window to be undone.
        alarm: standard errors by which the reward must fall within a window for the window to be judged at once.
        harm: standard errors that the windows at one rate must have done harm by, added up (half of one for each
            window is taken for noise), for the rate to fall; one less for each doubling of the first step's nats
            beyond `goal`, but at least 1.
        sure: standard errors that training further the same way must gain for the rate to rise; more, by `surer` for
            each doubling of the nats beyond `target`.
        surer: see `sure`.
        patience: the latest windows at a rate, all of which together may be sure that it should rise.
        cooldown: share of a run's steps, at its end, over which a constant rate falls linearly towards 0.

    `undo`, `harm` and `sure` are those of a run of some thirty windows; see `over`.
    """

    every: int = 10
    goal: float = 0.004
    bold: float = 0.016
    rise: float = 1.0
    reckless: float = 0.15
    ruinous: float = 1.0
    target: float = 0.02
    far: float = 0.16
    undo: float = 3.3
    alarm: float = 4.0
    harm: float = 4.0
    sure: float = 3.0
    surer: float = 0.75
    patience: int = 4
    cooldown: float = 0.2

    def over(self, steps: int | None) -> ControllerConfig:
        """The dials for a run of so many steps: chance has as many occasions as there are windows.

        Beyond `LOOKS` windows `harm` grows with the logarithm of their number, as the false alarms of a CUSUM want it,
        and of `undo` and `sure` the chance falls in proportion (a normal variable's tail is about exp(-z^2 / 2)).

        Args:
            steps: optimizer steps of the whole run; None where unknown, which changes nothing.
        """
        if steps is None:
            return self
        # Where nothing changes: windows after a change of the rate are shorter, and not counted.
        windows = steps / (2 * self.every) + (2 + self.patience) / 2
        more = math.log(max(1.0, windows / LOOKS))
        undo, sure = (math.sqrt(errors**2 + 2.0 * more) for errors in (self.undo, self.sure))
        return replace(self, harm=self.harm + more, undo=undo, sure=sure) if more else self

    def __post_init__(self) -> None:
        for name in ("every", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0.0 < self.goal < self.reckless:
            raise InputError(f"goal must be above 0 and below reckless, not {self.goal} and {self.reckless}")
        for name in ("bold", "ruinous"):
            if not getattr(self, name) > 0.0:
                raise InputError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0.0 < self.target <= self.far:
            raise InputError(f"target must be above 0 and at most far, not {self.target} and {self.far}")
        if not 0.0 <= self.cooldown < 1.0:
            raise InputError(f"cooldown must be from 0 to below 1, not {self.cooldown}")
        for name in ("rise", "undo", "alarm", "harm", "sure", "surer"):
            if not getattr(self, name) >= 0.0:
                raise InputError(f"{name} must be at least 0 standard errors, not {getattr(self, name)}")
