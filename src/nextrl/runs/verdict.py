"""The verdict of a comparison or of one run, in plain sentences. What a regime means is quoted from `judge.regime`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nextrl.judge.advice import Advice
from nextrl.judge.decision import done
from nextrl.judge.regime import MEANING, Regime, regime_of
from nextrl.runs import comparison
from nextrl.runs.arm import ArmRecord, ArmSettings
from nextrl.runs.rate_path import Cooling, cooling, rate_path
from nextrl.runs.rate_rule import RULE
from nextrl.runs.result import LeapEntry, Result

# What it says of a run whose leaps and learning rate were decided on the way.
_STANDING: Mapping[Regime, str] = {
    "signal": "; the learning rate is still low",
    "mixed": "",
    "noise": ", which is what a rate that is high enough shows, and says nothing of what was learned",
}


def of_comparison(
    arms: Mapping[str, ArmRecord], result: Result, excess: float | None, advice: Advice | None = None
) -> str:
    """What was saved, how it stands against tuned rates, whether a single leap paid, and what to do.

    Args:
        arms: records by name, "plain" and "auto" among them.
        result: its target, savings and tuned rate.
        excess: mean excess persistence of the plain arm at its end, None where its checkpoints do not show it.
        advice: what `nextrl advise` says of the plain arm.
    """
    sentences = [_against_plain(arms, result)]
    own = comparison.reach(arms["plain"], arms["plain"].accuracy[-1])
    rose = own is not None and bool(own.steps)
    if result.tuned and rose:
        sentences.append(_against_tuned(arms, result, result.tuned))
    if RULE in arms and rose:
        sentences.append(_about_rule(arms[RULE], result))
    single = _best_leap(arms)
    if single is not None:
        sentences.append(_about_leap(arms["plain"], single))
    if excess is None:
        sentences.append("The plain run's last checkpoints do not show how straight its path is.")
    else:
        meaning = MEANING[regime_of(excess)]
        sentences.append(f"The plain run's excess persistence is {excess:.2f} at its end: {meaning}.")
    return " ".join((*sentences, *_advised("the plain run", advice)))


def _advised(what: str, advice: Advice | None) -> tuple[str, ...]:
    return () if advice is None else (f"Advice for {what}, from its checkpoints alone: {advice.headline}.",)


def of_run(
    record: ArmRecord,
    arm: ArmSettings,
    taken: Sequence[LeapEntry],
    excess: float | None,
    advice: Advice | None = None,
) -> str:
    """Where one run went, its leaps and their price, and where it stands.

    Args:
        record: what the run did.
        arm: what it was told.
        taken: its decisions, as `comparison.leaps` lists them.
        excess: mean excess persistence where the run stands, None where it was too short to show any.
        advice: what `nextrl advise` says of it, None where it does not ask.
    """
    sentences = [
        f"The run went from {record.accuracy[0]:.3f} to {record.accuracy[-1]:.3f} ± {record.se[-1]:.3f} sampled "
        f"accuracy in {record.steps[-1]} steps ({record.completions[-1]} completions)."
    ]
    if arm.kind == "plain":
        sentences.append("No leap was asked for.")
    else:
        sentences.append(_about_leaps(record, arm, taken))
        sentences.extend(_about_rate(record))
        sentences.append(
            "Whether that saved anything, only the same run with leap.method=none can say: there is no plain arm here."
        )
    if excess is not None:
        regime = regime_of(excess)
        # A rate that the end of the run brought down is low there by design.
        low = regime == "signal" and _cooling(record) is not None
        standing = _STANDING[regime] if advice is None and not low else ""
        sentences.append(f"Its excess persistence is {excess:.2f} at its end: {MEANING[regime]}{standing}.")
    return " ".join((*sentences, *_advised("it", advice)))


def _percent(fraction: float | None) -> str:
    return "never" if fraction is None else f"{100 * fraction:.0f} %"


def _best_leap(arms: Mapping[str, ArmRecord]) -> ArmRecord | None:
    singles = [a for a in arms.values() if a.kind == "leap"]
    return max(singles, key=lambda a: a.accuracy[-1]) if singles else None


def _against_plain(arms: Mapping[str, ArmRecord], result: Result) -> str:
    plain, auto = arms["plain"], arms["auto"]
    target = plain.accuracy[-1]
    at, own = comparison.reach(auto, target), comparison.reach(plain, target)
    if own is not None and not own.steps:
        return (
            f"The run as configured ends at {target:.3f}, no higher than it began, so that there is nothing to save; "
            f"auto ended at {auto.accuracy[-1]:.3f}."
        )
    if at is None or own is None:
        return f"auto did not reach the plain run's final accuracy ({target:.3f}); it ended at {auto.accuracy[-1]:.3f}."
    return (
        f"The run as configured reaches {target:.3f} after {own.steps} steps; auto, from the same cautious "
        f"learning rate, is there at step {at.steps}: {_percent(result.saved['auto'].completions)} of the "
        "completions saved."
    )


def _against_tuned(arms: Mapping[str, ArmRecord], result: Result, tuned: str) -> str:
    saved = result.saved
    gap = arms["auto"].accuracy[-1] - arms[tuned].accuracy[-1]
    return (
        f"Against the tuned rate ({tuned.removeprefix('lr-')}, found by a sweep), which saves "
        f"{_percent(saved['tuned'].completions)} before the sweep is paid for and "
        f"{_percent(saved['tuned-with-sweep'].completions)} after, auto ends {abs(gap):.3f} "
        f"{'ahead' if gap >= 0 else 'behind'}, with no sweep."
    )


def _about_rule(rule: ArmRecord, result: Result) -> str:
    saved = result.saved[RULE].completions
    outcome = "never reaches the target" if saved is None else f"saves {_percent(saved)}"
    return (
        f"The published rule's rate ({rule.learning_rate[0]:g}, known before any run) {outcome} and ends at "
        f"{rule.accuracy[-1]:.3f}."
    )


def _about_leap(plain: ArmRecord, leap: ArmRecord) -> str:
    start = plain.steps.index(leap.steps[0])
    gain = leap.accuracy[0] - plain.accuracy[start]
    noise = 2 * (leap.se[0] ** 2 + plain.se[start] ** 2) ** 0.5
    outcome = "past the noise" if gain > noise else "within the noise: it did not pay"
    return (
        f"Of the single leaps at step {leap.steps[0]}, {leap.name} ends best ({leap.accuracy[-1]:.3f}); right after "
        f"it the accuracy changed by {gain:+.3f}, {outcome}."
    )


def _about_leaps(record: ArmRecord, arm: ArmSettings, taken: Sequence[LeapEntry]) -> str:
    if arm.auto:
        return _about_auto(record)
    name = arm.leap.method if arm.leap else "it"
    if not taken:
        return f"{name} saw no reason to try a leap."
    accepted = [leap.step for leap in taken if leap.taken]
    steps = ", ".join(str(step) for step in accepted)
    share = record.search_completions / max(1, record.completions[-1])
    looked = f"{len(taken)} time{'' if len(taken) == 1 else 's'}"
    cost = f"{share:.1%} of all completions" if record.search_completions else "no completions"
    outcome = f"took {len(accepted)} of them (at step {steps})" if accepted else "took none"
    if back := [str(d.rolled_back) for d in record.decisions if d.rolled_back is not None]:
        outcome += f"; what was done at step {', '.join(back)} was taken back, since the reward fell"
    return f"{name} tried candidates for a leap {looked} and {outcome}; the search took {cost}."


def _rate_path(record: ArmRecord) -> list[tuple[float, float]]:
    decided = [(d.step, d.learning_rate) for d in record.decisions]
    return rate_path(record.steps, record.learning_rate, record.rate_steps, record.rates, decided)


def _cooling(record: ArmRecord) -> Cooling | None:
    changed = [d.step for d in record.decisions if done(d) is not None]
    return cooling(_rate_path(record), changed)


def _about_rate(record: ArmRecord) -> list[str]:
    """Where the learning rate began, its height, where it stood before the end of the run, and where that left it."""
    path, cooled = _rate_path(record), _cooling(record)
    if len({rate for _, rate in path}) < 2:
        return []
    (_, first), (_, last) = path[0], path[-1]
    step, highest = max(path, key=lambda pair: pair[1])
    told = [f"Its learning rate began at {first:.2g}"]
    if highest > first:
        told.append(f"was highest at {highest:.2g} (from step {step:g} on)")
    stood = last if cooled is None else cooled.rate
    if stood != max(first, highest):
        told.append(f"{'ended' if cooled is None else 'stood'} at {stood:.2g}")
    if cooled is not None:
        steps = record.steps[-1] - cooled.begins
        last_steps = "its last step" if steps == 1 else f"the last {steps:g} steps"
        over = f" over {last_steps}" if record.rates else ""
        told.append(f"was brought down to {last:.2g} by the cooldown that ends a run{over}")
    return [f"{', '.join(told[:-1])} and {told[-1]}." if len(told) > 1 else f"{told[0]}."]


def _about_auto(record: ArmRecord) -> str:
    changes = [d for d in record.decisions if d.rate_factor != 1.0]
    back = [str(d.step) for d in record.decisions if d.back in ("step", "window")]
    again = [str(d.step) for d in record.decisions if d.back == "run"]
    if not changes and not back:
        return "auto saw no reason to change anything."
    times = "once" if len(changes) == 1 else f"{len(changes)} times"
    undone = f", and took back what had done harm at step {', '.join(back)}" if back else ""
    begun = (
        f", and began again at step {', '.join(again)}, since its first step had gone too far"
        if again
        else ""
    )
    return f"auto changed the learning rate {times}{undone}{begun}; it searched no completions."
