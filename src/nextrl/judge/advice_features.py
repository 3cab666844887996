"""What a run's checkpoints and its trainer's log say, as plain numbers: all that the recommender (`advice`) knows."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, replace

from nextrl.errors import InputError, TooShort
from nextrl.judge.backtest import CANDIDATES, Backtest, backtest
from nextrl.judge.backtest_scores import NONE
from nextrl.judge.decision_file import last_of_auto
from nextrl.judge.regime import PersistenceWindow, above_rounding, mean_excess, no_windows, recent_windows
from nextrl.judge.reward_windows import RewardWindows, reward_windows
from nextrl.trajectory import trainer_log
from nextrl.trajectory.combinations import known_steps
from nextrl.trajectory.persistence import DEFAULT_BETA1
from nextrl.trajectory.trajectory import Trajectory

ALL_ALIKE = "completions that all earn the same leave nothing to learn from"
"""Why rewards without any difference are no progress, as a clause."""

_COOLED = 0.3
"""Share of the rate that a fall began from at or below which the last checkpoint counts as cooled."""

_STEADY = 0.9
"""Share of the highest rate lately that the lowest one has where the rate counts as constant."""


@dataclass(frozen=True, kw_only=True)
class AdviceFeatures:
    """Everything that `decide` looks at; plain numbers, so a table of them can be stored.

    Attributes:
        step: the run's last step T.
        windows: persistence at the end of the run, by window length; without those that are mostly the rounding of
            factors stored in 16 bits.
        beta1: Adam's first momentum coefficient.
        beta1_known: whether it was read from the run's optimizer.pt.
        beta1_unsaid: whether an optimizer's file is there that does not say it.
        recommended, horizon, skill: of the backtest ("none", 0, 0 where it recommends nothing or the run is too short).
        backtested: whether there was a backtest.
        reward: mean reward of the last window, None (like the next four) if no rewards were logged.
        best: mean reward of the best window.
        rise: rise of the reward over the last three windows.
        first: mean reward of the first window.
        lowest: the lowest reward that was logged.
        rate: the learning rate of the steps that `windows` span where it was constant there, else the highest of the
            run; None (like the next two) if none was logged.
        rate_now: the rate that was logged last.
        steady: whether the rate was constant, within a tenth, over the steps that `windows` span.
        cooled: whether the rate fell from log to log at the end, to a third or less.
        auto: what `auto` decided last, and the rate that it left, as a clause; empty where the run was not under it.
        fall_by_chance, rise_by_chance: how far below `best`, and how high a `rise`, chance alone brings a reward that
            stands still (`reward_windows`); None where the windows are too few to tell, or nobody measured it.
        same: the reward of every log of the last three windows, where these are all the same.
        functions: how many reward functions were added up to the reward; 0 where nothing says it.
        updates: optimizer updates in each step; None where nothing says it, and then `windows` take them for one.
    """

    step: int
    windows: tuple[PersistenceWindow, ...]
    beta1: float
    beta1_known: bool
    recommended: str
    horizon: int
    skill: float
    backtested: bool
    reward: float | None = None
    best: float | None = None
    rise: float | None = None
    first: float | None = None
    lowest: float | None = None
    rate: float | None = None
    rate_now: float | None = None
    steady: bool | None = None
    cooled: bool = False
    auto: str = ""
    fall_by_chance: float | None = None
    rise_by_chance: float | None = None
    updates: int | None = 1
    beta1_unsaid: bool = False
    same: float | None = None
    functions: int = 0

    @property
    def momentum_unsaid(self) -> bool:
        """Whether nothing says how straight momentum alone would make the path."""
        return self.updates is None or self.beta1_unsaid

    @property
    def closing(self) -> float:
        """Share of the room to a reward of 1 that the last three windows closed, in [0, 1].

        0.0 without rewards, and where they are no shares of 1 (`unit`).
        """
        if self.reward is None or self.rise is None or not self.unit:
            return 0.0
        return _share(self.rise, 1.0 - self.reward + self.rise)

    @property
    def learned(self) -> float | None:
        """Share of the room at the start that was closed since, or None as for `closing`."""
        if self.reward is None or self.first is None or not self.unit:
            return None
        return _share(self.reward - self.first, 1.0 - self.first)

    @property
    def gained(self) -> float:
        """What the reward has risen by since the first window; 0.0 without rewards."""
        return 0.0 if self.reward is None or self.first is None else self.reward - self.first

    @property
    def span(self) -> float:
        """From the lowest to the highest of the first, the best and the last window; 0.0 without rewards."""
        return max(self._seen) - min(self._seen) if self._seen else 0.0

    @property
    def unit(self) -> bool:
        """Whether rewards were seen, none of those windows outside 0 to 1 and no step below 0, and of one function.

        A sum of several has another maximum than 1, even while it is below that.
        """
        if not self._seen or self.functions > 1:
            return False
        return min(*self._seen, self.lowest or 0.0) >= 0.0 and max(self._seen) <= 1.0

    @property
    def _seen(self) -> list[float]:
        return [r for r in (self.reward, self.best, self.first) if r is not None]

    @property
    def excess(self) -> float:
        """Mean excess over the windows."""
        return mean_excess(self.windows)


def features(
    traj: Trajectory, tested: Backtest | None = None, updates_per_step: int | None = None
) -> AdviceFeatures:
    """The measurements, from checkpoints and from what the trainer left beside the last one.

    Args:
        traj, tested, updates_per_step: as `advise` takes them.

    Raises:
        TooShort: fewer than three known checkpoints, a run that does not move, one whose last checkpoints are so
            unevenly spaced that no two windows can be compared, or so near each other that 16 bits do not tell them
            apart.
        InputError: a checkpoint, or a file of decisions, that cannot be read.
    """
    known = known_steps(traj)
    if len(known) < 3:
        raise TooShort(
            f"advice needs 3 checkpoints (the start counts where known); this run has {len(known)}"
        )
    beta1 = trainer_log.adam_beta1(traj)
    used = DEFAULT_BETA1 if beta1 is None else beta1
    updates = trainer_log.updates_per_step(traj, updates_per_step)
    windows = recent_windows(traj, used, updates or 1)
    rewards = _rewards(traj)
    if not windows:
        raise TooShort(f"{no_windows(traj)}: there is nothing to advise on{_without_gradient(rewards)}")
    if not all(math.isfinite(window.e) for window in windows):
        raise InputError(
            "the adapter holds NaN, Inf or weights too large to compare: restore the checkpoints"
        )
    windows = above_rounding(traj, windows)
    rate, rate_now, steady = _rates(traj, 2 * max(window.steps for window in windows))
    seen = AdviceFeatures(
        step=traj.steps[-1],
        windows=windows,
        beta1=used,
        beta1_known=beta1 is not None,
        **asdict(_past(traj, tested, updates_per_step)),
        rate=rate,
        rate_now=rate_now,
        steady=steady,
        cooled=_cooled(traj),
        auto=_auto(traj),
        updates=updates,
        beta1_unsaid=not trainer_log.knows_beta1(traj),
    )
    if rewards is None:
        return seen
    return replace(
        seen,
        reward=rewards.last,
        best=rewards.best,
        rise=rewards.rise,
        first=rewards.first,
        lowest=rewards.lowest,
        fall_by_chance=rewards.fall_by_chance,
        rise_by_chance=rewards.rise_by_chance,
        same=rewards.same,
        functions=trainer_log.reward_functions(traj),
    )


def _without_gradient(rewards: RewardWindows | None) -> str:
    """Why a run does not move, where the rewards say it; else nothing."""
    if rewards is None or rewards.same is None:
        return ""
    return f". Every reward logged lately is {rewards.same:.3g}: {ALL_ALIKE}"


@dataclass(frozen=True, kw_only=True)
class _Past:
    """What the run's own past says of a leap: the fields of `AdviceFeatures` that come from the backtest."""

    recommended: str = NONE
    horizon: int = 0
    skill: float = 0.0
    backtested: bool = True


def _past(traj: Trajectory, tested: Backtest | None, updates_per_step: int | None) -> _Past:
    """The backtest in short: `tested`, or one of `CANDIDATES`; nothing where the run is too short for one."""
    try:
        result = tested or backtest(traj, methods=CANDIDATES, updates_per_step=updates_per_step)
    except TooShort:
        return _Past(backtested=False)
    if result.recommended == NONE:
        return _Past()
    skill = result.methods[result.recommended].mean("skill")
    return _Past(recommended=result.recommended, horizon=result.horizon, skill=skill)


def _rewards(traj: Trajectory) -> RewardWindows | None:
    """What the rewards say; a window ends at each checkpoint. None where no reward was logged."""
    windows = trainer_log.rewards_by_window(traj, trainer_log.rewards(traj))
    return reward_windows(list(windows.values())) if windows else None


def _rates(traj: Trajectory, span: int) -> tuple[float | None, float | None, bool | None]:
    """(rate, last one, whether those of the last `span` steps are the same within a tenth).

    The rate is the one that the last `span` steps had where they had one, as after a resume at another: theirs are the
    windows that are judged. Else it is the highest of the run.
    """
    logged, peak = trainer_log.learning_rates(traj), trainer_log.peak_learning_rate(traj)
    if not logged or peak is None:
        return peak, None, None
    lately = [rate for step, rate in logged.items() if step > traj.steps[-1] - span]
    seen = lately if len(lately) > 1 else [peak, *logged.values()]
    steady = min(seen) >= _STEADY * max(seen)
    # A rate of zero is none that a factor could raise.
    return max(seen) if steady and max(seen) > 0 else peak, list(logged.values())[-1], steady


def _cooled(traj: Trajectory) -> bool:
    """Whether the last logged rates fall each time, three times or more, to `_COOLED` of what they fell from.

    A rate that was cut once falls once, and is no cooldown.
    """
    backwards = list(trainer_log.learning_rates(traj).values())[::-1]
    falls = [
        earlier
        for later, earlier in itertools.takewhile(lambda two: two[0] < two[1], itertools.pairwise(backwards))
    ]
    return len(falls) >= 3 and backwards[0] <= _COOLED * falls[-1]


def _auto(traj: Trajectory) -> str:
    last = last_of_auto(traj)
    if last is None:
        return ""
    rate = "" if last.learning_rate is None else f", and the rate stood at {last.learning_rate:.3g}"
    return f"at step {last.step} its word was: {last.reason}{rate}"


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0
