"""`auto`: when to leap, how far, and what the learning rate becomes. Pure decisions; no trainer, no tensors of a model.

A run is cut into windows of `every` steps. At the end of each the controller is shown what the run shows for free
(`Window`: persistence, training rewards, rate; `Diverge`: how far the window moved the policy, and how far a longer one
would have) and a function that scores a candidate leap on held-out prompts. In most windows it calls the latter not at
all. Persistence and divergence screen: a search is due where the path keeps its direction and yet hardly moves the
policy. The divergence also says which leaps are worth a look, so a search has one or two candidates and not a grid; a
paired comparison with staying put decides. The rate rises only by a reach that was looked at and did no harm; it falls
without asking, where a window moved the policy too far or the path oscillates.

How many nats a window may move a policy by is the model's own affair, so the dials for it are where a run begins: a
path that stays far straighter than Adam's memory explains, while its windows move the policy, asks for a search further
out, and what did no harm there is the new measure.

alpha counts windows: a candidate is `theta + alpha (theta - theta_window_start)` inside the LoRA factors, so 8 means
"eight more windows like the last" and -1 "undo the last window".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nextrl.errors import InputError
from nextrl.judge.paired_search import Score, Scores, refine
from nextrl.judge.regime import DEFAULT_WINDOW
from nextrl.trajectory.persistence import DEFAULT_BETA1, adam_persistence, excess

Diverge = Callable[[float], float]
"""alpha -> divergence of the policy there from the current one, nats a token; NaN where it cannot be measured."""

BACK = {-0.5: 1.0 / 3.0, -1.0: 0.2}
"""What a step back does to the learning rate: a third after half a window, a fifth after an undo."""

_FURTHER = 4.0  # twice the window, where divergence goes with the square: the rate times three
_TINY = 1e-12  # a divergence below this is rounding
_LONGEST = 1e4  # windows; a factor's change of 1e-4 of its size is all that float32 leaves of a longer one


@dataclass(frozen=True)
class ControllerConfig:
    """The dials of `auto`, each with the default that held on both lab tasks (docs/auto.md has the trials).

    Attributes:
        every: optimizer steps a window.
        beta1: Adam's first-moment decay, which sets the zero point of persistence.
        screen: a search forward needs an excess above this.
        oscillates: a step back is looked at below this excess.
        straight: two windows in a row with an excess above this say that `target` is too small for this model.
        target: divergence, in nats a token, by which a window should move the policy, until the run shows that it
            bears more.
        far: divergence beyond which a window, or a leap, is too long; it grows with `target`.
        stages: held-out prompts that every candidate, and then the contenders, are scored on.
        level: standard errors of the paired difference by which a leap forward must beat staying put.
        fall: fall of a window's mean reward below the best windows so far that calls for a step back or an undo; for
            a best beyond 1 in size it counts as a share of that size.
        fall_errors: the same fall in standard errors, which it must exceed too.
        patience: most windows that a forward search waits after searches that changed nothing; it waits 1, 2, 4, ...
        share: completions that searches may take as a share of those trained on; a step back after a fall is exempt.
        advance: completions that searches may take before that; twice as many for what a straight path asks for.
        validate: False never searches: the divergence alone sets the rate (a control; no leap, no completions).
    """

    every: int = DEFAULT_WINDOW
    beta1: float = DEFAULT_BETA1
    screen: float = 0.25
    oscillates: float = -0.4
    straight: float = 0.6
    target: float = 0.02
    far: float = 0.1
    stages: tuple[int, ...] = (16, 32, 64)
    level: float = 2.0
    fall: float = 0.08
    fall_errors: float = 2.5
    patience: int = 8
    share: float = 0.0125
    advance: int = 192
    validate: bool = True

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"every must be at least 1 step, not {self.every}")
        if not 0.0 < self.target <= self.far:
            raise InputError(f"target must be above 0 and at most far, not {self.target} and {self.far}")
        if not self.stages or list(self.stages) != sorted(set(self.stages)) or self.stages[0] < 2:
            raise InputError(f"stages must be ascending numbers of prompts from 2 on, not {self.stages}")
        if self.patience < 1:
            raise InputError(f"patience must be at least 1 window, not {self.patience}")


@dataclass(frozen=True)
class Window:
    """What a run shows at the end of a window, without spending anything.

    Attributes:
        step: optimizer steps so far.
        persistence: cosine of this window's displacement of the effective weights with the previous window's (leaps
            between them left out), or None for the first window.
        rewards: mean training reward of each step of the window, in order; NaN where none was measured.
        rate: the learning rate the window was trained at.
        trained: completions that the run has been trained on so far, which the search's budget is a share of; None
            where unknown, which lifts the budget.
    """

    step: int
    persistence: float | None
    rewards: tuple[float, ...]
    rate: float
    trained: int | None = None

    @property
    def reward(self) -> float:
        """Mean training reward of the window."""
        measured = self._measured()
        return sum(measured) / len(measured) if measured else math.nan

    @property
    def variance(self) -> float:
        """Squared standard error of `reward`, from the spread of the steps; 0.0 where fewer than two are measured."""
        measured = self._measured()
        n = len(measured)
        return sum((r - self.reward) ** 2 for r in measured) / (n - 1) / n if n > 1 else 0.0

    @property
    def falls(self) -> bool:
        """Whether the last third of the window earned less than its first third."""
        measured = self._measured()
        part = max(1, len(measured) // 3)
        return len(measured) > 1 and sum(measured[-part:]) < sum(measured[:part])

    def _measured(self) -> list[float]:
        return [r for r in self.rewards if not math.isnan(r)]


@dataclass(frozen=True)
class Decision:
    """What to do at the end of a window.

    Attributes:
        alpha: how far to leap, in windows; 0 stays put, -1 undoes the window.
        rate_factor: the learning rate is to be multiplied by this.
        reason: one clause for logs.
        excess: excess persistence, None in the first window.
        scores: mean held-out reward by candidate; empty where nothing was searched.
        completions: completions that the search took.
        divergence: what the window moved the policy by, nats a token; None where it could not be measured.
        refused: candidates that the score function would not have, with why.
    """

    alpha: float
    rate_factor: float
    reason: str
    excess: float | None
    scores: Mapping[float, float]
    completions: int
    divergence: float | None = None
    refused: Mapping[float, str] = field(default_factory=dict)


class Controller:
    """The decisions of `auto`, with the little memory they need. Feed it one window after the other."""

    def __init__(self, config: ControllerConfig | None = None) -> None:
        self.config = config or ControllerConfig()
        self._zero = adam_persistence(self.config.every, self.config.beta1)
        # A glance misses the window's last step, and divergence grows with the square of a straight path.
        self._whole = (self.config.every / max(1, self.config.every - 1)) ** 2
        self._latest: tuple[float, float] | None = None
        self._best: tuple[float, float] | None = None
        self._wait = 0
        self._fruitless = 0
        self._spent = 0
        self._straight = 0
        self._scale = 1.0

    @property
    def target(self) -> float:
        """Divergence by which a window should move the policy, nats a token, by what the run has shown to bear."""
        return self.config.target * self._scale

    @property
    def far(self) -> float:
        """Divergence beyond which a window or a leap is too long, nats a token, by the same measure."""
        return self.config.far * self._scale

    def step(self, window: Window, score: Score, diverge: Diverge, glance: Diverge | None = None) -> Decision:
        """Decide at the end of a window.

        Args:
            window: what the run shows.
            score: scores one alpha on a stretch of the window's held-out prompts.
            diverge: how far the policy is from where it would be after one alpha; costs no completions.
            glance: the same, cheaper and rougher, of the policy before the window's last step: asked first, but in
                the first window, and alone where its answer leaves nothing open.
        """
        above = None if window.persistence is None else excess(window.persistence, self._zero)
        fell = self._fell(window)
        self._wait = max(0, self._wait - 1)
        self._straight = self._straight + 1 if above is not None and above > self.config.straight else 0
        moved = math.nan if glance is None or above is None else glance(-1.0) * self._whole
        # Known to a factor of two: that decides where it is not near `far` and no search is to follow.
        settled = fell or (moved <= self.far / 2 and self._rests(window, above, moved) is not None)
        if math.isnan(moved) or not settled:
            moved = diverge(-1.0)
        decision = self._choose(window, score, diverge, above, moved, fell)
        self._spent += decision.completions
        return replace(decision, excess=above, divergence=None if math.isnan(moved) else moved)

    def _fell(self, window: Window) -> bool:
        """Whether the reward lies below the best pair of windows, past `fall` (of its scale) and past the noise.

        Pairs, because the best of many noisy windows is mostly luck.
        """
        if math.isnan(window.reward):
            return False
        latest, self._latest = self._latest, (window.reward, window.variance)
        if self._best is not None:
            best, variance = self._best
            noise = self.config.fall_errors * math.sqrt(window.variance + variance)
            if best - window.reward > max(self.config.fall * max(1.0, abs(best)), noise):
                return True
        before = latest or self._latest
        pair = ((before[0] + window.reward) / 2, (before[1] + window.variance) / 4)
        if self._best is None or pair[0] > self._best[0]:
            self._best = pair
        return False

    def _choose(
        self, window: Window, score: Score, diverge: Diverge, above: float | None, moved: float, fell: bool
    ) -> Decision:
        config = self.config
        if fell:
            return self._fallen(score, moved)
        if window.rate <= 0.0:
            return _stay("the learning rate has decayed to nothing")
        if moved > self.far:
            return self._too_far(window, score, moved, first=above is None)
        if above is not None and above < config.oscillates:
            return self._oscillating(window, score)
        if why := self._rests(window, above, moved):
            return _stay(why)
        goal = _FURTHER * moved if self._enough(moved) else self.target
        return self._forward(score, diverge, moved, goal, _cause(above), first=above is None)

    def _rests(self, window: Window, above: float | None, moved: float) -> str | None:
        """Why there is no search forward after a window that moved the policy by `moved`; None where there is one."""
        config, why = self.config, _cause(above)
        if above is not None and above <= config.screen:
            return "persistence is what Adam's own memory leaves"
        if math.isnan(moved):
            return f"{why}, but no rollouts are there to measure it on"
        enough, straight = self._enough(moved), self._straight > 1 and config.validate
        if enough and not straight:
            return f"{why}, and moves the policy as far as it should"
        if config.validate and not self._affordable(window, further=enough):
            return f"{why}, but the search's budget is used up for now"
        if self._wait:
            return f"{why}, but the last search changed nothing: waiting"
        return None

    def _enough(self, moved: float) -> bool:
        """Whether a window moved the policy about as far as it should."""
        return moved > self.target / 2

    def _affordable(self, window: Window, *, further: bool = False) -> bool:
        """Whether another search fits the budget; the first are advanced: a run far too low must start somehow."""
        if window.trained is None:
            return True
        advance = self.config.advance * (2 if further else 1)
        return self._spent < advance + self.config.share * window.trained

    def _fallen(self, score: Score, moved: float) -> Decision:
        decision = self._back(score, self._ways_back(moved), "the training reward fell", level=0.0)
        if decision.alpha == 0.0:
            # The fall is what the run now is: the next one is measured from here.
            self._best = self._latest
        return decision

    def _too_far(self, window: Window, score: Score, moved: float, *, first: bool) -> Decision:
        """Lower the rate: divergence goes with the square of it.

        To where a window moves the policy by `target` in the first window, by `far` later: what comes later is one
        window among many that did not, often a burst of learning. A run far too high is ruined within its first
        window, before any other could show a fall: it is undone then.
        """
        why = f"the window moved the policy {moved:.2g} nats a token"
        factor = max(0.1, math.sqrt((self.target if first else self.far) / moved))
        if first and window.falls:
            decision = self._back(score, self._ways_back(moved), why, level=0.0)
            if decision.alpha:
                return replace(decision, rate_factor=min(factor, decision.rate_factor))
        return replace(_stay(f"{why}: a lower rate"), rate_factor=factor)

    def _oscillating(self, window: Window, score: Score) -> Decision:
        """A step back where it helps; without one, half the rate.

        Lowering the rate needs no validation: at worst the next windows persist and are searched.
        """
        half = replace(_stay("the path oscillates: half the rate"), rate_factor=0.5)
        if not self._affordable(window):
            return half
        decision = self._back(score, (-0.5,), "the path oscillates", level=1.0)
        return decision if decision.alpha else replace(decision, rate_factor=0.5, reason=half.reason)

    def _ways_back(self, moved: float) -> tuple[float, ...]:
        """Half the window and all of it; half leaves a quarter of the divergence, which may be too far itself."""
        return (-1.0,) if moved > 4.0 * self.far else (-0.5, -1.0)

    def _back(self, score: Score, candidates: Sequence[float], why: str, level: float) -> Decision:
        if not self.config.validate:
            return replace(_stay(f"{why}: a third of the rate"), rate_factor=BACK[-0.5])
        scores = Scores(score)
        for alpha in candidates:
            scores.extend(alpha, self.config.stages[0])
        refine(scores, self.config.stages, max(level, 1.0))
        alpha = scores.best(level)
        return _decision(alpha, BACK[alpha] if alpha else 1.0, scores, why)

    def _forward(
        self, score: Score, diverge: Diverge, moved: float, goal: float, why: str, *, first: bool
    ) -> Decision:
        """One or two candidates, at divergences worth a look, against staying put.

        Early, and only then, a leap as far as `far` can win much. The rate follows the leap that won: a window
        repeated alpha times is one trained at 1 + alpha times the rate on the same gradients. Where the reward is
        still flat no leap can win, but the nearer one that does no harm shows that the rate is too low.
        """
        config = self.config
        near = _reaching(diverge, goal, moved)
        if near >= _LONGEST and not first:
            # Collapsed onto one answer: what persists is momentum gliding, and all candidates earn the same.
            return _stay(f"{why}, but no length of it moves the policy")
        if not config.validate:
            return replace(_stay(f"{why}: a window {1 + near:.3g} times as long"), rate_factor=1.0 + near)
        scores = Scores(score)
        scores.extend(near, config.stages[0])
        for _ in range(2):
            if near in scores.refused:
                # Samples of the current policy do not show what a candidate would newly say: half as far, then.
                near = float(f"{near / 2:.3g}")
                scores.extend(near, config.stages[0])
        if first and not scores.refused and (far := _reaching(diverge, config.far, moved)) > near:
            scores.extend(far, config.stages[0])
        refine(scores, config.stages, config.level)
        alpha = scores.best(config.level)
        harmless = alpha or not scores.worse(near, config.level if first else 1.0)
        pace = 1.0 + (alpha or near) if harmless and _tell_apart(scores) else 1.0
        if pace > 1.0:
            # `near` may have been halved since, but the windows to come are (1 + near) times as long.
            self._scale = max(self._scale, goal / config.target)
        self._fruitless = 0 if pace > 1.0 else self._fruitless + 1
        self._wait = 0 if pace > 1.0 else min(config.patience, 2 ** (self._fruitless - 1)) + 1
        return _decision(alpha, pace, scores, why)

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, as JSON-ready values."""
        memory = {
            "latest": self._latest,
            "best": self._best,
            "wait": self._wait,
            "fruitless": self._fruitless,
            "spent": self._spent,
            "straight": self._straight,
            "scale": self._scale,
        }
        return {"config": asdict(self.config), "memory": memory}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the memory of `state()`; the configuration stays the one this controller was built with."""
        memory = state["memory"]
        self._latest, self._best = (
            None if pair is None else (pair[0], pair[1]) for pair in (memory["latest"], memory["best"])
        )
        self._wait, self._fruitless, self._spent = memory["wait"], memory["fruitless"], memory["spent"]
        self._straight, self._scale = memory["straight"], memory["scale"]


def _reaching(diverge: Diverge, goal: float, moved: float) -> float:
    """The alpha, to 3 digits, that moves the policy by about `goal` (to half of it either way).

    Divergence grows with alpha squared near 0; further out, and where `moved` is too small to be more than rounding,
    a guess is corrected by what it measures, and halved in between once it is known to lie between two. Where it
    leaps from far below the goal to far above, the longest alpha that was measured below is the answer.
    """
    alpha, below, above = math.sqrt(goal / max(moved, _TINY)), 0.0, math.inf
    for _ in range(8):
        alpha = min(alpha, _LONGEST)
        found = diverge(alpha)
        if 0.67 * goal < found < 1.5 * goal:
            return float(f"{alpha:.3g}")
        below, above = (alpha, above) if found < goal else (below, alpha)
        guess = alpha * min(10.0, max(0.1, math.sqrt(goal / max(found, _TINY))))
        alpha = math.sqrt(below * above) if below > 0.0 and above < math.inf else guess
    # Not rounded up: what lies beyond was measured to be too far.
    return min(float(f"{below:.3g}"), below) if below > 0.0 else float(f"{alpha:.3g}")


def _tell_apart(scores: Scores) -> bool:
    """Whether the held-out rewards vary at all; where they do not, neither harm nor its absence can show."""
    return float(scores.rewards[0.0].std()) > 0.0


def _cause(above: float | None) -> str:
    return "the first window" if above is None else "the path persists"


def _stay(reason: str) -> Decision:
    return Decision(0.0, 1.0, reason, None, {}, 0)


def _decision(alpha: float, rate_factor: float, scores: Scores, why: str) -> Decision:
    outcome = "no candidate beats staying put" if alpha == 0 else f"alpha {alpha:g} beats staying put"
    if alpha == 0.0 and rate_factor > 1.0:
        outcome = f"alpha {rate_factor - 1.0:g} does no harm"
    refusals = "".join(f"; alpha {a:g} refused: {because}" for a, because in scores.refused.items())
    return Decision(
        alpha,
        rate_factor,
        f"{why}: {outcome}{refusals}",
        None,
        scores.means(),
        scores.completions(),
        refused=dict(scores.refused),
    )
