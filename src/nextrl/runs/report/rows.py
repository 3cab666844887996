"""The page's tables and headline figures as strings, so that the template only lays them out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nextrl.judge.decision import done
from nextrl.runs.rate_path import cooling
from nextrl.runs.report.arms import GROUPS, Arm, tuned_arm, written
from nextrl.runs.result import AccuracyAfter, LeapEntry, Result, Saved, SearchCosts, Spent

NONE = "–"
_EXTRA = {"tuned": "tuned rate, sweep not charged", "tuned-with-sweep": "tuned rate, whole sweep charged"}


@dataclass(frozen=True)
class TableRow:
    """A row of one of the page's tables: `cells` as shown, in the order of the template's header."""

    label: str
    tag: str
    role: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Tile:
    """A headline figure: what it is about, the figure, what it means."""

    title: str
    figure: str
    note: str
    role: str


def _shown(value: float | None, form: str) -> str:
    """A number in a format, with a true minus, or a dash where there is none."""
    return NONE if value is None or isinstance(value, bool) else format(value, form).replace("-", "−")


def fixed(value: float | None, digits: int = 3) -> str:
    """A number with so many digits, or a dash."""
    return _shown(value, f".{digits}f")


def integer(value: float | None) -> str:
    """A whole number as it is, or a dash."""
    return _shown(value, ".0f")


def count(value: float | None) -> str:
    """A whole number with thousands separated by thin spaces, or a dash."""
    return _shown(value, ",.0f").replace(",", "\u202f")


def percent(value: float | None) -> str:
    """A fraction in per cent, or a dash; a true minus where it is a loss."""
    return NONE if value is None else _shown(100 * value, ".0f") + " %"


def seconds(value: float | None) -> str:
    """Seconds to one digit below a minute, whole above, or a dash."""
    return _shown(value, ".1f") if value is not None and abs(value) < 60 else count(value)


def rate(value: float | None) -> str:
    """A learning rate to two digits, or a dash."""
    return NONE if value is None else f"{value:.2g}"


def with_error(value: float | None, error: float | None) -> str:
    """A number and its standard error, where both are known."""
    return fixed(value) if error is None else f"{fixed(value)} ± {fixed(error)}"


def comparison(result: Result, arms: Sequence[Arm]) -> list[tuple[str, list[TableRow]]]:
    """(group's title, its rows) of the comparison table; entries of `saved` that are no arm become controls."""
    tuned, names = tuned_arm(result), {arm.name for arm in arms}
    grouped: dict[str, list[TableRow]] = {}
    for arm in arms:
        grouped.setdefault(arm.group, []).append(_compared(result, arm, tuned))
    for name, saved in result.saved.items():
        if name in names or (name == "tuned" and tuned in names):
            continue
        cells = (NONE, NONE, *_saved(saved), *(NONE,) * 6)
        grouped.setdefault("control", []).append(TableRow(_EXTRA.get(name, name), "", "control", cells))
    return [(title, grouped[group]) for group, title in GROUPS.items() if group in grouped]


def _compared(result: Result, arm: Arm, tuned: str | None) -> TableRow:
    after = result.after.get(arm.name) if arm.group == "leap" else None
    cells = (
        with_error(arm.last(), arm.last("se")),
        fixed(arm.last("greedy")),
        *_saved(result.saved.get(arm.name)),
        *_reached(result, arm),
        *((NONE,) * 3 if after is None else map(fixed, (after.leap, after.plus50, after.plus100))),
    )
    return TableRow(arm.label, "tuned" if arm.name == tuned else "", arm.role, cells)


def _reach(result: Result, arm: Arm) -> Spent | None:
    return (result.reach or {}).get(arm.name)


def _reached(result: Result, arm: Arm) -> tuple[str, str, str]:
    at = _reach(result, arm)
    if at is not None:
        return count(at.steps), count(at.completions), seconds(at.seconds)
    missed = arm.accuracy and result.target is not None and result.reach is not None
    return "not reached" if missed else NONE, NONE, NONE


def _saved(saved: Saved | None) -> tuple[str, str, str]:
    saved = saved or Saved()
    return percent(saved.steps), percent(saved.completions), percent(saved.seconds)


def costs(result: Result, arms: Sequence[Arm]) -> tuple[list[TableRow], list[str]]:
    """Rows of the arms that cost something beyond training, and the labels of those that did not."""
    rows, free = [], []
    for arm in arms:
        entry = result.costs.get(arm.name)
        if entry is None or not entry.model_fields_set:
            continue
        if not any(
            (entry.fit_seconds, entry.search_completions, entry.search_seconds, entry.step_equivalents)
        ):
            free.append(arm.label)
            continue
        cells = (
            seconds(entry.fit_seconds),
            count(entry.search_completions),
            seconds(entry.search_seconds),
            fixed(entry.step_equivalents, 1),
        )
        rows.append(TableRow(arm.label, "", arm.role, cells))
    return rows, free


DECIDED = (
    "step",
    "what was done",
    "learning rate after",
    "moved, nats per token",
    "alpha: score on validation prompts",
    "reason",
)
"""Columns of the table of decisions."""


def decisions(result: Result, arms: Sequence[Arm]) -> tuple[tuple[str, ...], list[TableRow]]:
    """The columns of `DECIDED` that hold anything, and a row for each decision."""
    rows = [
        TableRow(arm.label, "", arm.role, _decided(leap))
        for arm in arms
        for leap in result.leaps.get(arm.name, [])
    ]
    kept = [i for i in range(len(DECIDED)) if any(row.cells[i] != NONE for row in rows)]
    return (
        tuple(DECIDED[i] for i in kept),
        [replace(row, cells=tuple(row.cells[i] for i in kept)) for row in rows],
    )


def _decided(leap: LeapEntry) -> tuple[str, ...]:
    return (
        count(leap.step),
        what_was_done(leap),
        rate(leap.learning_rate),
        _shown(leap.divergence, ".2g"),
        # A score stays in the line of its alpha.
        ", ".join(f"{alpha}:\u00a0{fixed(score)}" for alpha, score in leap.scores.items()) or NONE,
        written(leap.reason) or NONE,
    )


def what_was_done(leap: LeapEntry) -> str:
    """What a decision did, in the words of the run's own log."""
    return done(leap) or ("leapt" if leap.taken else "nothing changed")


def tiles(result: Result, arms: Sequence[Arm]) -> list[Tile]:
    """Three headline figures: auto, the tuned rate with and without its sweep, the best learning-rate-free arm."""
    found = []
    autos = [arm for arm in arms if arm.role == "auto"]
    if autos:
        found.append(_tile(result, autos[0], "auto, in one run", searched(result, autos[0])))
    tuned = next((arm for arm in arms if arm.role == "tuned"), None)
    if tuned:
        sweep = result.saved.get("tuned-with-sweep", Saved()).completions
        tail = (
            "sweep not charged"
            if sweep is None
            else f"{percent(sweep)} once the sweep that found it is charged"
        )
        found.append(_tile(result, tuned, "Tuned rate", tail))
    free = [arm for arm in arms if arm.role == "free"]
    if free:
        # The first to reach the target; with none there, the best at the end.
        best = max(free, key=lambda arm: (_share(result, arm), arm.last() or 0.0))
        found.append(_tile(result, best, "Best learning-rate-free optimizer", best.label))
    return found


def searched(result: Result, arm: Arm) -> str:
    """What an arm's decisions took, as a clause."""
    spent = result.costs.get(arm.name, SearchCosts()).search_completions
    return f"its search of {count(spent)} completions charged" if spent else "it searches no completions"


def lengths(arms: Sequence[Arm]) -> str:
    """Why the arms do not all end at the same step; empty where they do."""
    ends = {arm.role: arm.steps[-1] for arm in arms if arm.steps and arm.role in ("plain", "auto")}
    if len(ends) < 2 or ends["auto"] >= ends["plain"]:
        return ""
    return (
        f"The run as configured is trained for {count(ends['plain'])} steps, and its end is the target; auto and the "
        f"controls are given {count(ends['auto'])}, by plan: the question is when they get there."
    )


def baseline(result: Result, arms: Sequence[Arm]) -> str:
    """Where the run as configured stood at the step of the single leaps."""
    plain = next((arm for arm in arms if arm.role == "plain"), None)
    stood = result.after.get(plain.name, AccuracyAfter()).leap if plain else None
    if stood is None or not any(arm.group == "leap" for arm in arms):
        return ""
    return f"At the step of the single leaps the run as configured stood at {fixed(stood)}."


def evaluations(arm: Arm) -> list[tuple[str, ...]]:
    """Every evaluation of an arm: step, sampled, greedy, completions, seconds, learning rate."""
    return [
        (
            count(step),
            with_error(arm.accuracy[i], arm.se[i]),
            fixed(arm.greedy[i]),
            count(arm.completions[i]),
            seconds(arm.seconds[i]),
            rate(arm.learning_rate[i]),
        )
        for i, step in enumerate(arm.steps)
    ]


def single_tiles(result: Result, arm: Arm) -> list[Tile]:
    """Headline figures of one run: where it ended, its leaps, what they cost."""
    first, greedy = (
        next((a for a in series if a is not None), None) for series in (arm.accuracy, arm.greedy)
    )
    answers = (
        "" if greedy is None else f"; greedy {fixed(arm.last('greedy'))}, and {fixed(greedy)} at the start"
    )
    leaps = result.leaps.get(arm.name, [])
    taken = sum(leap.taken for leap in leaps)
    found = [
        Tile(
            "Sampled accuracy",
            fixed(arm.last()),
            f"at the end; {fixed(first)} at the start{answers}",
            arm.role,
        )
    ]
    costs = result.costs.get(arm.name)
    spent = (costs.search_completions if costs else None) or 0.0
    if arm.role == "auto" and not spent:
        return [*found, _rate_tile(arm, leaps)]
    note = f"of {len(leaps)} times that candidates were tried"
    found.append(Tile("Leaps taken", str(taken), note, arm.role))
    total = arm.last("completions")
    if total:
        note = f"{count(spent)} of {count(total)} completions"
        found.append(Tile("Search", percent(spent / total), note, arm.role))
    return found


def _rate_tile(arm: Arm, leaps: Sequence[LeapEntry]) -> Tile:
    """The learning rate that `auto` came to, which is not the one that it ends at, and its way there."""
    if not arm.rate_path:
        return Tile("Learning rate", NONE, "auto searches no completions", arm.role)
    cooled = cooling(arm.rate_path, [leap.step for leap in leaps if leap.step is not None and done(leap)])
    (_, first), (_, last) = arm.rate_path[0], arm.rate_path[-1]
    stood = last if cooled is None else cooled.rate
    step, highest = max(arm.rate_path, key=lambda pair: pair[1])
    notes = ["at the end" if cooled is None else f"before the end of the run cooled it to {rate(last)}"]
    notes.append(f"{rate(first)} at the start")
    if highest > first:
        notes.append(
            f"highest{'' if highest == stood else f' at {rate(highest)}'} from step {count(step)} on"
        )
    return Tile("Learning rate", rate(stood), "; ".join([*notes, "auto searches no completions"]), arm.role)


def _completions_saved(result: Result, arm: Arm) -> float | None:
    return result.saved.get(arm.name, Saved()).completions


def _share(result: Result, arm: Arm) -> float:
    """The share of completions saved, to compare by; of an arm that never reached the target the least of all."""
    saved = _completions_saved(result, arm)
    return -math.inf if saved is None else saved


def _tile(result: Result, arm: Arm, title: str, tail: str) -> Tile:
    share, at = _completions_saved(result, arm), _reach(result, arm)
    if share is None and at is not None:
        note = f"the run as configured ends no higher than it began; {tail}"
        return Tile(title, "nothing to save", note, arm.role)
    if share is None:
        return Tile(title, "not reached", f"ended at {fixed(arm.last())}; {tail}", arm.role)
    step = f"target at step {count(at.steps)}; " if at is not None and at.steps is not None else ""
    figure = f"{percent(share)} saved" if share >= 0 else f"{percent(-share)} more"
    note = f"completions to the target, against the run as configured; {step}{tail}"
    return Tile(title, figure, note, arm.role)
