"""What `nextrl advise` answers: leap, raise the learning rate, go on, average, or lower it, and what that rests on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from typing import Any, Literal

from nextrl.judge.advice_features import AdviceFeatures
from nextrl.judge.backtest_scores import NONE
from nextrl.judge.regime import Regime

Action = Literal["leap", "raise_lr", "continue", "average", "lower_lr"]
WORDS: dict[Action, str] = {
    "leap": "raise the learning rate",
    "raise_lr": "raise the learning rate",
    "continue": "go on as it is",
    "average": "average the last checkpoints",
    "lower_lr": "lower the learning rate",
}
"""What each advice says about training, beside the leap that may be worth a test."""


@dataclass(frozen=True)
class RateEvidence:
    """Where the best learning rate lay, on the runs of docs/advice.md that got the same advice.

    Attributes:
        lowest, highest: of the rates that end within .02 of the best one, as multiples of the run's own, the extremes
            over all cases.
        cases: how many.
    """

    lowest: float
    highest: float
    cases: int

    def __str__(self) -> str:
        return (
            f"on the {self.cases} tiny runs that looked like this the best rate was {self.lowest:g} to "
            f"{self.highest:g} times the run's own (docs/advice.md)"
        )


# From studies/advice/raw; a test counts them again.
RATE_EVIDENCE: dict[str, RateEvidence] = {
    "signal": RateEvidence(2.5, 200, 17),
    "mixed": RateEvidence(1, 200, 25),
    "too high": RateEvidence(0.1, 0.4, 11),
    "ruined": RateEvidence(0.025, 0.1, 12),
}


@dataclass(frozen=True, repr=False, kw_only=True)
class Advice:
    """What to do.

    Attributes:
        regime: "signal", "mixed" or "noise", as `regime.MEANING` explains them.
        advice: the action.
        confidence: "low", "medium" or "high".
        reasons: sentences with figures.
        features: the measurements.
        method, horizon: of the leap advised, None where none is.
        factor: what to multiply the learning rate by, None where it should stay. It is the cautious end of what is
            known: a lower bound where the rate is to rise, an upper bound where it is to fall.
        evidence: the whole range, where runs like this one have been seen.
        withheld: whether nothing is said of the rate, because nothing says how many updates a step holds, or
            how much momentum the optimizer has, or because lately all rewards were the same.
    """

    regime: Regime
    advice: Action
    confidence: str
    reasons: tuple[str, ...]
    features: AdviceFeatures
    method: str | None = None
    horizon: int | None = None
    factor: float | None = None
    evidence: RateEvidence | None = None
    withheld: bool = False

    @property
    def recommended(self) -> str:
        """The method of the leap that is worth a test, or "none"."""
        return self.method if self.advice == "leap" and self.method else NONE

    @property
    def starts_over(self) -> bool:
        """Whether the policy is past saving, so that nothing is gained by going on from its last checkpoint."""
        return self.evidence == RATE_EVIDENCE["ruined"]

    @property
    def judged(self) -> Regime | None:
        """The regime; None where it would be another for another momentum, which nothing says."""
        return None if self.withheld and self.features.momentum_unsaid else self.regime

    @property
    def headline(self) -> str:
        """What to do, as a clause."""
        if self.withheld:
            return "no leap, and no word on the learning rate"
        bound = ""
        if self.factor is not None:
            bound = f" (x {self.factor:.2g} or {'more' if self.factor > 1 else 'less'})"
        words = f"{WORDS[self.advice]}{bound}"
        if self.recommended == NONE:
            return f"no leap; {words}"
        return f"test a leap with {self.method}, {self.horizon} steps ahead, and {words}"

    @property
    def answer(self) -> str:
        """What to do and why, the same words from every verb."""
        return " ".join((f"{self.headline[0].upper()}{self.headline[1:]}.", *self.reasons[1:]))

    def as_dict(self) -> dict[str, Any]:
        """The object that `nextrl advise --json` prints."""
        f = self.features
        return {
            "persistence": {str(w.steps): {"c": w.c, "c0": w.c0, "excess": w.e} for w in f.windows},
            "regime": self.judged,
            "advice": self.advice,
            "withheld": self.withheld,
            "confidence": self.confidence,
            "method": self.method,
            "horizon": self.horizon,
            "factor": self.factor,
            "factor_range": None if self.evidence is None else [self.evidence.lowest, self.evidence.highest],
            "recommended": self.recommended,
            "answer": self.answer,
            "reasons": list(self.reasons),
            "features": asdict(f) | {"excess": f.excess},
        }

    def __repr__(self) -> str:
        return f"Advice({self.headline}; regime {self.regime}, confidence {self.confidence})"

    def _repr_html_(self) -> str:
        """The answer and what it rests on, for a notebook."""
        return f"<p><b>{escape(self.answer)}</b></p><p>{escape(self.reasons[0])} Confidence: {self.confidence}.</p>"

    def __str__(self) -> str:
        return f"{self.advice} ({self.regime}, confidence {self.confidence}). " + " ".join(self.reasons)
