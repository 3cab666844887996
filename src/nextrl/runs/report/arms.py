"""The arms of a result as the page shows them: grouped by kind, the ones that answer the question marked as key.

About nineteen lines cannot all be loud. Key arms (the run as configured, the tuned rate, the published rule's rate, the
learning-rate-free optimizers, the best single leap, auto) are drawn in full from the start; the others stay faint until
asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nextrl.engines import named_optimizers
from nextrl.runs.rate_path import rate_path
from nextrl.runs.rate_rule import RULE
from nextrl.runs.result import ArmSeries, Result

GROUPS = {
    "plain": "Run as configured",
    "auto": "auto",
    "control": "Controls",
    "leap": "Leaps by a named method",
    "other": "Others",
}
# Dashes and markers tell arms of one hue apart without relying on colour at all.
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 4", "12 4", "6 2 1 2 1 2")
_MARKERS = ("circle", "square", "triangle", "diamond", "down", "cross", "plus")


@dataclass(frozen=True)
class Arm:
    """One arm, every series of the length of `steps`, None where a value is missing.

    Attributes:
        group: key of `GROUPS`.
        role: names the colour: plain, auto, tuned, free, control, leap or other.
        key: drawn in full when the page opens.
        dash, marker: SVG stroke-dasharray and the name of a marker.
        rate_path: the learning rate over steps, see `runs.rate_path`.
        greedy_se: binomial standard error, from the number of prompts, where that is known.
    """

    name: str
    label: str
    group: str
    role: str
    key: bool
    dash: str
    marker: str
    steps: list[float]
    accuracy: list[float | None]
    se: list[float | None]
    greedy: list[float | None]
    greedy_se: list[float | None]
    completions: list[float | None]
    seconds: list[float | None]
    learning_rate: list[float | None]
    rate_path: list[tuple[float, float]]

    def last(self, series: str = "accuracy") -> float | None:
        """The last number of a series, or None."""
        values = [value for value in getattr(self, series) if value is not None]
        return values[-1] if values else None


def read_arms(result: Result) -> list[Arm]:
    """Every arm of a result, ordered by group (as `GROUPS`), within a group as the result lists them."""
    tuned, leap = tuned_arm(result), _best_leap(result)
    # The demo calls the arm of such an optimizer by the optimizer's name.
    free = {optimizer.name for optimizer in named_optimizers.rate_free()}
    counts: dict[str, int] = {}
    arms = []
    for name, curves in result.arms.items():
        group = _group(curves)
        role = "tuned" if name == tuned else "free" if group == "control" and name in free else group
        index = counts.get(role, 0)
        # The best leap is drawn solid; the first dash is kept for it.
        if role == "leap":
            index = 0 if name == leap else counts.get(role, 0) + 1
        # Never solid, so that no reader takes one for the tuned rate, which is.
        if role == "free":
            index += 1
        counts[role] = counts.get(role, 0) + (name != leap)
        key = role in ("plain", "auto", "tuned", "free") or name in (leap, RULE)
        prompts = result.config.get("test_prompts")
        decided = [(leap.step, leap.learning_rate) for leap in result.leaps.get(name, [])]
        path = rate_path(curves.steps, curves.learning_rate, curves.rate_steps, curves.rates, decided)
        arms.append(_arm(name, curves, prompts, path, group=group, role=role, key=key, index=index))
    order = list(GROUPS)
    return sorted(arms, key=lambda arm: order.index(arm.group))


def tuned_arm(result: Result) -> str | None:
    """The control that stands for the tuned rate: as the result says, else the lr-… arm that ends best."""
    if result.tuned in result.arms:
        return result.tuned
    sweep = {name: _end(curves) for name, curves in result.arms.items() if name.startswith("lr-")}
    return _highest(sweep)


def base_greedy(arms: Sequence[Arm]) -> float | None:
    """The base model's greedy accuracy: that of an arm before its first step."""
    before = (arm.greedy[0] for arm in arms if arm.steps[:1] == [0.0])
    return next((value for value in before if value is not None), None)


def written(text: str | None) -> str | None:
    """A text that says something, else None."""
    return text if text and text.strip() else None


def _best_leap(result: Result) -> str | None:
    return _highest({name: _end(curves) for name, curves in result.arms.items() if _group(curves) == "leap"})


def _highest(ends: Mapping[str, float | None]) -> str | None:
    known = {name: value for name, value in ends.items() if value is not None}
    return max(known, key=lambda name: known[name]) if known else None


def _end(curves: ArmSeries) -> float | None:
    known = [value for value in curves.accuracy if value is not None]
    return known[-1] if known else None


def _group(curves: ArmSeries) -> str:
    kind = curves.kind or "other"
    return "control" if kind == "temperature" else kind if kind in GROUPS else "other"


def _arm(
    name: str,
    curves: ArmSeries,
    prompts: object,
    path: list[tuple[float, float]],
    *,
    group: str,
    role: str,
    key: bool,
    index: int,
) -> Arm:
    keep = [i for i, step in enumerate(curves.steps) if step is not None]

    def series(values: Sequence[float | None]) -> list[float | None]:
        found = [values[i] if i < len(values) else None for i in keep]
        return [None if value is None else float(value) for value in found]

    greedy, given = series(curves.greedy), series(curves.greedy_se)
    return Arm(
        name=name,
        label=written(curves.label) or name,
        group=group,
        role=role,
        key=key,
        dash=_DASHES[index % len(_DASHES)],
        marker=_MARKERS[index % len(_MARKERS)],
        steps=[float(step) for step in curves.steps if step is not None],
        accuracy=series(curves.accuracy),
        se=series(curves.se),
        greedy=greedy,
        greedy_se=[s if s is not None else _binomial(g, prompts) for s, g in zip(given, greedy, strict=True)],
        completions=series(curves.completions),
        seconds=series(curves.seconds),
        learning_rate=series(curves.learning_rate),
        rate_path=path,
    )


def _binomial(share: float | None, prompts: object) -> float | None:
    """Standard error of a share of so many prompts, None where either is not known."""
    if share is None or not isinstance(prompts, int | float) or prompts < 1 or not 0 <= share <= 1:
        return None
    return float((share * (1 - share) / prompts) ** 0.5)
