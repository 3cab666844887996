"""What the page's charts draw, as one JSON value: no styling beyond the names of colours, no layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nextrl.runs.report.arms import GROUPS, Arm
from nextrl.runs.report.reading import mapping, number, numbers, points, records, text

_PALETTE = 7


def chart_data(result: Mapping[str, Any], arms: Sequence[Arm]) -> dict[str, Any]:
    """Arms, target, leaps, sigma, persistence and excess, ready for `report.js`."""
    trajectory = mapping(result.get("trajectory"))
    return {
        "target": number(result.get("target")),
        "groups": {key: title for key, title in GROUPS.items() if any(arm.group == key for arm in arms)},
        "arms": [asdict(arm) for arm in arms],
        "reach": _reach(result, arms),
        "leaps": _leaps(result, arms),
        "sigma": _sigma(trajectory),
        "persistence": _windows(trajectory, "persistence"),
        "excess": _windows(trajectory, "excess"),
    }


def embed(value: Any) -> str:
    """JSON that is safe inside a script element: no `<`, `>` or `&` is left, and no line separator."""
    dumped = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return dumped.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _reach(result: Mapping[str, Any], arms: Sequence[Arm]) -> dict[str, dict[str, float | None]]:
    found = {}
    for arm in arms:
        entry = mapping(mapping(result.get("reach")).get(arm.name))
        if entry:
            found[arm.name] = {key: number(entry.get(key)) for key in ("steps", "completions", "seconds")}
    return found


def _leaps(result: Mapping[str, Any], arms: Sequence[Arm]) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for arm in arms:
        entries = []
        for leap in records(mapping(result.get("leaps")).get(arm.name)):
            alpha = number(leap.get("alpha"))
            if number(leap.get("step")) is None:
                continue
            entries.append(
                {
                    "step": number(leap.get("step")),
                    "alpha": alpha,
                    "horizon": number(leap.get("horizon")),
                    "learning_rate": number(leap.get("learning_rate")),
                    "excess": number(leap.get("excess")),
                    "reason": text(leap.get("reason")),
                    "scores": [[str(a), number(s)] for a, s in mapping(leap.get("scores")).items()],
                    "accepted": bool(leap.get("accepted", alpha)),
                }
            )
        if entries:
            found[arm.name] = entries
    return found


def _sigma(trajectory: Mapping[str, Any]) -> dict[str, Any]:
    """Modules coloured by the kind of their projection (the last part of the name), up to a palette's worth."""
    raw = trajectory.get("steps")
    steps = numbers(raw, len(raw)) if isinstance(raw, list | tuple) else []
    values = {name: numbers(v, len(steps)) for name, v in mapping(trajectory.get("sigma")).items()}
    kinds = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in values))
    colour = {kind: f"m{i}" if i < _PALETTE else "other" for i, kind in enumerate(kinds)}
    modules = []
    for name, series in values.items():
        kind = name.rsplit(".", 1)[-1]
        pairs = [(s, v) for s, v in zip(steps, series, strict=True) if s is not None and v is not None]
        if pairs:
            modules.append({"name": name, "kind": kind, "role": colour[kind], "points": pairs})
    kept = {module["kind"] for module in modules}
    return {"kinds": [[kind, colour[kind]] for kind in kinds if kind in kept], "modules": modules}


def _windows(trajectory: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """One entry a window length, shortest first; the zero point of an excess is 0 by definition."""
    zero = mapping(trajectory.get("zero"))
    found = []
    for name, series in mapping(trajectory.get(key)).items():
        pairs = points(series)
        if pairs:
            floor = 0.0 if key == "excess" else number(zero.get(name))
            found.append({"window": str(name), "zero": floor, "points": pairs})
    found.sort(key=lambda entry: (len(str(entry["window"])), str(entry["window"])))
    return found
