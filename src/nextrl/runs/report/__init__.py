"""`report.html`: one self-contained page of a result, with nothing to fetch.

The charts are drawn by about 400 lines of our own JavaScript from numbers embedded in the page. Plotly would have
added 4 MB to a page of 100 kB, and static images could not show eighteen arms that a reader turns on and off, follow
the width of a phone, or change with the dark mode. Every figure is also in a table that needs no script.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nextrl.checkpoints.atomic import write_bytes
from nextrl.judge.advice import WORDS
from nextrl.judge.regime import MEANING, OSCILLATES, SIGNAL
from nextrl.nested import dotted
from nextrl.palette import css
from nextrl.runs.layout import REPORT
from nextrl.runs.report import rows
from nextrl.runs.report.arms import base_greedy, read_arms, written
from nextrl.runs.report.charts import chart_data, embed
from nextrl.runs.result import Result
from nextrl.version import VERSION

__all__ = ["render", "write_report"]

_NO_VERDICT = "This result carries no verdict; the figures below are all it says."


def write_report(result: Result, out_dir: Path) -> Path:
    """Write `out_dir/report.html` from a result; what the result does not hold is left out.

    The page depends on the result alone: the same result gives the same bytes.

    Args:
        result: made by `demo` or `run`, or read by `nextrl.runs.result.read_result`.
        out_dir: folder, made if it is not there.

    Returns:
        The page's path.

    Raises:
        InputError: the page cannot be written.
    """
    target = Path(out_dir) / REPORT
    write_bytes(target, render(result).encode("utf-8"))
    return target


def render(result: Result) -> str:
    """The page as a string."""
    environment = Environment(
        loader=PackageLoader("nextrl.runs.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    return environment.get_template("report.html.j2").render(_context(result, environment))


def _context(result: Result, environment: Environment) -> dict[str, Any]:
    arms = read_arms(result)
    charged, free = rows.costs(result, arms)
    columns, decided = rows.decisions(result, arms)
    regime, advice = written(result.regime), written(result.advice)
    # Of a run whose rate or weights were changed on the way it says where that left them, which the verdict explains.
    if result.single and arms[0].role != "plain":
        regime = None
    data = chart_data(result, arms)
    recommended = result.recommendation
    return {
        "single": rows.evaluations(arms[0]) if result.single else None,
        "task": written(result.task) or "run",
        "seed": "unknown" if result.seed is None else str(result.seed),
        "verdict": _lead(written(result.verdict) or _NO_VERDICT),
        "regime": regime,
        "regime_meaning": next((clause for name, clause in MEANING.items() if name == regime), ""),
        "advice": WORDS.get(advice, advice),  # type: ignore[call-overload]  # a file may name another action
        "answer": None if recommended is None else written(recommended.answer),
        "lengths": rows.lengths(arms),
        "baseline": rows.baseline(result, arms),
        "target": rows.fixed(result.target),
        "tiles": rows.single_tiles(result, arms[0]) if result.single else rows.tiles(result, arms),
        "comparison": rows.comparison(result, arms),
        "costs": charged,
        "free": free,
        "columns": columns,
        "decisions": decided,
        "base_greedy": base_greedy(arms) is not None,
        "config": _settings(result.config),
        "provenance": _provenance(result),
        "has": {key: bool(data[key]) for key in ("leaps", "persistence", "excess")}
        | {"sigma": bool(data["sigma"]["modules"]), "rate": any(a.last("learning_rate") for a in arms)},
        "oscillates": rows.fixed(OSCILLATES, 2),
        "signal": rows.fixed(SIGNAL, 2),
        "data": Markup(embed(data)),
        "style": Markup(_colours()) + _source(environment, "report.css"),
        "script": _source(environment, "chart.js") + _source(environment, "report.js"),
    }


def _colours() -> str:
    """The palette as CSS variables, light, dark, and light again on paper."""
    light, dark = (f":root {{ {css(dark)} }}" for dark in (False, True))
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{ {dark} }}\n"


def _unbroken(text: str) -> Markup:
    """The text with each number in a span that no line break divides: `5e-05`, `92 %`."""
    parts = re.split(r"(\S*\d\S*(?: %\S*)?)", text)
    return Markup("").join(
        Markup('<span class="n">{}</span>').format(part) if i % 2 else part for i, part in enumerate(parts)
    )


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


def _provenance(result: Result) -> list[tuple[str, str]]:
    """Where the page came from."""
    return [
        ("page written by", f"nextrl {VERSION}"),
        ("result format", "unknown" if result.version is None else str(result.version)),
        ("sha256 of the result", result.digest),
        *_settings(result.provenance),
    ]
