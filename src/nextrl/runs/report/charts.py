"""What the page's charts draw, as one JSON value: no styling beyond the names of colours, no layout."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nextrl.checkpoints.naming import module_kind
from nextrl.judge.regime import OSCILLATES, SIGNAL
from nextrl.runs.report.arms import GROUPS, Arm, base_greedy, written
from nextrl.runs.report.rows import what_was_done
from nextrl.runs.result import LeapEntry, Result, TrajectoryFigures

_PALETTE = 7


def chart_data(result: Result, arms: Sequence[Arm]) -> dict[str, Any]:
    """All that `report.js` draws: arms, reference lines, decisions, and what the checkpoints show."""
    figures = result.trajectory
    return {
        "target": _float(result.target),
        "base_greedy": base_greedy(arms),
        "groups": {key: title for key, title in GROUPS.items() if any(arm.group == key for arm in arms)},
        "arms": [asdict(arm) for arm in arms],
        "reach": _reach(result, arms),
        "leaps": _leaps(result, arms),
        "sigma": _sigma(figures),
        "persistence": _windows(figures.persistence, {w: figures.zero.get(w) for w in figures.persistence}),
        # The zero point of an excess is 0 by definition.
        "excess": _windows(figures.excess, dict.fromkeys(figures.excess, 0.0)),
        "guides": [SIGNAL, OSCILLATES],
    }


def embed(value: Any) -> str:
    """JSON that is safe inside a script element: no `<`, `>` or `&` is left, and no line separator."""
    dumped = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return dumped.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _reach(result: Result, arms: Sequence[Arm]) -> dict[str, dict[str, float | None]]:
    found = {}
    for arm in arms:
        at = (result.reach or {}).get(arm.name)
        if at is not None:
            found[arm.name] = {
                "steps": _float(at.steps),
                "completions": _float(at.completions),
                "seconds": _float(at.seconds),
            }
    return found


def _leaps(result: Result, arms: Sequence[Arm]) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for arm in arms:
        entries = [_leap(leap) for leap in result.leaps.get(arm.name, []) if leap.step is not None]
        if entries:
            found[arm.name] = entries
    return found


def _leap(leap: LeapEntry) -> dict[str, Any]:
    return {
        "step": _float(leap.step),
        "alpha": _float(leap.alpha),
        "rate_factor": _float(leap.rate_factor),
        "divergence": _float(leap.divergence),
        "horizon": _float(leap.horizon),
        "learning_rate": _float(leap.learning_rate),
        "reason": written(leap.reason),
        "scores": [[alpha, _float(score)] for alpha, score in leap.scores.items()],
        "done": what_was_done(leap),
        "shape": _shape(leap),
    }


def _shape(leap: LeapEntry) -> str | None:
    """The mark of what was done; None where nothing was."""
    if leap.back or leap.rolled_back is not None:
        return "cross"
    if leap.taken:
        return "circle"
    factor = 1.0 if leap.rate_factor is None else leap.rate_factor
    return None if factor == 1.0 else "triangle" if factor > 1.0 else "down"


def _sigma(figures: TrajectoryFigures) -> dict[str, Any]:
    """Modules coloured by the kind of their projection (the last part of the name), up to a palette's worth."""
    kinds = list(dict.fromkeys(module_kind(name) for name in figures.sigma))
    colour = {kind: f"m{i}" if i < _PALETTE else "other" for i, kind in enumerate(kinds)}
    modules = []
    for name, series in figures.sigma.items():
        # A stopped run's lists may be ragged: what has no step, or no value, is not drawn.
        known = zip(figures.steps, series, strict=False)
        points = [(float(s), float(v)) for s, v in known if s is not None and v is not None]
        if points:
            modules.append(
                {"name": name, "kind": module_kind(name), "role": colour[module_kind(name)], "points": points}
            )
    kept = {module["kind"] for module in modules}
    return {"kinds": [[kind, colour[kind]] for kind in kinds if kind in kept], "modules": modules}


def _windows(
    by_window: Mapping[str, Mapping[str, float | None]], zero: Mapping[str, float | None]
) -> list[dict[str, Any]]:
    """One entry per window length, the shortest first: its zero point and its points in the order of steps."""
    found = [
        {"window": window, "zero": _float(zero[window]), "points": points}
        for window, row in by_window.items()
        if (points := _points(row))
    ]
    found.sort(key=lambda entry: (len(str(entry["window"])), str(entry["window"])))
    return found


def _points(row: Mapping[str, float | None]) -> list[tuple[float, float]]:
    """{"10": .9, "20": .95} as sorted pairs; entries whose step is no number, or that hold none, are left out."""
    pairs = []
    for step, value in row.items():
        try:
            x = float(step)
        except ValueError:
            continue
        if value is not None and math.isfinite(x):
            pairs.append((x, float(value)))
    return sorted(pairs)
