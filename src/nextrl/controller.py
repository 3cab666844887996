"""`auto`: when to leap, how far, and what the learning rate becomes. Pure decisions; no trainer, no tensors of a model.

A run is cut into windows of `every` steps. At the end of each the controller is shown what the run shows for free
(`Window`: persistence, training rewards, rate) and a function that scores a candidate leap on held-out prompts. In
most windows it calls that function not at all. Where it does, it compares candidates pairwise with staying put and
answers with one alpha and a factor for the learning rate. The rate rises only by what was validated: persistence
alone never raises it.

alpha counts windows: a candidate is `theta + alpha (theta - theta_window_start)` inside the LoRA factors, so 8 means
"eight more windows like the last" and -1 "undo the last window". What stays comparable from window to window is
not alpha but alpha times the rate (`reach`): after a leap of 8 the rate rises and each window is longer. The
controller remembers the longest reach that paid, where the next search starts, and the shortest that hurt, which no
later search pays for again until it has faded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nextrl.errors import InputError
from nextrl.persistence import adam_persistence, excess
from nextrl.search import Score, Scores, grid_search


@dataclass(frozen=True)
class ControllerConfig:
    """The dials of `auto`, each with the default that held on both lab tasks (docs/auto.md has the trials).

    Attributes:
        every: optimizer steps a window.
        beta1: Adam's first-moment decay, which sets the zero point of persistence.
        screen: a search forward needs an excess above this, a step back one below minus this.
        grid: candidate alphas forward, ascending; a search visits at most `candidates` of them.
        candidates: most candidates scored in one search, staying put included.
        level: standard errors of the paired difference by which a leap must beat staying put.
        fall: fall of a window's mean reward below the best window so far that calls for a step back or an undo; for
            a best window beyond 1 in size it counts as a share of that size.
        fall_errors: the same fall in standard errors, which it must exceed too.
        fade: factor by which a reach that hurt is believed to grow tolerable, a window.
        share: completions that searches may take as a share of those trained on; a step back after a fall is exempt.
    """

    every: int = 10
    beta1: float = 0.9
    screen: float = 0.25
    grid: tuple[float, ...] = (2.0, 8.0, 32.0, 128.0)
    candidates: int = 4
    level: float = 1.0
    fall: float = 0.08
    fall_errors: float = 2.5
    fade: float = 1.3
    share: float = 0.06

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"every must be at least 1 step, not {self.every}")
        if not self.grid or list(self.grid) != sorted(set(self.grid)) or self.grid[0] <= 0:
            raise InputError(f"grid must be positive alphas in ascending order, not {self.grid}")
        if self.candidates < 2:
            raise InputError(
                f"candidates must be at least 2 (staying put and one leap), not {self.candidates}"
            )


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
        refused: candidates that the score function would not have, with why.
    """

    alpha: float
    rate_factor: float
    reason: str
    excess: float | None
    scores: Mapping[float, float]
    completions: int
    refused: Mapping[float, str] = field(default_factory=dict)


class Controller:
    """The decisions of `auto`, with the little memory they need. Feed it one window after the other."""

    def __init__(self, config: ControllerConfig | None = None) -> None:
        self.config = config or ControllerConfig()
        self._zero = adam_persistence(self.config.every, self.config.beta1)
        self._best_reward: float | None = None
        self._best_variance = 0.0
        self._good_reach: float | None = None
        self._bad_reach = math.inf
        self._spent = self._last_price = 0

    def step(self, window: Window, score: Score) -> Decision:
        """Decide at the end of a window.

        Args:
            window: what the run shows.
            score: scores one alpha on the window's held-out prompts; always the same prompts and random numbers
                within one call of `step`.
        """
        above = None if window.persistence is None else excess(window.persistence, self._zero)
        fell = self._fell(window)
        self._bad_reach *= self.config.fade
        decision = self._choose(window, score, above, fell)
        if decision.completions:
            self._spent += decision.completions
            self._last_price = decision.completions
        return decision

    def _fell(self, window: Window) -> bool:
        """Whether the reward lies below the best window's, past `fall` (of its scale) and past the noise of both."""
        if math.isnan(window.reward):
            return False
        best, variance = self._best_reward, self._best_variance
        if best is None or window.reward > best:
            self._best_reward, self._best_variance = window.reward, window.variance
            return False
        noise = self.config.fall_errors * math.sqrt(window.variance + variance)
        return best - window.reward > max(self.config.fall * max(1.0, abs(best)), noise)

    def _choose(self, window: Window, score: Score, above: float | None, fell: bool) -> Decision:
        if fell:
            return self._back(score, (-0.5, -1.0), "the training reward fell", above, level=0.0)
        if not self._affordable(window):
            return Decision(0.0, 1.0, "the search's budget is used up for now", above, {}, 0)
        if window.rate <= 0.0:
            return Decision(0.0, 1.0, "the learning rate has decayed to nothing", above, {}, 0)
        if above is not None and above < -self.config.screen:
            return self._oscillating(score, above)
        if above is None or above > self.config.screen:
            return self._forward(score, window.rate, above)
        return Decision(0.0, 1.0, "persistence is what Adam's own memory leaves", above, {}, 0)

    def _affordable(self, window: Window) -> bool:
        """Whether another search fits the budget; two are advanced, since a run far too low must start somehow."""
        if window.trained is None:
            return True
        return self._spent <= self._last_price + self.config.share * window.trained

    def _back(
        self, score: Score, candidates: tuple[float, ...], why: str, above: float | None, level: float
    ) -> Decision:
        scores = grid_search(score, candidates)
        alpha = scores.best(level)
        return self._decision(alpha, scores, why, above)

    def _oscillating(self, score: Score, above: float) -> Decision:
        """A step back where it helps; without one, half the rate where the path turns back most of its way.

        Lowering the rate needs no validation: at worst the next window persists and is searched.
        """
        decision = self._back(score, (-0.5,), "the path oscillates", above, level=0.0)
        if decision.alpha == 0.0 and above < -2.0 * self.config.screen:
            return replace(decision, rate_factor=0.5, reason="the path oscillates strongly: half the rate")
        return decision

    def _forward(self, score: Score, rate: float, above: float | None) -> Decision:
        why = "the first window" if above is None else "the path persists"
        allowed = [a for a in self.config.grid if a * rate < self._bad_reach]
        if not allowed:
            return Decision(0.0, 1.0, f"{why}, but as short a leap hurt lately", above, {}, 0)
        scores = self._climb(score, self._start(allowed, rate), allowed)
        if above is None:
            # A run far too high is ruined within its first window, before any other window could show a fall.
            scores.add(-1.0, score)
        for alpha in (*scores.rewards, *scores.refused):
            if alpha > 0.0 and scores.worse(alpha, self.config.level):
                self._bad_reach = min(self._bad_reach, alpha * rate)
        alpha = scores.best(self.config.level)
        if alpha > 0.0:
            self._good_reach = alpha * rate
        if alpha:
            return self._decision(alpha, scores, why, above)
        return self._tolerated(scores, why, above)

    def _tolerated(self, scores: Scores, why: str, above: float | None) -> Decision:
        """No leap, but a faster pace where the path persists and a longer step did no harm at all.

        A reward that is still flat cannot show that a leap helps; it can show that the step is too short to matter.
        """
        harmless = [a for a in scores.rewards if a > 0.0 and scores.gain(a) >= 0.0]
        decision = self._decision(0.0, scores, why, above)
        if above is None or not harmless:
            return decision
        return replace(
            decision,
            rate_factor=rate_factor(max(harmless)),
            reason=f"{why}: alpha {max(harmless):g} does no harm",
        )

    def _start(self, allowed: list[float], rate: float) -> float:
        """The candidate nearest, on a log scale, to the reach that paid last (8 windows before any did)."""
        wanted = 8.0 if self._good_reach is None else self._good_reach / rate
        return min(allowed, key=lambda a: abs(math.log(a / wanted)))

    def _climb(self, score: Score, start: float, allowed: list[float]) -> Scores:
        """Staying put and the start; then further while that does not lose, or one step nearer where it does."""
        scores = grid_search(score, (start,))
        position = allowed.index(start)
        if scores.worse(start, self.config.level):
            if position > 0:
                nearer = allowed[position - 1]
                scores.add(nearer, score)
            return scores
        for here, further in zip(allowed[position:], allowed[position + 1 :], strict=False):
            if len(scores) >= self.config.candidates:
                break
            scores.add(further, score)
            if scores.gain(further, over=here) < 0.0:
                break
        return scores

    def _decision(self, alpha: float, scores: Scores, why: str, above: float | None) -> Decision:
        outcome = "no candidate beats staying put" if alpha == 0 else f"alpha {alpha:g} beats staying put"
        refusals = "".join(f"; alpha {a:g} refused: {because}" for a, because in scores.refused.items())
        return Decision(
            alpha,
            rate_factor(alpha),
            f"{why}: {outcome}{refusals}",
            above,
            scores.means(),
            scores.completions(),
            dict(scores.refused),
        )

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, as JSON-ready values."""
        bad = None if math.isinf(self._bad_reach) else self._bad_reach
        memory = {
            "best_reward": self._best_reward,
            "best_variance": self._best_variance,
            "good_reach": self._good_reach,
            "bad_reach": bad,
            "spent": self._spent,
            "last_price": self._last_price,
        }
        return {"config": asdict(self.config), "memory": memory}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the memory of `state()`; the configuration stays the one this controller was built with."""
        memory = state["memory"]
        self._best_reward, self._best_variance = memory["best_reward"], memory["best_variance"]
        self._good_reach = memory["good_reach"]
        self._bad_reach = math.inf if memory["bad_reach"] is None else memory["bad_reach"]
        self._spent, self._last_price = memory["spent"], memory["last_price"]


def rate_factor(alpha: float) -> float:
    """What a validated alpha says about the learning rate.

    A window that could be repeated alpha times was taken at a rate up to 1 + alpha too low; its square root is
    taken, since the leap averaged over a window what a higher rate would have to do step by step. A validated step
    back divides the rate by 3, an undo by 5.
    """
    if alpha <= -1.0:
        return 0.2
    if alpha < 0.0:
        return 1.0 / 3.0
    return math.sqrt(1.0 + alpha)
