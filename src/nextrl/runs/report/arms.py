"""The arms of a result as the page shows them: grouped by kind, the ones that answer the question marked as key.

About eighteen lines cannot all be loud. Key arms (the run as configured, the tuned rate, the learning-rate-free
optimizers, the best single leap, auto) are drawn in full from the start; the others stay faint until asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nextrl.runs.report.reading import mapping, number, numbers, text

GROUPS = {
    "plain": "Run as configured",
    "auto": "auto",
    "control": "Controls",
    "leap": "Leaps by a named method",
    "other": "Others",
}
_FREE = ("prodigy", "mechanic", "dadapt", "schedulefree", "schedule-free")
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

    def last(self, series: str = "accuracy") -> float | None:
        """The last number of a series, or None."""
        values = [value for value in getattr(self, series) if value is not None]
        return values[-1] if values else None


def read_arms(result: Mapping[str, Any]) -> list[Arm]:
    """Every arm of a result, ordered by group (as `GROUPS`), within a group as the result lists them."""
    raw = {name: mapping(arm) for name, arm in mapping(result.get("arms")).items()}
    tuned, leap = tuned_arm(result), _best_leap(result, raw)
    counts: dict[str, int] = {}
    arms = []
    for name, arm in raw.items():
        group = _group(arm)
        role = "tuned" if name == tuned else "free" if group == "control" and is_free(name) else group
        index = counts.get(role, 0)
        # The best leap is drawn solid; the first dash is kept for it.
        if role == "leap":
            index = 0 if name == leap else counts.get(role, 0) + 1
        counts[role] = counts.get(role, 0) + (name != leap)
        key = role in ("plain", "auto", "tuned", "free") or name == leap
        arms.append(_arm(name, arm, result, group=group, role=role, key=key, index=index))
    order = list(GROUPS)
    return sorted(arms, key=lambda arm: order.index(arm.group))


def tuned_arm(result: Mapping[str, Any]) -> str | None:
    """The control that stands for the tuned rate: as the result says, else the lr-… arm that ends best."""
    arms = mapping(result.get("arms"))
    named = text(result.get("tuned"))
    if named in arms:
        return named
    sweep = {name: _end(arm) for name, arm in arms.items() if name.startswith("lr-")}
    ended = {name: value for name, value in sweep.items() if value is not None}
    return max(ended, key=lambda name: ended[name]) if ended else None


def is_free(name: str) -> bool:
    """Whether an arm's name is one of the learning-rate-free optimizers."""
    return any(word in name.lower() for word in _FREE)


def _end(arm: Any) -> float | None:
    values = [number(value) for value in mapping(arm).get("accuracy") or []]
    known = [value for value in values if value is not None]
    return known[-1] if known else None


def _best_leap(result: Mapping[str, Any], raw: Mapping[str, Mapping[str, Any]]) -> str | None:
    ends = {name: _end(arm) for name, arm in raw.items() if _group(arm) == "leap"}
    known = {name: value for name, value in ends.items() if value is not None}
    return max(known, key=lambda name: known[name]) if known else None


def _group(arm: Mapping[str, Any]) -> str:
    kind = text(arm.get("kind")) or "other"
    return "control" if kind == "temperature" else kind if kind in GROUPS else "other"


def _arm(
    name: str,
    arm: Mapping[str, Any],
    result: Mapping[str, Any],
    *,
    group: str,
    role: str,
    key: bool,
    index: int,
) -> Arm:
    raw_steps = arm.get("steps") if isinstance(arm.get("steps"), list | tuple) else []
    keep = [i for i, step in enumerate(raw_steps or []) if number(step) is not None]
    length = len(raw_steps or [])

    def series(key_: str) -> list[float | None]:
        values = numbers(arm.get(key_), length)
        return [values[i] for i in keep]

    greedy = series("greedy")
    prompts = number(mapping(result.get("config")).get("test_prompts"))
    given = series("greedy_se")
    return Arm(
        name=name,
        label=text(arm.get("label")) or name,
        group=group,
        role=role,
        key=key,
        dash=_DASHES[index % len(_DASHES)],
        marker=_MARKERS[index % len(_MARKERS)],
        steps=[s for s in numbers(raw_steps, length) if s is not None],
        accuracy=series("accuracy"),
        se=series("se"),
        greedy=greedy,
        greedy_se=[s if s is not None else _binomial(g, prompts) for s, g in zip(given, greedy, strict=True)],
        completions=series("completions"),
        seconds=series("seconds"),
        learning_rate=series("learning_rate"),
    )


def _binomial(share: float | None, prompts: float | None) -> float | None:
    if share is None or prompts is None or prompts < 1 or not 0 <= share <= 1:
        return None
    return float((share * (1 - share) / prompts) ** 0.5)
