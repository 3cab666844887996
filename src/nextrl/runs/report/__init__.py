"""`report.html`: one self-contained page of a result, with nothing to fetch.

The charts are drawn by about 400 lines of our own JavaScript from numbers embedded in the page. Plotly would have
added 4 MB to a page of 100 kB, and static images could not show eighteen arms that a reader turns on and off, follow
the width of a phone, or change with the dark mode. Every figure is also in a table that needs no script.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nextrl.checkpoints.atomic import write_bytes
from nextrl.errors import InputError
from nextrl.nested import dotted
from nextrl.runs.report import rows
from nextrl.runs.report.arms import read_arms
from nextrl.runs.report.charts import chart_data, embed
from nextrl.runs.report.reading import mapping, number, text
from nextrl.version import VERSION

__all__ = ["render", "write_report"]

NAME = "report.html"
_ADVICE = {
    "leap": "leap",
    "raise_lr": "raise the learning rate",
    "lower_lr": "lower the learning rate",
    "average": "average the last checkpoints",
    "continue": "go on as it is",
}
_NO_VERDICT = "This result carries no verdict; the figures below are all it says."
_REGIME = {
    "signal": "the path keeps its direction",
    "mixed": "part of the direction lasts",
    "noise": "no more direction than Adam's own memory",
}


def write_report(result: Mapping[str, Any], out_dir: Path) -> Path:
    """Write `out_dir/report.html` from a result (the keys of `result.json`); missing keys and nulls are left out.

    The page depends on the result alone: the same result gives the same bytes.

    Args:
        result: what `result.json` holds.
        out_dir: folder, made if it is not there.

    Returns:
        The page's path.

    Raises:
        InputError: `result` holds no arms, or the page cannot be written.
    """
    page = render(result)
    target = Path(out_dir) / NAME
    try:
        write_bytes(target, page.encode("utf-8"))
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error.strerror}): choose another folder") from error
    return target


def render(result: Mapping[str, Any]) -> str:
    """The page as a string.

    Raises:
        InputError: `result` is not a mapping with a mapping of arms.
    """
    if not isinstance(result, Mapping) or not mapping(result.get("arms")):
        raise InputError(
            "the result holds no arms: is this the result.json of `nextrl demo` or `nextrl run`?"
        )
    environment = Environment(
        loader=PackageLoader("nextrl.runs.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(_context(result, environment))


def _context(result: Mapping[str, Any], environment: Environment) -> dict[str, Any]:
    arms = read_arms(result)
    charged, free = rows.costs(result, arms)
    regime, advice = text(result.get("regime")), text(result.get("advice"))
    config = _settings(mapping(result.get("config")))
    data = chart_data(result, arms)
    single = rows.is_single(result, arms)
    return {
        "single": rows.evaluations(arms[0]) if single else None,
        "task": text(result.get("task")) or "run",
        "seed": "unknown" if number(result.get("seed")) is None else str(result["seed"]),
        "verdict": _lead(text(result.get("verdict")) or _NO_VERDICT),
        "regime": regime,
        "regime_meaning": _REGIME.get(regime or "", ""),
        "advice": _ADVICE.get(advice or "", advice),
        "target": rows.fixed(result.get("target")),
        "tiles": rows.single_tiles(result, arms[0]) if single else rows.tiles(result, arms),
        "comparison": rows.comparison(result, arms),
        "costs": charged,
        "free": free,
        "decisions": rows.decisions(result, arms),
        "config": config,
        "provenance": _provenance(result),
        "has": {key: bool(data[key]) for key in ("leaps", "persistence", "excess")}
        | {"sigma": bool(data["sigma"]["modules"]), "rate": any(a.last("learning_rate") for a in arms)},
        "data": Markup(embed(data)),
        "style": _source(environment, "report.css"),
        "script": _source(environment, "chart.js") + _source(environment, "report.js"),
    }


def _lead(verdict: str) -> tuple[str, str]:
    """The first sentence, and the rest. A full stop inside a number or a label is followed by no capital."""
    first, *rest = re.split(r"(?<=\.) (?=[A-Z])", verdict.strip(), maxsplit=1)
    return first, rest[0] if rest else ""


def _source(environment: Environment, name: str) -> Markup:
    """A shipped file as it is: our own text, not to be escaped."""
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def _settings(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Nested settings as (dotted name, text) pairs."""
    return [(k, v if isinstance(v, str) else json.dumps(v, default=str)) for k, v in dotted(value)]


def _provenance(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the page came from; the hash is over the result's canonical JSON, so it names the result, not a file."""
    canonical = json.dumps(result, sort_keys=True, separators=(",", ":"), default=str)
    return [
        ("page written by", f"nextrl {VERSION}"),
        ("result format", str(result.get("version", "unknown"))),
        ("sha256 of the result", hashlib.sha256(canonical.encode()).hexdigest()),
        *_settings(mapping(result.get("provenance"))),
    ]
