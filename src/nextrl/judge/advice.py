"""What to do with a run now, from its checkpoints alone: leap, raise its learning rate, go on, average, or lower it.

`advice_features` measures, `decide` rules on the measurements only, so that the rule can be recalibrated from a table
of features without touching a checkpoint. The thresholds come from tiny runs (docs/advice.md: 430k parameters, two
tasks, LoRA with Adam at a constant rate); nothing larger has been tried. What the excess persistence is called is
not this module's business: `regime` says that for everybody.

This is the one recommender: `nextrl advise`, `nextrl backtest`, `nextrl leap` without `--method` and reports all say
`Advice.answer`, so that one run gets one answer whichever verb is asked.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Any, Literal

from nextrl.errors import InputError, shown
from nextrl.judge.advice_features import ALL_ALIKE, AdviceFeatures, features
from nextrl.judge.backtest import Backtest
from nextrl.judge.backtest_scores import NONE
from nextrl.judge.regime import OSCILLATES, SCATTER, SIGNAL, PersistenceWindow, Regime, regime_of
from nextrl.trajectory.given import Run, trajectory_of
from nextrl.trajectory.trainer_log import BETA1_UNKNOWN, UPDATES_UNKNOWN
from nextrl.trajectory.trajectory import Trajectory

Action = Literal["leap", "raise_lr", "continue", "average", "lower_lr"]


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
# How much to raise the rate by: `auto` follows a validated leap of alpha = 8 with x3 and one of alpha = 2
# with x2.
RAISE: dict[Regime, float] = {"signal": 3.0, "mixed": 2.0, "noise": 2.0}
# After an overshoot: `auto` divides by three. A ruined run was 10 to 40 times too high in the lab.
LOWER, START_OVER = 1 / 3, 1 / 10
WORDS: dict[Action, str] = {
    "leap": "raise the learning rate",
    "raise_lr": "raise the learning rate",
    "continue": "go on as it is",
    "average": "average the last checkpoints",
    "lower_lr": "lower the learning rate",
}
"""What each advice says about training, beside the leap that may be worth a test."""
_HARDER = "Prompts that became harder, as in a curriculum, look the same."
# Without rewards there is no gradient, and momentum alone leaves a path as straight as that of a rate far too low.
_NO_REWARDS = "No rewards were found: a ruined run looks the same, so look at them first."


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
        return None if self.withheld and _unsaid(self.features) else self.regime

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


def advise(traj: Run, tested: Backtest | None = None, *, updates_per_step: int | None = None) -> Advice:
    """Measure and decide.

    Args:
        traj: the run, or its folder.
        tested: its backtest, where there is one already; by default the methods of `CANDIDATES` are tried.
        updates_per_step: optimizer updates in each step, at least 1; None: as the run's files say.

    Raises:
        InputError: no run that can be read, a backtest of another or of what came later; and as `features`.
    """
    if tested is not None and not isinstance(tested, Backtest):
        raise InputError(f"tested must be what nextrl.backtest returned, not {shown(tested)}")
    traj = trajectory_of(traj)
    if tested is not None:
        _refuse_of_another_run(traj, tested)
    return decide(features(traj, tested, updates_per_step))


def _refuse_of_another_run(traj: Trajectory, tested: Backtest) -> None:
    """Refuse scores that saw more of the run than the run that is advised on holds."""
    seen = {
        step for scores in tested.horizons.values() for t, h in scores.spans.items() for step in (t, t + h)
    }
    if beyond := sorted(seen - set(traj.steps)):
        raise InputError(
            f"tested was measured at step {beyond[-1]}, which this run (steps {traj.steps[0]} to {traj.steps[-1]}) "
            "does not have: backtest the same run"
        )


def decide(f: AdviceFeatures, thresholds: Thresholds = DEFAULT) -> Advice:
    """The rule: danger first, then direction, then whether there is anything left to gain by going on.

    Where nothing says how many updates a step holds, or the optimizer's file not how much momentum there is, an answer
    stands that is the same for one update and for so many that momentum carries nothing from window to window; any
    other is withheld.

    Args:
        f: measurements, from `features` or from a stored table.
        thresholds: where it turns.
    """
    one = _decide(f, thresholds)
    if one.withheld or not _unsaid(f):
        return one
    missing = UPDATES_UNKNOWN if f.updates is None else BETA1_UNKNOWN
    without_memory = tuple(replace(window, c0=0.0, e=window.c) for window in f.windows)
    if _decide(replace(f, windows=without_memory), thresholds).advice != one.advice:
        said = f"{missing[0].upper()}{missing[1:]}."
        return _say(f, "continue", "low", said, withheld=True)
    said = "How many updates a step holds is not known (--updates-per-step N says it); this holds for any number."
    if f.updates is not None:
        said = "How much momentum the optimizer has is not known; this holds with none and with Adam's."
    return replace(one, confidence="low", reasons=(*one.reasons, said))


def _unsaid(f: AdviceFeatures) -> bool:
    """Whether nothing says how straight momentum alone would make the path."""
    return f.updates is None or f.beta1_unsaid


def _decide(f: AdviceFeatures, thresholds: Thresholds) -> Advice:
    """The rule, with the windows' excess as it is.

    The thresholds are of constant rates. Where `auto` set the rate its word stands, since it saw single steps and fresh
    batches; where a schedule did, the advice stands with little confidence.
    """
    advice = _of_unknown_rewards(_of_a_constant_rate(f, thresholds), f, thresholds)
    if advice.withheld:
        return advice
    if f.auto:
        return _beside_auto(advice, f, thresholds)
    return _of_a_schedule(advice, f, thresholds) if f.steady is False else advice


def _of_unknown_rewards(advice: Advice, f: AdviceFeatures, t: Thresholds) -> Advice:
    """The advice, with little confidence where it hangs on what nobody knows of the rewards.

    Only rewards tell a rate too low from one that ruined the run, and only rewards whose best is known from one that is
    learning fast.
    """
    if advice.advice in ("leap", "raise_lr"):
        missing = _NO_REWARDS if f.reward is None else "" if f.unit else _holds_where(f, t)
    else:
        missing = _if_more_could_be_earned(f, t) if advice.advice == "average" else ""
    return replace(advice, confidence="low", reasons=(*advice.reasons, missing)) if missing else advice


def _best_unknown(f: AdviceFeatures) -> str:
    several = f"a sum of {f.functions} rewards" if f.functions > 1 else "a reward that is no share of 1"
    return f"How much is left to gain of {several} is not known"


def _holds_where(f: AdviceFeatures, t: Thresholds) -> str:
    """How much must be left to gain for a straight path to be a rate too low, where the best reward is not known.

    The excess is above faster + closing * share, and the share is what the last three windows gained over that and what
    is left.
    """
    share = (f.excess - t.faster) / t.closing
    left = max(0.0, f.rise or 0.0) * max(0.0, 1.0 / share - 1.0)
    more = f"more than {left:.2g} is" if left > 0.0 else "anything is"
    return f"{_best_unknown(f)}: this holds where {more}, and else the path is straight because the run has learned."


def _if_more_could_be_earned(f: AdviceFeatures, t: Thresholds) -> str:
    """What else a flat reward without direction may be, where its best is not known and it is where it began."""
    if f.reward is None or f.unit or f.excess > t.faster or f.gained > _no_rise(f, t):
        return ""
    return (
        f"{_best_unknown(f)}, and it is where it began: if there is much, the run shakes without learning, and "
        "the rate is too high."
    )


def _beside_auto(advice: Advice, f: AdviceFeatures, t: Thresholds) -> Advice:
    """The advice for a run whose rate `auto` set: no other rate, but where nothing is left to lose."""
    first, *rest = advice.reasons
    said = f"This run was under auto, which sets the rate by itself: {f.auto}."
    if _ruined(f, t):
        return replace(advice, reasons=(first, said, *rest))
    if advice.advice == "average" and f.cooled:
        cooled = (
            "The rate fell at the end, which gains what an average would: use the last checkpoint as it is."
        )
        return replace(
            advice, advice="continue", method=None, confidence="low", reasons=(first, said, cooled)
        )
    if advice.factor is None:
        return replace(advice, confidence="low", reasons=(first, said, *rest))
    said = (
        f"{said} At a constant rate such checkpoints would say to {WORDS[advice.advice]}; of a rate that auto moved "
        "they say less than it saw."
    )
    return _say(f, "continue", "low", said)


def _of_a_schedule(advice: Advice, f: AdviceFeatures, t: Thresholds) -> Advice:
    """The advice for a run whose rate was not constant."""
    if f.rate is None or f.rate_now is None or _ruined(f, t):
        return advice
    said = (
        f"The learning rate was not constant ({f.rate:.3g} at its highest, {f.rate_now:.3g} at last), and the "
        "thresholds are of constant rates: the confidence is low."
    )
    return replace(advice, confidence="low", reasons=(*advice.reasons, said))


def _of_a_constant_rate(f: AdviceFeatures, t: Thresholds) -> Advice:
    """What to do where the rate was constant."""
    if f.same is not None and not _ruined(f, t):
        return _without_differences(f, f.same)
    if danger := _too_high(f, t):
        return _lower(f, danger, t)
    too_low = f.excess > t.faster + t.closing * f.closing and not _at_its_best(f, t)
    return _raise(f, t) if too_low else _keep(f, t)


def _without_differences(f: AdviceFeatures, same: float) -> Advice:
    """No word on the rate where no completion earned more than another: no reward has moved these weights."""
    best = (
        " It is the best there is: nothing is left to gain on these prompts."
        if f.unit and same == 1.0
        else ""
    )
    said = (
        f"Every reward of the last three windows is {same:.3g}: {ALL_ALIKE}, and a path that goes on is momentum, "
        f"weight decay or a penalty for leaving the reference.{best}"
    )
    return _say(f, "continue", "low", said, withheld=True)


def _say(f: AdviceFeatures, action: Action, confidence: str, *reasons: str, **more: Any) -> Advice:
    """An answer whose first reason is the persistence that was measured; `more`: other attributes of `Advice`."""
    return Advice(
        regime=regime_of(f.excess),
        advice=action,
        confidence=confidence,
        reasons=(_persistence_sentence(f), *reasons),
        features=f,
        **more,
    )


def _lower(f: AdviceFeatures, danger: list[str], t: Thresholds) -> Advice:
    """A lower rate; `danger` are the signs that it is too high."""
    ruined = _ruined(f, t)
    several = len(danger) > 1
    sure = "high" if ruined or several else _sure_of_shaking(f, t) if _shakes(f, t) else "medium"
    seen = RATE_EVIDENCE["ruined" if ruined else "too high"]
    how_far = f"How far down is not in the checkpoints: {seen}."
    return _say(f, "lower_lr", sure, *danger, how_far, factor=START_OVER if ruined else LOWER, evidence=seen)


def _raise(f: AdviceFeatures, t: Thresholds) -> Advice:
    """A higher rate, and a leap where a method did well on the run's own past."""
    regime = regime_of(f.excess)
    factor, evidence = RAISE[regime], RATE_EVIDENCE.get(regime)
    how_far = "" if evidence is None else f"That is the least: {evidence}."
    if f.recommended != NONE and regime == "signal":
        why = (
            f"On its own past {f.recommended} at a horizon of {f.horizon} had a skill of {f.skill:.2f}; whether a leap "
            f"pays in reward only held-out prompts can say. The rate is too low by a factor of {factor:g} or more. "
            f"{how_far}"
        )
        sure = "high" if f.excess > SIGNAL + SCATTER / 2 and f.skill > 0.5 else "medium"
        leap = {"method": f.recommended, "horizon": f.horizon}
        return _say(f, "leap", sure, why, factor=factor, evidence=evidence, **leap)
    use = f"A rate {factor:g} times higher, or more, would use that direction. {how_far}".rstrip()
    if regime == "noise":
        use = (
            "The path keeps a little more direction than momentum gives it, hardly enough to tell: a rate "
            f"{factor:g} times higher, or more, may use it."
        )
    reasons = [use]
    if f.backtested and f.recommended == NONE:
        reasons.append("No method beat standing still on the run's past, so a leap is not advised.")
    return _say(f, "raise_lr", _sure(f, t), *reasons, factor=factor, evidence=evidence)


def _ruined(f: AdviceFeatures, t: Thresholds) -> bool:
    """Whether there is no gradient left, so that the run cannot come back."""
    return _all_but_gone(f, t) or _stuck(f, t)


def _stuck(f: AdviceFeatures, t: Thresholds) -> bool:
    """Whether the reward fell to where no completion earns more than another, whatever unit it comes in."""
    return f.same is not None and _fell(f, t)


def _all_but_gone(f: AdviceFeatures, t: Thresholds) -> bool:
    """Whether hardly any reward is left, and does not come back.

    Nothing says how much is left of a reward whose lowest is not 0.
    """
    if _rises(f, t):
        return False
    start = max((r for r in (f.best, f.first) if r is not None), default=0.0)
    if f.reward is None or min(f.reward, start, f.lowest or 0.0) < 0.0:
        return False
    return f.reward < t.ruined * start and start - f.reward > (f.fall_by_chance or 0.0)


def _fell(f: AdviceFeatures, t: Thresholds) -> bool:
    """Whether the reward fell below its best by more than chance would bring, and by enough to matter."""
    if f.reward is None or f.best is None:
        return False
    return f.best - f.reward > max(_matters(f, t), f.fall_by_chance or 0.0)


def _matters(f: AdviceFeatures, t: Thresholds) -> float:
    """How large a change of the reward is one that matters."""
    if f.fall_by_chance is None or f.best is None:
        return t.fall
    return min(t.fall, t.lost * f.best) if f.unit else t.lost * f.span


def _rises(f: AdviceFeatures, t: Thresholds) -> bool:
    """Whether the reward rose over the last three windows, by more than chance would bring and by enough to matter."""
    return f.rise is not None and f.rise > _no_rise(f, t)


def _at_its_best(f: AdviceFeatures, t: Thresholds) -> bool:
    """Whether less is left to gain than would count as a gain."""
    return f.unit and f.reward is not None and 1.0 - f.reward < t.flat


def _no_rise(f: AdviceFeatures, t: Thresholds) -> float:
    """Up to where a rise is none: what chance would bring, and what does not matter."""
    return t.flat if f.rise_by_chance is None else max(t.still * f.span, f.rise_by_chance)


def _shakes(f: AdviceFeatures, t: Thresholds) -> bool:
    """Whether the path has no direction and the reward is where it began, with something left to gain."""
    if _at_its_best(f, t) or f.learned is None or f.learned >= t.learned or f.excess > t.faster:
        return False
    return f.rise_by_chance is None or f.gained <= f.rise_by_chance


def _too_high(f: AdviceFeatures, t: Thresholds) -> list[str]:
    """Signs that the rate is too high, a sentence each; none if there are none.

    The path alone does not show it: without rewards there is no gradient, and what is left of Adam's momentum glides as
    straight as a run whose rate is far too low.
    """
    signs = []
    if _ruined(f, t):
        signs.append(
            f"{_lost(f, t)}, and a straight path may be only momentum. Start over, from before the fall, at about a "
            f"tenth of the rate. {_HARDER}"
        )
    elif _fell(f, t):
        again = f", and rises again ({f.rise:+.2g} over the last windows)" if _rises(f, t) else ""
        signs.append(
            f"The reward fell from {f.best:.3g} at best to {f.reward:.3g} in the last window{again}. {_HARDER}"
        )
    if f.excess < t.oscillates - t.closing_back * f.closing:
        signs.append("Successive windows undo each other: the run oscillates.")
    elif not signs and _shakes(f, t):
        signs.append(
            f"The path has no direction and the reward is where it began ({f.first:.3g}, now {f.reward:.3g}): at "
            "this rate the run shakes without learning. Start over at a lower one."
        )
    return signs


def _lost(f: AdviceFeatures, t: Thresholds) -> str:
    """What is left of a reward that is lost, as a clause."""
    why = "hardly any reward leaves hardly any gradient" if f.same is None else ALL_ALIKE
    if _all_but_gone(f, t):
        best = max(f.best or 0.0, f.first or 0.0)
        return f"The reward is all but gone ({f.reward:.3g}, {best:.3g} at best): {why}"
    return f"The reward fell from {f.best:.3g} at best to {f.reward:.3g}, all of it the same: {why}"


def _keep(f: AdviceFeatures, t: Thresholds) -> Advice:
    """Go on, or average once the reward is flat and the path has no direction."""
    best = _at_its_best(f, t)
    straight = _nothing_left(f) if best else _straight_as_it_learns(f)
    if _rises(f, t):
        still = f"The reward still rises ({f.rise:+.2g} over the last windows): go on."
        return _say(f, "continue", _sure(f, t), *straight, still)
    if len(f.windows) < 2:
        few = "Too few windows lie between the checkpoints to average: go on."
        return _say(f, "continue", "low", *straight, few)
    if straight and not best:
        return _say(f, "continue", "low", *straight, "The path still has a direction: go on.")
    why, hidden = _flat(f, t)
    return _say(f, "average", "low" if hidden else _sure(f, t), *straight, why, method="lawa")


def _nothing_left(f: AdviceFeatures) -> list[str]:
    return [f"The reward is {f.reward:.3g} of at most 1: no other rate could gain anything that counts."]


def _straight_as_it_learns(f: AdviceFeatures) -> list[str]:
    """Why a path with a direction is no sign of a rate too low; nothing of one without."""
    if regime_of(f.excess) == "noise":
        return []
    return [
        f"The last three windows closed {f.closing:.0%} of the room left, so a straight path is no sign of a rate too "
        "low."
    ]


def _flat(f: AdviceFeatures, t: Thresholds) -> tuple[str, bool]:
    """Why to average, and whether a rise that matters may be hidden in the reward's noise."""
    if f.rise is None:
        unknown = "No rewards were found, so whether it still improves is unknown; averaging costs nothing."
        return unknown, False
    if f.rise_by_chance is not None and f.rise_by_chance > _matters(f, t):
        noise = f"{f.rise:+.2g} over the last windows, and up to {_no_rise(f, t):+.2g} may be chance"
        return (
            f"No rise of the reward stands out from its noise ({noise}): average the last checkpoints.",
            True,
        )
    noise = "" if f.rise <= 0.0 else f", and up to {_no_rise(f, t):+.2g} counts as none"
    return (
        f"The reward is flat ({f.rise:+.2g} over the last windows{noise}): average the last checkpoints.",
        False,
    )


def _sure(f: AdviceFeatures, t: Thresholds) -> str:
    """How far the excess lies from the nearest edge, in units of its scatter; rewards add to it."""
    edges = (t.faster + t.closing * f.closing, t.oscillates - t.closing_back * f.closing)
    edge = min(abs(f.excess - e) for e in edges) * math.sqrt(len(f.windows))
    if edge < SCATTER / 2:
        return "low"
    return "high" if edge > SCATTER and f.reward is not None else "medium"


def _sure_of_shaking(f: AdviceFeatures, t: Thresholds) -> str:
    """As `_sure`; but nobody can be sure that the reward is where it began if it rose, and its noise is unknown."""
    return "low" if f.rise_by_chance is None and f.gained > t.flat else _sure(f, t)


def _persistence_sentence(f: AdviceFeatures) -> str:
    parts = ", ".join(f"{w.c:.2f} over {_length(w)} (momentum alone: {w.c0:.2f})" for w in f.windows)
    missing = "an optimizer.pt that does not say it" if f.beta1_unsaid else "no optimizer.pt that can be read"
    source = "the optimizer's own" if f.beta1_known else f"assumed; {missing}"
    each = f" and {f.updates} updates in each step" if f.updates != 1 else ""
    each = " and one update in each step, which is not known" if f.updates is None else each
    at = f"Persistence at step {f.step} is {parts}"
    return f"{at}; excess {f.excess:+.2f} with beta1 = {f.beta1:g} ({source}){each}."


def _length(window: PersistenceWindow) -> str:
    after = "" if window.before is None else f" after {window.before}"
    return f"{window.steps} steps{after}"
