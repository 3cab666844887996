"""What a set of arms says: who reached the target at what cost, net of everything the leaps took.

Pure arithmetic on `ArmRecord`s. The target is the plain run's accuracy at its end; an arm reaches it at its first
evaluation that is at least as good. Costs are completions (training and search) and seconds (fit and search
included, evaluation not); steps charge a search at its completions over those of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nextrl.runs.arm import ArmRecord


@dataclass(frozen=True)
class Reach:
    """What an arm had spent when it reached the target: optimizer steps, completions, seconds."""

    steps: int
    completions: int
    seconds: float


def reach(record: ArmRecord, target: float) -> Reach | None:
    """Costs at the first evaluation with accuracy >= target, or None."""
    for i, accuracy in enumerate(record.accuracy):
        if accuracy >= target:
            return Reach(record.steps[i], record.completions[i], record.seconds[i])
    return None


def saved(record: ArmRecord, plain: ArmRecord, target: float, per_step: int) -> dict[str, float | None]:
    """Fractions saved against the plain run's whole cost; None each where the target was not reached.

    `steps` charges the search: completions spent on it, over `per_step` completions a step.
    """
    at = reach(record, target)
    if at is None:
        return {"steps": None, "completions": None, "seconds": None}
    charged = at.completions / per_step
    return {
        "steps": 1 - charged / plain.steps[-1],
        "completions": 1 - at.completions / plain.completions[-1],
        "seconds": 1 - at.seconds / plain.seconds[-1],
    }


def after(record: ArmRecord, start: int) -> dict[str, float | None]:
    """Accuracy right after the leap at `start`, 50 and 100 steps on."""

    def at(step: int) -> float | None:
        return record.accuracy[record.steps.index(step)] if step in record.steps else None

    return {"leap": at(start), "plus50": at(start + 50), "plus100": at(start + 100)}


def costs(record: ArmRecord, per_step: int) -> dict[str, float]:
    """What fit and search took: seconds, completions, equivalents of training steps (completions over a step's)."""
    return {
        "fit_seconds": round(record.fit_seconds, 3),
        "search_completions": record.search_completions,
        "search_seconds": round(record.search_seconds - record.fit_seconds, 3),
        "step_equivalents": round(record.search_completions / per_step, 2),
    }


def leaps(record: ArmRecord) -> list[dict[str, Any]]:
    """Every decision of an arm that cost something or moved something."""
    return [{**d.model_dump(mode="json"), "accepted": d.accepted} for d in record.decisions if d.asked]


def best_rate(arms: Mapping[str, ArmRecord], sweep: Sequence[str], target: float) -> str | None:
    """The plain run of the sweep that reached the target first; with none, the best at its end."""
    runs = [name for name in sweep if name in arms]
    if not runs:
        return None
    reached = {name: at.completions for name in runs if (at := reach(arms[name], target)) is not None}
    if reached:
        return min(reached, key=lambda name: reached[name])
    return max(runs, key=lambda name: arms[name].accuracy[-1])


def sweep_charged(
    arms: Mapping[str, ArmRecord], sweep: Sequence[str], target: float, per_step: int
) -> dict[str, float | None]:
    """Saved by tuning the rate when the sweep is paid for: all its runs in lockstep until the best is there."""
    best = best_rate(arms, sweep, target)
    plain = arms["plain"]
    at = reach(arms[best], target) if best else None
    if at is None:
        return {"steps": None, "completions": None, "seconds": None}
    runs = sum(name in arms for name in sweep)
    completions = at.completions * runs
    return {
        "steps": 1 - completions / per_step / plain.steps[-1],
        "completions": 1 - completions / plain.completions[-1],
        "seconds": 1 - at.seconds * runs / plain.seconds[-1],
    }
