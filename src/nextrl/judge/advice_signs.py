"""Signs in a run's measurements that the recommender goes by: its reward fell, rises, is lost; its path is straight.

The thresholds come from tiny runs (docs/advice.md: 430k parameters, two tasks, LoRA with Adam at a constant rate);
nothing larger has been tried.
"""

from __future__ import annotations

from dataclasses import dataclass

from nextrl.judge.advice_features import AdviceFeatures
from nextrl.judge.regime import OSCILLATES


@dataclass(frozen=True)
class Thresholds:
    """Where the rule turns; found on two tiny tasks at eight rates with three seeds (docs/advice.md).

    The room is the distance of the reward to 1. A run that closes most of it is straight because it learns, not because
    it is slow; so both bounds on the excess depend on the share of the room that the last three windows closed.

    Attributes:
        faster, closing: a rate is too low if the excess is above faster + closing * share.
        oscillates, closing_back: a rate is too high if the excess is below oscillates - closing_back * share.
        learned: share of the room at the start that a run must have closed since; otherwise a path without direction
            is taken for one whose rate was too high from the first window on.
        fall: fall of a reward from 0 to 1 below its best window (the lab's controller undoes a window at .08) that
            matters, and of any where nothing says its noise; it counts where chance alone would not bring it, which
            `AdviceFeatures.fall_by_chance` says.
        lost: share that makes a smaller fall matter, too, where the noise is known: of the best window's reward where
            rewards are from 0 to 1, and of the run's span for others, whose scale nothing else says.
        ruined: share of its best window below which a reward that cannot be negative counts as lost.
        flat: a rise of the reward, over three windows, that is no rise where nothing says the noise. A run that has
            no more than that left to gain has nothing to learn from another rate: in docs/advice.md a rate pays where
            it ends more than that higher.
        still: share of the run's span that is no rise where the noise is known, or that chance alone would bring
            (`rise_by_chance`).
    """

    faster: float = 0.2
    closing: float = 1.2
    oscillates: float = OSCILLATES
    closing_back: float = 0.4
    learned: float = 0.1
    fall: float = 0.08
    lost: float = 0.3
    ruined: float = 0.25
    flat: float = 0.02
    still: float = 0.04


DEFAULT = Thresholds()


@dataclass(frozen=True)
class Signs:
    """What measurements say of a run's rate, by these thresholds."""

    features: AdviceFeatures
    thresholds: Thresholds = DEFAULT

    @property
    def straight(self) -> float:
        """Excess above which a path is straighter than learning alone makes it."""
        f, t = self.features, self.thresholds
        return t.faster + t.closing * f.closing

    @property
    def undone(self) -> float:
        """Excess below which successive windows undo each other."""
        f, t = self.features, self.thresholds
        return t.oscillates - t.closing_back * f.closing

    @property
    def too_low(self) -> bool:
        """Whether the path is straight because the rate is too low, if nothing else explains it."""
        return self.features.excess > self.straight and not self.at_its_best

    @property
    def oscillates(self) -> bool:
        """Whether successive windows undo each other."""
        return self.features.excess < self.undone

    @property
    def ruined(self) -> bool:
        """Whether there is no gradient left, so that the run cannot come back."""
        return self.all_but_gone or self.stuck

    @property
    def stuck(self) -> bool:
        """Whether the reward fell to where no completion earns more than another, whatever unit it comes in."""
        f = self.features
        return f.same is not None and self.fell

    @property
    def all_but_gone(self) -> bool:
        """Whether hardly any reward is left, and does not come back.

        Nothing says how much is left of a reward whose lowest is not 0.
        """
        f, t = self.features, self.thresholds
        if self.rises:
            return False
        start = max((r for r in (f.best, f.first) if r is not None), default=0.0)
        if f.reward is None or min(f.reward, start, f.lowest or 0.0) < 0.0:
            return False
        return f.reward < t.ruined * start and start - f.reward > (f.fall_by_chance or 0.0)

    @property
    def fell(self) -> bool:
        """Whether the reward fell below its best by more than chance would bring, and by enough to matter."""
        f = self.features
        if f.reward is None or f.best is None:
            return False
        return f.best - f.reward > max(self.matters, f.fall_by_chance or 0.0)

    @property
    def matters(self) -> float:
        """How large a change of the reward is one that matters."""
        f, t = self.features, self.thresholds
        if f.fall_by_chance is None or f.best is None:
            return t.fall
        return min(t.fall, t.lost * f.best) if f.unit else t.lost * f.span

    @property
    def rises(self) -> bool:
        """Whether the reward rose over the last three windows, by more than chance brings and by enough to matter."""
        f = self.features
        return f.rise is not None and f.rise > self.no_rise

    @property
    def at_its_best(self) -> bool:
        """Whether less is left to gain than would count as a gain."""
        f, t = self.features, self.thresholds
        return f.unit and f.reward is not None and 1.0 - f.reward < t.flat

    @property
    def no_rise(self) -> float:
        """Up to where a rise is none: what chance would bring, and what does not matter."""
        f, t = self.features, self.thresholds
        return t.flat if f.rise_by_chance is None else max(t.still * f.span, f.rise_by_chance)

    @property
    def shakes(self) -> bool:
        """Whether the path has no direction and the reward is where it began, with something left to gain."""
        f, t = self.features, self.thresholds
        if self.at_its_best or f.learned is None or f.learned >= t.learned or f.excess > t.faster:
            return False
        return f.rise_by_chance is None or f.gained <= f.rise_by_chance
