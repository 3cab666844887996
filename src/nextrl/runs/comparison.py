"""What a set of arms says: who reached the target at what cost, net of everything the leaps took.

Pure arithmetic on `ArmRecord`s, into the parts of a `Result`. The target is the plain run's accuracy at its end; an
arm reaches it at its first evaluation that is at least as good, and so does the plain run itself: evaluations scatter,
and a run whose curve flattens touches its own end long before it, so that an arm that is no faster would otherwise be
credited with what is chance. Costs are completions (training and search) and seconds
(fit and search included, evaluation not); steps charge a search at its completions over those of a training step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nextrl.runs.arm import ArmRecord
from nextrl.runs.result import AccuracyAfter, LeapEntry, Saved, SearchCosts, Spent

NOTHING_SAVED = Saved(steps=None, completions=None, seconds=None)


def reach(record: ArmRecord, target: float) -> Spent | None:
    """Costs at the first evaluation with accuracy >= target, or None."""
    index = _first_at(record, target)
    if index is None:
        return None
    return Spent(
        steps=record.steps[index], completions=record.completions[index], seconds=record.seconds[index]
    )


def saved(record: ArmRecord, plain: ArmRecord, target: float, per_step: int, *, times: int = 1) -> Saved:
    """Fractions saved of what the plain run paid until it first was there; all None where the target was not reached.

    `steps` charges the search: completions spent on it, over `per_step` completions per step.

    Args:
        times: runs like this one that were paid for, each up to the target.
    """
    index, own = _first_at(record, target), _first_at(plain, target)
    if index is None or own is None or not plain.steps[own]:
        return NOTHING_SAVED
    completions, seconds = record.completions[index] * times, record.seconds[index] * times
    return Saved(
        steps=1 - completions / per_step / plain.steps[own],
        completions=1 - completions / plain.completions[own],
        seconds=1 - seconds / plain.seconds[own],
    )


def after(record: ArmRecord, start: int) -> AccuracyAfter:
    """Accuracy right after the leap at `start`, 50 and 100 steps on."""

    def at(step: int) -> float | None:
        return record.accuracy[record.steps.index(step)] if step in record.steps else None

    return AccuracyAfter(leap=at(start), plus50=at(start + 50), plus100=at(start + 100))


def costs(record: ArmRecord, per_step: int) -> SearchCosts:
    """What fits and searches took, in seconds, completions, and the training steps that these would have paid for."""
    return SearchCosts(
        fit_seconds=round(record.fit_seconds, 3),
        search_completions=record.search_completions,
        search_seconds=round(record.search_seconds - record.fit_seconds, 3),
        step_equivalents=round(record.search_completions / per_step, 2),
    )


def leaps(record: ArmRecord) -> list[LeapEntry]:
    """All decisions of `auto`; of a named method those for which a leap was due, or that changed something."""
    asked = [d for d in record.decisions if d.asked or d.method == "auto"]
    return [LeapEntry(**decision.model_dump(mode="json"), accepted=decision.accepted) for decision in asked]


def best_rate(arms: Mapping[str, ArmRecord], sweep: Sequence[str], target: float) -> str | None:
    """The plain run of the sweep that reached the target first; with none, the best at its end."""
    runs = [name for name in sweep if name in arms]
    if not runs:
        return None
    reached = {
        name: arms[name].completions[index]
        for name in runs
        if (index := _first_at(arms[name], target)) is not None
    }
    if reached:
        return min(reached, key=lambda name: reached[name])
    return max(runs, key=lambda name: arms[name].accuracy[-1])


def sweep_charged(arms: Mapping[str, ArmRecord], sweep: Sequence[str], target: float, per_step: int) -> Saved:
    """What tuning the rate saves, its sweep paid for: all runs of it until the best reaches the target."""
    best = best_rate(arms, sweep, target)
    if best is None:
        return NOTHING_SAVED
    runs = sum(name in arms for name in sweep)
    return saved(arms[best], arms["plain"], target, per_step, times=runs)


def _first_at(record: ArmRecord, target: float) -> int | None:
    """Index of the first evaluation with accuracy >= target, or None."""
    return next((i for i, accuracy in enumerate(record.accuracy) if accuracy >= target), None)
