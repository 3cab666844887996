"""The page's tables and headline figures as strings, so that the template only lays them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nextrl.runs.report.arms import GROUPS, Arm, is_free, tuned_arm
from nextrl.runs.report.reading import mapping, number, records, text

NONE = "–"
_EXTRA = {
    "tuned": "tuned rate, sweep not charged",
    "tuned-with-sweep": "tuned rate, whole sweep charged",
}


@dataclass(frozen=True)
class Row:
    """A row of the comparison: `cells` as shown, in the order of the template's header."""

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


def fixed(value: Any, digits: int = 3, sign: bool = False) -> str:
    """A number with so many digits, or a dash."""
    x = number(value)
    return NONE if x is None else f"{x:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def count(value: Any) -> str:
    """A whole number with thousands separated by thin spaces, or a dash."""
    x = number(value)
    return NONE if x is None else f"{x:,.0f}".replace(",", "\u202f")


def percent(value: Any) -> str:
    """A fraction in per cent, or a dash; a true minus where it is a loss."""
    x = number(value)
    return NONE if x is None else f"{100 * x:.0f} %".replace("-", "−")


def seconds(value: Any) -> str:
    """Seconds to one digit below a minute, whole above, or a dash."""
    x = number(value)
    return NONE if x is None else f"{x:.1f}" if abs(x) < 60 else count(x)


def comparison(result: Mapping[str, Any], arms: Sequence[Arm]) -> list[tuple[str, list[Row]]]:
    """(group's title, its rows) of the comparison table; entries of `saved` that are no arm become controls."""
    tuned = tuned_arm(result)
    grouped: dict[str, list[Row]] = {}
    for arm in arms:
        grouped.setdefault(arm.group, []).append(_row(result, arm, tuned))
    names = {arm.name for arm in arms}
    for name in [*mapping(result.get("saved"))]:
        if name in names or (name == "tuned" and tuned in names):
            continue
        blank = (NONE,) * 8
        row = Row(_EXTRA.get(name, name), "", "control", blank + _saved(result, name))
        grouped.setdefault("control", []).append(row)
    return [(title, grouped[group]) for group, title in GROUPS.items() if group in grouped]


def _row(result: Mapping[str, Any], arm: Arm, tuned: str | None) -> Row:
    after = mapping(mapping(result.get("after")).get(arm.name))
    final, error = arm.last(), arm.last("se")
    end = fixed(final) if error is None else f"{fixed(final)} ± {fixed(error)}"
    cells = [fixed(after.get(key)) for key in ("leap", "plus50", "plus100")]
    cells += [end, fixed(arm.last("greedy"))]
    reach = mapping(mapping(result.get("reach")).get(arm.name))
    if not reach and arm.accuracy and number(result.get("target")) is not None and "reach" in result:
        cells += ["not reached", NONE, NONE]
    else:
        cells += [count(reach.get("steps")), count(reach.get("completions")), seconds(reach.get("seconds"))]
    return Row(
        arm.label, "tuned" if arm.name == tuned else "", arm.role, tuple(cells) + _saved(result, arm.name)
    )


def _saved(result: Mapping[str, Any], name: str) -> tuple[str, str, str]:
    saved = mapping(mapping(result.get("saved")).get(name))
    return percent(saved.get("steps")), percent(saved.get("completions")), percent(saved.get("seconds"))


def costs(result: Mapping[str, Any], arms: Sequence[Arm]) -> tuple[list[Row], list[str]]:
    """Rows of the arms that cost something beyond training, and the labels of those that did not."""
    keys = ("fit_seconds", "search_completions", "search_seconds", "step_equivalents")
    rows, free = [], []
    for arm in arms:
        entry = mapping(mapping(result.get("costs")).get(arm.name))
        if not entry:
            continue
        if not any(number(entry.get(key)) for key in keys):
            free.append(arm.label)
            continue
        fit, completions, search, steps = (entry.get(key) for key in keys)
        cells = (seconds(fit), count(completions), seconds(search), fixed(steps, 1))
        rows.append(Row(arm.label, "", arm.role, cells))
    return rows, free


def decisions(result: Mapping[str, Any], arms: Sequence[Arm]) -> list[Row]:
    """Every decision on a leap: step, alpha, whether taken, learning rate after it, excess, scores, reason."""
    rows = []
    for arm in arms:
        for leap in records(mapping(result.get("leaps")).get(arm.name)):
            scores = "  ".join(f"{a}: {fixed(s)}" for a, s in mapping(leap.get("scores")).items()) or NONE
            alpha, rate = number(leap.get("alpha")), number(leap.get("learning_rate"))
            cells = (
                count(leap.get("step")),
                NONE if alpha is None else f"{alpha:g}".replace("-", "−"),
                "yes" if leap.get("accepted", bool(alpha)) else "no",
                NONE if rate is None else f"{rate:.2g}",
                fixed(leap.get("excess"), 2),
                scores,
                text(leap.get("reason")) or NONE,
            )
            rows.append(Row(arm.label, "", arm.role, cells))
    return rows


def tiles(result: Mapping[str, Any], arms: Sequence[Arm]) -> list[Tile]:
    """Three headline figures: auto, the tuned rate with and without its sweep, the best learning-rate-free arm."""
    saved = mapping(result.get("saved"))
    found = []
    autos = [arm for arm in arms if arm.role == "auto"]
    if autos:
        found.append(_tile(result, autos[0], "auto, in one run", "its search charged"))
    tuned = next((arm for arm in arms if arm.role == "tuned"), None)
    if tuned:
        sweep = mapping(saved.get("tuned-with-sweep")).get("completions")
        tail = (
            f"{percent(sweep)} once the sweep that found it is charged"
            if number(sweep) is not None
            else "sweep not charged"
        )
        found.append(_tile(result, tuned, "Tuned rate", tail))
    free = [arm for arm in arms if is_free(arm.name) and arm.role == "free"]
    if free:
        # The first to reach the target; with none there, the best at the end.
        best = max(free, key=lambda arm: (_completions(saved, arm) or -9.0, arm.last() or 0.0))
        found.append(_tile(result, best, "Best learning-rate-free optimizer", best.label))
    return found


def is_single(result: Mapping[str, Any], arms: Sequence[Arm]) -> bool:
    """Whether this is one run with nothing beside it: then there is no target, and nothing can have been saved."""
    return len(arms) == 1 and number(result.get("target")) is None and "target" in result


def evaluations(arm: Arm) -> list[tuple[str, ...]]:
    """Every evaluation of an arm: step, sampled, greedy, completions, seconds, learning rate."""
    rows: list[tuple[str, ...]] = []
    for i, step in enumerate(arm.steps):
        value, error, rate = arm.accuracy[i], arm.se[i], arm.learning_rate[i]
        sampled = fixed(value) if error is None else f"{fixed(value)} ± {fixed(error)}"
        rows.append(
            (
                count(step),
                sampled,
                fixed(arm.greedy[i]),
                count(arm.completions[i]),
                seconds(arm.seconds[i]),
                NONE if rate is None else f"{rate:.2g}",
            )
        )
    return rows


def single_tiles(result: Mapping[str, Any], arm: Arm) -> list[Tile]:
    """Headline figures of one run: where it ended, its leaps, what they cost."""
    first = next((a for a in arm.accuracy if a is not None), None)
    found = [
        Tile("Sampled accuracy", fixed(arm.last()), f"at the end; {fixed(first)} at the start", arm.role)
    ]
    leaps = records(mapping(result.get("leaps")).get(arm.name))
    taken = sum(bool(leap.get("accepted", leap.get("alpha"))) for leap in leaps)
    found.append(
        Tile("Leaps taken", str(taken), f"of {len(leaps)} times that candidates were tried", arm.role)
    )
    spent = number(mapping(mapping(result.get("costs")).get(arm.name)).get("search_completions")) or 0.0
    whole = arm.last("completions")
    if whole:
        found.append(
            Tile("Search", percent(spent / whole), f"{count(spent)} of {count(whole)} completions", arm.role)
        )
    return found


def _completions(saved: Mapping[str, Any], arm: Arm) -> float | None:
    return number(mapping(saved.get(arm.name)).get("completions"))


def _tile(result: Mapping[str, Any], arm: Arm, title: str, tail: str) -> Tile:
    share = _completions(mapping(result.get("saved")), arm)
    reach = mapping(mapping(result.get("reach")).get(arm.name))
    if share is None:
        return Tile(title, "not reached", f"ended at {fixed(arm.last())}; {tail}", arm.role)
    at = f"target at step {count(reach.get('steps'))}; " if number(reach.get("steps")) is not None else ""
    figure = f"{percent(share)} saved" if share >= 0 else f"{percent(-share)} more"
    return Tile(
        title, figure, f"completions to the target, against the run as configured; {at}{tail}", arm.role
    )
