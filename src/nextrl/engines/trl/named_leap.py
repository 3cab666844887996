"""A method of the registry inside a trainer: fitted on the run's own recent checkpoints, alpha searched or given.

The counterpart of `controller` for everything that is not `auto`. It never changes the learning rate: what a method
says about the path says nothing about the rate (docs/auto.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nextrl.engines.live_adapter import LiveAdapter, State
from nextrl.engines.trl.history import AdapterHistory
from nextrl.errors import InputError
from nextrl.extrapolators import check_alpha, get
from nextrl.extrapolators.alphas import WIDE_ALPHAS
from nextrl.judge.controller import Decision
from nextrl.judge.paired_search import Score, Scores, refine
from nextrl.leaps.leap import leap

ALPHAS = (-0.5, *WIDE_ALPHAS)
PATIENCE = 8  # most windows without a search after searches in which staying put won


class NamedLeap:
    """When a method is asked, what it proposes, and which alpha is taken.

    Args:
        method: an extrapolator's name.
        horizon: steps ahead that alpha = 1 stands for.
        alpha: take this one, unseen; None searches `alphas` and staying put on held-out prompts.
        alphas: candidates of a search.
        at: leap at these steps only; None at the end of every window.
        stages: held-out prompts that every candidate, and then the contenders, are scored on.
        level: standard errors of the paired difference by which a leap must beat staying put.
        seed: of methods that draw random numbers.

    Raises:
        InputError: unknown method, a horizon below 1, an alpha out of range.
    """

    def __init__(
        self,
        method: str,
        horizon: int,
        alpha: float | None,
        alphas: Sequence[float],
        at: Sequence[int] | None,
        stages: Sequence[int],
        level: float,
        seed: int,
    ) -> None:
        if horizon < 1:
            raise InputError(f"the horizon must be at least 1 step, not {horizon}")
        self._learns_accuracy = hasattr(get(method), "accuracy")
        self.method, self.horizon, self.at = method, horizon, None if at is None else frozenset(at)
        self._alpha = None if alpha is None else check_alpha(alpha)
        self._alphas = tuple(check_alpha(a) for a in alphas)
        self._stages, self._level, self._seed = tuple(stages), level, seed
        self._fruitless = self._wait = 0

    def ends_window(self, step: int) -> bool:
        """Whether a window has to end at this step whatever its length."""
        return self.at is not None and step in self.at

    def resting(self, step: int) -> str | None:
        """Why nothing is tried at this step; None where something is."""
        if self.at is not None:
            return None if step in self.at else "no leap is due"
        if self._wait:
            self._wait -= 1
            return "the last searches stayed put: waiting"
        return None

    def fit(self, history: AdapterHistory, adapter: LiveAdapter) -> Callable[[float], State]:
        """alpha -> the adapter after the leap, at its own rank, in the gauge that Adam's moments belong to.

        Raises:
            InputError: too few checkpoints for the horizon yet, or an adapter that does not move.
        """
        params: dict[str, Any] = {"accuracy": history.accuracy()} if self._learns_accuracy else {}
        fitted = leap(history.trajectory(adapter), self.method, self.horizon, seed=self._seed, **params)

        def candidate(alpha: float) -> State:
            chosen, state = replace(fitted, alpha=alpha), {}
            for module, (key_a, key_b, _) in adapter.pairs.items():
                a, b = chosen.factors(module)
                state[key_a], state[key_b] = a.to(adapter.parameters[key_a]), b.to(adapter.parameters[key_b])
            return state

        return candidate

    def choose(self, score: Score) -> Decision:
        """The alpha to take, after a search where none was given."""
        if self._alpha is not None:
            return _decision(self._alpha, f"{self.method}: alpha {self._alpha:g} as given")
        scores = Scores(score)
        for candidate in self._alphas:
            scores.extend(candidate, self._stages[0])
        refine(scores, self._stages, self._level)
        alpha = scores.best(self._level)
        self._fruitless = 0 if alpha else self._fruitless + 1
        self._wait = 0 if alpha else min(PATIENCE, 2 ** (self._fruitless - 1))
        outcome = f"alpha {alpha:g} beats staying put" if alpha else "no candidate beats staying put"
        refused = "".join(f"; alpha {a:g} refused: {because}" for a, because in scores.refused.items())
        return _decision(alpha, f"{self.method}: {outcome}{refused}", scores)

    def stay(self, reason: str) -> Decision:
        """Nothing to do."""
        return _decision(0.0, f"{self.method}: {reason}")

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, as JSON-ready values."""
        return {"fruitless": self._fruitless, "wait": self._wait}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the memory of `state()`."""
        self._fruitless, self._wait = state["fruitless"], state["wait"]


def _decision(alpha: float, reason: str, scores: Scores | None = None) -> Decision:
    if scores is None:
        return Decision(alpha, 1.0, reason, None, {}, 0)
    refused = dict(scores.refused)
    return Decision(alpha, 1.0, reason, None, scores.means(), scores.completions(), refused=refused)
