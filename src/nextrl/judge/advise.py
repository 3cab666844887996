"""The recommender: what to do with a run now, from its checkpoints alone.

`advice_features` measures, `decide` rules on the measurements only, so that the rule can be recalibrated from a table
of features without touching a checkpoint; `advice_signs` holds its thresholds. What the excess persistence is called is
not this module's business: `regime` says that for everybody.

This is the one recommender: `nextrl advise`, `nextrl backtest`, `nextrl leap` without `--method` and reports all say
`Advice.answer`, so that one run gets one answer whichever verb is asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from nextrl.errors import InputError, shown
from nextrl.judge.advice import RATE_EVIDENCE, WORDS, Action, Advice
from nextrl.judge.advice_features import ALL_ALIKE, AdviceFeatures, features
from nextrl.judge.advice_signs import DEFAULT, Signs, Thresholds
from nextrl.judge.backtest import Backtest
from nextrl.judge.backtest_scores import NONE
from nextrl.judge.regime import SCATTER, SIGNAL, PersistenceWindow, Regime, regime_of
from nextrl.trajectory.given import Run, trajectory_of
from nextrl.trajectory.trainer_log import BETA1_UNKNOWN, UPDATES_UNKNOWN
from nextrl.trajectory.trajectory import Trajectory

# How much to raise the rate by: `auto` follows a validated leap of alpha = 8 with x3 and one of alpha = 2
# with x2.
RAISE: dict[Regime, float] = {"signal": 3.0, "mixed": 2.0, "noise": 2.0}
# After an overshoot: `auto` divides by three. A ruined run was 10 to 40 times too high in the lab.
LOWER, START_OVER = 1 / 3, 1 / 10
_HARDER = "Prompts that became harder, as in a curriculum, look the same."
# Without rewards there is no gradient, and momentum alone leaves a path as straight as that of a rate far too low.
_NO_REWARDS = "No rewards were found: a ruined run looks the same, so look at them first."


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
    stands that is the same for all momentum that there may be (`_other_momenta`); any other is withheld.

    Args:
        f: measurements, from `features` or from a stored table.
        thresholds: where it turns.
    """
    one = _decide(Signs(f, thresholds))
    if one.withheld or not f.momentum_unsaid:
        return one
    missing = UPDATES_UNKNOWN if f.updates is None else BETA1_UNKNOWN
    if any(
        _decide(Signs(replace(f, windows=windows), thresholds)).advice != one.advice
        for windows in _other_momenta(f)
    ):
        said = f"{missing[0].upper()}{missing[1:]}."
        return _say(f, "continue", "low", said, withheld=True)
    said = "How many updates a step holds is not known (--updates-per-step N says it); this holds for any number."
    if f.updates is not None:
        said = "How much momentum the optimizer has is not known; this holds for any."
    return replace(one, confidence="low", reasons=(*one.reasons, said))


def _other_momenta(f: AdviceFeatures) -> Iterator[tuple[PersistenceWindow, ...]]:
    """The windows as they would be with other momentum than was assumed, where nothing says how much there is.

    With none that carries on to the next window, which is what many updates in a step come to; and, where an
    optimizer's file is there that does not say it, with so much that it explains all direction that was seen (Lion's
    memory is ten times that of Adam).
    """
    yield tuple(replace(window, c0=0.0, e=window.c) for window in f.windows)
    if f.beta1_unsaid:
        yield tuple(replace(window, e=min(window.e, 0.0)) for window in f.windows)


def _decide(s: Signs) -> Advice:
    """The rule, with the windows' excess as it is.

    The thresholds are of constant rates. Where `auto` set the rate its word stands, since it saw single steps and fresh
    batches; where a schedule did, the advice stands with little confidence.
    """
    advice = _of_unknown_rewards(_of_a_constant_rate(s), s)
    if advice.withheld:
        return advice
    if s.features.auto:
        return _beside_auto(advice, s)
    return _of_a_schedule(advice, s) if s.features.steady is False else advice


def _of_unknown_rewards(advice: Advice, s: Signs) -> Advice:
    """The advice, with little confidence where it hangs on what nobody knows of the rewards.

    Only rewards tell a rate too low from one that ruined the run, and only rewards whose best is known from one that is
    learning fast.
    """
    f = s.features
    if advice.advice in ("leap", "raise_lr"):
        missing = _NO_REWARDS if f.reward is None else "" if f.unit else _holds_where(s)
    else:
        missing = _if_more_could_be_earned(s) if advice.advice == "average" else ""
    return replace(advice, confidence="low", reasons=(*advice.reasons, missing)) if missing else advice


def _best_unknown(f: AdviceFeatures) -> str:
    several = f"a sum of {f.functions} rewards" if f.functions > 1 else "a reward that is no share of 1"
    return f"How much is left to gain of {several} is not known"


def _holds_where(s: Signs) -> str:
    """How much must be left to gain for a straight path to be a rate too low, where the best reward is not known.

    The excess is above faster + closing * share, and the share is what the last three windows gained over that and what
    is left.
    """
    f = s.features
    share = (f.excess - s.thresholds.faster) / s.thresholds.closing
    left = max(0.0, f.rise or 0.0) * max(0.0, 1.0 / share - 1.0)
    more = f"more than {left:.2g} is" if left > 0.0 else "anything is"
    return f"{_best_unknown(f)}: this holds where {more}, and else the path is straight because the run has learned."


def _if_more_could_be_earned(s: Signs) -> str:
    """What else a flat reward without direction may be, where its best is not known and it is where it began."""
    f = s.features
    if f.reward is None or f.unit or f.excess > s.thresholds.faster or f.gained > s.no_rise:
        return ""
    return (
        f"{_best_unknown(f)}, and it is where it began: if there is much, the run shakes without learning, and "
        "the rate is too high."
    )


def _beside_auto(advice: Advice, s: Signs) -> Advice:
    """The advice for a run whose rate `auto` set: no other rate, but where nothing is left to lose."""
    f = s.features
    first, *rest = advice.reasons
    said = f"This run was under auto, which sets the rate by itself: {f.auto}."
    if s.ruined:
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


def _of_a_schedule(advice: Advice, s: Signs) -> Advice:
    """The advice for a run whose rate was not constant."""
    f = s.features
    if f.rate is None or f.rate_now is None or s.ruined:
        return advice
    said = (
        f"The learning rate was not constant ({f.rate:.3g} at its highest, {f.rate_now:.3g} at last), and the "
        "thresholds are of constant rates: the confidence is low."
    )
    return replace(advice, confidence="low", reasons=(*advice.reasons, said))


def _of_a_constant_rate(s: Signs) -> Advice:
    """What to do where the rate was constant."""
    f = s.features
    if f.same is not None and not s.ruined:
        return _without_differences(f, f.same)
    if danger := _too_high(s):
        return _lower(s, danger)
    return _raise(s) if s.too_low else _keep(s)


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


def _lower(s: Signs, danger: list[str]) -> Advice:
    """A lower rate; `danger` are the signs that it is too high."""
    f = s.features
    ruined = s.ruined
    several = len(danger) > 1
    sure = "high" if ruined or several else _sure_of_shaking(s) if s.shakes else "medium"
    seen = RATE_EVIDENCE["ruined" if ruined else "too high"]
    how_far = f"How far down is not in the checkpoints: {seen}."
    return _say(f, "lower_lr", sure, *danger, how_far, factor=START_OVER if ruined else LOWER, evidence=seen)


def _raise(s: Signs) -> Advice:
    """A higher rate, and a leap where a method did well on the run's own past."""
    f = s.features
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
    return _say(f, "raise_lr", _sure(s), *reasons, factor=factor, evidence=evidence)


def _too_high(s: Signs) -> list[str]:
    """Signs that the rate is too high, a sentence each; none if there are none.

    The path alone does not show it: without rewards there is no gradient, and what is left of Adam's momentum glides as
    straight as a run whose rate is far too low.
    """
    f = s.features
    signs = []
    if s.ruined:
        signs.append(
            f"{_lost(s)}, and a straight path may be only momentum. Start over, from before the fall, at about a "
            f"tenth of the rate. {_HARDER}"
        )
    elif s.fell:
        again = f", and rises again ({f.rise:+.2g} over the last windows)" if s.rises else ""
        signs.append(
            f"The reward fell from {f.best:.3g} at best to {f.reward:.3g} in the last window{again}. {_HARDER}"
        )
    if s.oscillates:
        signs.append("Successive windows undo each other: the run oscillates.")
    elif not signs and s.shakes:
        signs.append(
            f"The path has no direction and the reward is where it began ({f.first:.3g}, now {f.reward:.3g}): at "
            "this rate the run shakes without learning. Start over at a lower one."
        )
    return signs


def _lost(s: Signs) -> str:
    """What is left of a reward that is lost, as a clause."""
    f = s.features
    why = "hardly any reward leaves hardly any gradient" if f.same is None else ALL_ALIKE
    if s.all_but_gone:
        best = max(f.best or 0.0, f.first or 0.0)
        return f"The reward is all but gone ({f.reward:.3g}, {best:.3g} at best): {why}"
    return f"The reward fell from {f.best:.3g} at best to {f.reward:.3g}, all of it the same: {why}"


def _keep(s: Signs) -> Advice:
    """Go on, or average once the reward is flat and the path has no direction."""
    f = s.features
    best = s.at_its_best
    straight = _nothing_left(f) if best else _straight_as_it_learns(f)
    if s.rises:
        still = f"The reward still rises ({f.rise:+.2g} over the last windows): go on."
        return _say(f, "continue", _sure(s), *straight, still)
    if len(f.windows) < 2:
        few = "Too few windows lie between the checkpoints to average: go on."
        return _say(f, "continue", "low", *straight, few)
    if straight and not best:
        return _say(f, "continue", "low", *straight, "The path still has a direction: go on.")
    why, hidden = _flat(s)
    return _say(f, "average", "low" if hidden else _sure(s), *straight, why, method="lawa")


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


def _flat(s: Signs) -> tuple[str, bool]:
    """Why to average, and whether a rise that matters may be hidden in the reward's noise."""
    f = s.features
    if f.rise is None:
        unknown = "No rewards were found, so whether it still improves is unknown; averaging costs nothing."
        return unknown, False
    if f.rise_by_chance is not None and f.rise_by_chance > s.matters:
        noise = f"{f.rise:+.2g} over the last windows, and up to {s.no_rise:+.2g} may be chance"
        return (
            f"No rise of the reward stands out from its noise ({noise}): average the last checkpoints.",
            True,
        )
    noise = "" if f.rise <= 0.0 else f", and up to {s.no_rise:+.2g} counts as none"
    return (
        f"The reward is flat ({f.rise:+.2g} over the last windows{noise}): average the last checkpoints.",
        False,
    )


def _sure(s: Signs) -> str:
    """How far the excess lies from the nearest edge, in units of its scatter; rewards add to it."""
    f = s.features
    edge = min(abs(f.excess - e) for e in (s.straight, s.undone)) * math.sqrt(len(f.windows))
    if edge < SCATTER / 2:
        return "low"
    return "high" if edge > SCATTER and f.reward is not None else "medium"


def _sure_of_shaking(s: Signs) -> str:
    """As `_sure`; but nobody can be sure that the reward is where it began if it rose, and its noise is unknown."""
    f = s.features
    return "low" if f.rise_by_chance is None and f.gained > s.thresholds.flat else _sure(s)


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
