"""`auto`: when to leap, how far, and what the learning rate becomes. Pure decisions; no trainer, no tensors of a model.

A run is cut into windows of `every` steps. At the end of each window the controller sees what the run shows for free
(`Window`: persistence, training rewards and rate; `Diverge`: how far the window moved the policy) and a function that
scores a candidate leap on held-out prompts, which it calls in few windows. A search is due where the path keeps its
direction and yet hardly moves the policy. The divergence says which leaps are worth a look, so that a search has one or
two candidates; a paired comparison with staying put decides. The rate rises only as far as a candidate did no harm. It
falls without a search where a window moved the policy too far or the path oscillates.

How many nats a window may move a policy by depends on the model, so `target` and `far` are where a run begins: a path
that stays far straighter than Adam's memory explains, while its windows move the policy, calls for a search further
out, and what does no harm there becomes the new measure.

`alpha` counts windows: a candidate is `theta + alpha (theta - theta_window_start)` inside the LoRA factors, so 8 means
"eight more windows like the last" and -1 means "undo the last window".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from nextrl.engines.verl.reach import LONGEST, reaching
from nextrl.engines.verl.reward_fall import RewardFall
from nextrl.engines.verl.segment_config import SegmentConfig
from nextrl.judge.acceptance import Acceptance
from nextrl.judge.decision import Decision, searched, stay
from nextrl.judge.paired_search import Score, Scores, refine
from nextrl.judge.window import Diverge, Window
from nextrl.trajectory import persistence

BACK = {-0.5: 1.0 / 3.0, -1.0: 0.2}
"""What a step back does to the learning rate: a third after half a window, a fifth after an undo."""

_FURTHER = 4.0
"""Divergence wanted of a search further out, in windows: it grows quadratically, so four times is twice as far."""


class SegmentController:
    """The decisions of `auto`, with the little memory they need. Feed it one window after the other."""

    def __init__(self, config: SegmentConfig | None = None) -> None:
        self.config = config or SegmentConfig()
        self._zero = persistence.adam_persistence(self.config.every, self.config.memory)
        # A glance misses the window's last step, and divergence grows with the square of a straight path.
        self._whole = (self.config.every / max(1, self.config.every - 1)) ** 2
        self._reward = RewardFall(self.config.fall, self.config.fall_errors)
        self._wait = 0
        self._fruitless = 0
        self._spent = 0
        self._straight = 0
        self._scale = 1.0

    @property
    def target(self) -> float:
        """Divergence by which a window should move the policy, nats per token, by what the run has shown to bear."""
        return self.config.target * self._scale

    @property
    def far(self) -> float:
        """Divergence beyond which a window or a leap is too long, nats per token, by the same measure."""
        return self.config.far * self._scale

    def step(self, window: Window, score: Score, diverge: Diverge, glance: Diverge | None = None) -> Decision:
        """Decide at the end of a window.

        Args:
            window: what the run shows.
            score: scores one alpha on a stretch of the window's held-out prompts.
            diverge: how far the policy is from where it would be after one alpha; costs no completions.
            glance: a cheaper and rougher `diverge`, from the policy before the window's last step. It is asked first
                (except in the first window), and `diverge` only where its answer leaves something open.
        """
        excess = None
        if window.persistence is not None:
            excess = persistence.excess(window.persistence, self._zero)
        fell = self._reward.fell(window)
        self._wait = max(0, self._wait - 1)
        self._straight = self._straight + 1 if excess is not None and excess > self.config.straight else 0
        divergence = math.nan if glance is None or excess is None else glance(-1.0) * self._whole
        # Known to a factor of two: that decides where it is not near `far` and no search is to follow.
        settled = fell or (divergence <= self.far / 2 and self._rests(window, excess, divergence) is not None)
        if math.isnan(divergence) or not settled:
            divergence = diverge(-1.0)
        decision = self._choose(window, score, diverge, excess, divergence, fell)
        self._spent += decision.completions
        return replace(decision, excess=excess, divergence=None if math.isnan(divergence) else divergence)

    def _choose(
        self,
        window: Window,
        score: Score,
        diverge: Diverge,
        excess: float | None,
        divergence: float,
        fell: bool,
    ) -> Decision:
        config = self.config
        if fell:
            return self._fallen(score, divergence)
        if window.rate <= 0.0:
            return stay("the learning rate has decayed to nothing")
        if divergence > self.far:
            return self._too_far(window, score, divergence, first=excess is None)
        if excess is not None and excess < config.oscillates:
            return self._oscillating(window, score)
        if why := self._rests(window, excess, divergence):
            return stay(why)
        goal = _FURTHER * divergence if self._enough(divergence) else self.target
        return self._forward(score, diverge, divergence, goal, _cause(excess), first=excess is None)

    def _rests(self, window: Window, excess: float | None, divergence: float) -> str | None:
        """Why there is no search forward after such a window; None where there is one."""
        config, why = self.config, _cause(excess)
        if excess is not None and excess <= config.screen:
            return "persistence is what Adam's own memory leaves"
        if math.isnan(divergence):
            return f"{why}, but no rollouts are there to measure it on"
        enough, straight = self._enough(divergence), self._straight > 1 and config.search
        if enough and not straight:
            return f"{why}, and moves the policy as far as it should"
        if config.search and not self._affordable(window, further=enough):
            return f"{why}, but the search's budget is used up for now"
        if self._wait:
            return f"{why}, but the last search changed nothing: waiting"
        return None

    def _enough(self, divergence: float) -> bool:
        """Whether a window moved the policy about as far as it should."""
        return divergence > self.target / 2

    def _affordable(self, window: Window, *, further: bool = False) -> bool:
        """Whether another search fits the budget; the first are advanced: a run far too low must start somehow."""
        if window.trained is None:
            return True
        advance = self.config.advance * (2 if further else 1)
        return self._spent < advance + self.config.share * window.trained

    def _fallen(self, score: Score, divergence: float) -> Decision:
        decision = self._back(score, self._ways_back(divergence), "the training reward fell", level=0.0)
        if decision.alpha == 0.0:
            self._reward.accept()
        return decision

    def _too_far(self, window: Window, score: Score, divergence: float, *, first: bool) -> Decision:
        """Lower the rate, with which divergence grows quadratically.

        After the first window it goes to where a window moves the policy by `target`. Later it goes only to `far`: one
        window among many that went too far is often a burst of learning. A rate far too high ruins a run within its
        first window, before any other window could show a fall, so that one is undone where that helps.
        """
        why = f"the window moved the policy {divergence:.2g} nats per token"
        factor = max(0.1, math.sqrt((self.target if first else self.far) / divergence))
        if first and window.falls:
            decision = self._back(score, self._ways_back(divergence), why, level=0.0)
            if decision.alpha:
                return replace(decision, rate_factor=min(factor, decision.rate_factor))
        return replace(stay(f"{why}: a lower rate"), rate_factor=factor)

    def _oscillating(self, window: Window, score: Score) -> Decision:
        """A step back where it helps; without one, half the rate.

        Lowering the rate needs no validation: at worst the next windows persist and are searched.
        """
        half = replace(stay("the path oscillates: half the rate"), rate_factor=0.5)
        if not self._affordable(window):
            return half
        decision = self._back(score, (-0.5,), "the path oscillates", level=1.0)
        return decision if decision.alpha else replace(decision, rate_factor=0.5, reason=half.reason)

    def _ways_back(self, divergence: float) -> tuple[float, ...]:
        """Half the window and all of it; half leaves a quarter of the divergence, which may be too far itself."""
        return (-1.0,) if divergence > 4.0 * self.far else (-0.5, -1.0)

    def _back(self, score: Score, candidates: Sequence[float], why: str, level: float) -> Decision:
        if not self.config.search:
            return replace(stay(f"{why}: a third of the rate"), rate_factor=BACK[-0.5])
        alpha, scores = Acceptance(self.config.stages, level).choose(score, candidates)
        return searched(why, alpha, scores, BACK[alpha] if alpha else 1.0)

    def _forward(
        self, score: Score, diverge: Diverge, divergence: float, goal: float, why: str, *, first: bool
    ) -> Decision:
        """One or two candidates, at divergences worth a look, against staying put.

        In the first window a second candidate goes as far as `far`: early, and only then, that can win much. The rate
        follows the leap that won, since a window repeated alpha times is one trained at 1 + alpha times the rate on the
        same gradients. Where the reward is still flat no leap can win, but a nearer one that does no harm shows that
        the rate is too low.
        """
        config = self.config
        near = reaching(diverge, goal, divergence)
        if near >= LONGEST and not first:
            # Collapsed onto one answer: what persists is momentum gliding, and all candidates earn the same.
            return stay(f"{why}, but no length of it moves the policy")
        if not config.search:
            return replace(stay(f"{why}: a window {1 + near:.3g} times as long"), rate_factor=1.0 + near)
        scores = Scores(score)
        scores.extend(near, config.stages[0])
        for _ in range(2):
            if near in scores.refused:
                # Samples of the current policy do not show what a candidate would newly say: half as far, then.
                near = float(f"{near / 2:.3g}")
                scores.extend(near, config.stages[0])
        if first and not scores.refused and (far := reaching(diverge, config.far, divergence)) > near:
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
        return searched(why, alpha, scores, pace)

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, as JSON-ready values."""
        memory = {
            **self._reward.state(),
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
        self._reward.restore(memory)
        self._wait, self._fruitless, self._spent = memory["wait"], memory["fruitless"], memory["spent"]
        self._straight, self._scale = memory["straight"], memory["scale"]


def _tell_apart(scores: Scores) -> bool:
    """Whether the held-out rewards vary at all; where they do not, neither harm nor its absence can show."""
    return float(scores.rewards[0.0].std()) > 0.0


def _cause(excess: float | None) -> str:
    return "the first window" if excess is None else "the path persists"
