"""What is decided at the end of a window (`Decision`), what is written down of it (`DecisionRecord`), and in words.

The record is the same everywhere: a line of `nextrl_decisions.jsonl`, an entry of an arm's record and of
`result.json`, a row of the page, a line of a verl run's log (docs/formats.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nextrl.files import MAX_STEP
from nextrl.judge.fresh_batch import BatchGain
from nextrl.judge.paired_search import Scores

Back = Literal["", "step", "window", "run"]
Step = Annotated[int, Field(ge=0, le=MAX_STEP)]
Count = Annotated[int, Field(ge=0)]
_HIGHEST = 1e12
Rate = Annotated[float, Field(ge=0.0, le=_HIGHEST, allow_inf_nan=False)]
"""A learning rate, or a factor of one."""

_FORMER = {"saved_steps_estimate": "claimed_steps"}
"""Names that fields have in published records of studies -> their names now."""

_DROPPED = {"leg", "persistence", "excess"}
"""Fields of those records that nothing asks for any more."""


@dataclass(frozen=True)
class Decision:
    """What to do at the end of a window.

    Attributes:
        alpha: how far to leap, in horizons of a named method; 0 stays put, -1 takes back what `back` names.
        rate_factor: the learning rate is to be multiplied by this.
        reason: one clause for logs.
        scores: mean held-out reward by candidate; empty where nothing was searched.
        completions: completions that the search took.
        unscored: those of them that could not be scored, and are in no comparison.
        divergence: what the window moved the policy by, nats per token; None where it could not be measured.
        refused: candidates that the score function would not have, with why.
        horizon: steps that a named method's alpha = 1 stands for; None for `auto` and where no leap was due.
        discarded: share of the leap's squared norm that the adapter's rank cannot hold.
        fit_seconds: what fitting the method took.
        back: what is taken back, the last step, the whole window or all of the run; empty where nothing is.
        looks: what the batch sampled after the window said of each alpha.
    """

    alpha: float
    rate_factor: float
    reason: str
    scores: Mapping[float, float]
    completions: int
    divergence: float | None = None
    refused: Mapping[float, str] = field(default_factory=dict)
    horizon: int | None = None
    discarded: float = 0.0
    fit_seconds: float = 0.0
    back: Back = ""
    looks: Mapping[float, BatchGain] = field(default_factory=dict)
    unscored: int = 0


def stay(reason: str) -> Decision:
    """Nothing to do, at no cost."""
    return Decision(alpha=0.0, rate_factor=1.0, reason=reason, scores={}, completions=0)


def searched(why: str, alpha: float, scores: Scores) -> Decision:
    """The decision that a search led to, with its outcome in words.

    Args:
        why: what the search was for.
        alpha: the candidate taken, 0.0 for staying put.
        scores: what was seen of each.
    """
    outcome = "no candidate beats staying put" if alpha == 0.0 else f"alpha {alpha:g} beats staying put"
    refusals = "".join(f"; alpha {a:g} refused: {because}" for a, because in scores.refused.items())
    return Decision(
        alpha=alpha,
        rate_factor=1.0,
        reason=f"{why}: {outcome}{refusals}",
        scores=scores.means(),
        completions=scores.completions(),
        unscored=scores.not_scored(),
        refused=dict(scores.refused),
    )


class DecisionRecord(BaseModel):
    """One decision as it is written down; numbers that could not be measured are None.

    Attributes:
        step: optimizer steps of the run at the decision.
        method: "auto" or the extrapolator's name.
        alpha: the leap that was made; 0.0 where none was.
        learning_rate: the rate after the decision.
        lr_factor: that rate over what the run would have without any change of it; None where that is not known.
        reason: one clause.
        divergence: what the window, or the step, moved the policy by, nats per token.
        reward: mean training reward of the window.
        scores: mean held-out reward by candidate, the key being its alpha as text; "0" is staying put.
        divergences: nats per token by which candidates forward left the policy.
        gains: what the batch sampled after the window expects of each alpha, in units of its advantages; -1 is the
            window's start, 1 such a window again.
        errors: their standard errors.
        back: what was taken back, "step", "window" or "run".
        cost_completions: completions that searches have taken so far, this one included.
        claimed_steps: steps that leaps claim to have skipped so far, searches charged: nobody ran the other run.
        rolled_back: the step of the leap that was taken back here.
        horizon, discarded: of a named method, see `Decision`.
        completions: completions that this search took.
        unscored: those of them that could not be scored, and are in no comparison.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __repr__(self) -> str:
        what = done(self) or "nothing is done"
        rate = "" if self.learning_rate is None else f", learning rate now {self.learning_rate:.3g}"
        return f"DecisionRecord(step {self.step}, {self.method}: {what}{rate}; {self.reason})"

    __str__ = __repr__

    step: Step
    method: str = "auto"
    alpha: Annotated[float, Field(allow_inf_nan=False)]
    learning_rate: Rate | None = None
    lr_factor: Rate | None = None
    reason: str
    divergence: float | None = None
    reward: float | None = None
    scores: dict[str, float | None] = {}
    divergences: dict[str, float | None] = {}
    cost_completions: Count = 0
    claimed_steps: float | None = None
    rolled_back: Step | None = None
    horizon: int | None = None
    discarded: float = 0.0
    completions: Count = 0
    unscored: Count = 0
    gains: dict[str, float | None] = {}
    errors: dict[str, float | None] = {}
    back: Back = ""
    rate_factor: Rate = 1.0

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {_FORMER.get(name, name): value for name, value in values.items() if name not in _DROPPED}

    @field_validator("divergence", "reward", "claimed_steps", mode="before")
    @classmethod
    def _measured(cls, value: Any) -> Any:
        # JSON has no NaN and no infinity: what could not be measured is null there.
        return None if isinstance(value, float) and not math.isfinite(value) else value

    @field_validator("scores", "divergences", "gains", "errors", mode="before")
    @classmethod
    def _by_alpha(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {
            alpha if isinstance(alpha, str) else f"{alpha:g}": cls._measured(value)
            for alpha, value in values.items()
        }

    @classmethod
    def of(cls, decision: Decision, **facts: Any) -> DecisionRecord:
        """The record of a decision; `facts` are the fields that the decision itself does not hold.

        A rate that no optimizer can have (NaN, from a broken schedule) is written down as not known.
        """
        own = {f.name for f in fields(Decision)} & cls.model_fields.keys()
        looks = {
            alpha: look.slope if look.degenerate else look.gain for alpha, look in decision.looks.items()
        }
        seen = {
            "gains": {alpha: gain.value for alpha, gain in looks.items()},
            "errors": {alpha: gain.error for alpha, gain in looks.items()},
            "divergences": {alpha: look.nats_k2 for alpha, look in decision.looks.items()},
        }
        for name in ("learning_rate", "lr_factor"):
            rate = facts.get(name)
            if rate is not None and not 0.0 <= rate <= _HIGHEST:
                facts[name] = None
        return cls(**{**seen, **{name: getattr(decision, name) for name in own}, **facts})

    @property
    def accepted(self) -> bool:
        """Whether a leap was made; to take something back is none, though its alpha is -1."""
        return self.alpha != 0.0 and not self.back

    @property
    def undone(self) -> bool:
        """Whether something was taken back, be it a step, a window, all of the run or a leap of before."""
        return bool(self.back) or self.rolled_back is not None

    @property
    def asked(self) -> bool:
        """Whether something was tried or done: a leap scored, made or taken back, a method asked, a rate changed."""
        changed = self.accepted or self.undone or self.rate_factor != 1.0
        return changed or bool(self.scores) or self.horizon is not None


class Told(Protocol):
    """What a decision's words are made of; `DecisionRecord` has it, and an entry of `result.json`."""

    @property
    def back(self) -> str | None: ...
    @property
    def rolled_back(self) -> float | None: ...
    @property
    def alpha(self) -> float | None: ...
    @property
    def rate_factor(self) -> float | None: ...


def done(decision: Told) -> str | None:
    """What was done, as a clause; None where nothing was."""
    if decision.back == "run":
        return "the run begins again"
    if decision.back:
        return f"the {decision.back} is taken back"
    if decision.rolled_back is not None:
        return f"the leap of step {decision.rolled_back:g} is taken back"
    if decision.alpha:
        return f"leapt, alpha {decision.alpha:g}"
    if decision.rate_factor is not None and decision.rate_factor != 1.0:
        return f"learning rate times {decision.rate_factor:.3g}"
    return None
