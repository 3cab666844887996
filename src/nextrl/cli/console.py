"""What every verb shares: two consoles, the option `--json` and its output, and a progress bar.

Whatever is printed may hold a stranger's names. So neither console reads markup or emoji codes or colours what looks
like a figure, and what a terminal would act on is escaped in the one function through which rich takes every text.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from nextrl.errors import printable
from nextrl.nested import json_ready

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, and nothing else.")]


class _Plain(Console):
    """A console on which text is text: `[bold]` is printed as it stands, an escape sequence as `\\x1b[...`."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


console = _Plain(markup=False, emoji=False, highlight=False)
err_console = _Plain(stderr=True, markup=False, emoji=False, highlight=False)


def emit_json(value: Any) -> None:
    """Write one JSON object to stdout and nothing else; numbers that JSON lacks become null."""
    sys.stdout.write(json.dumps(json_ready(value), allow_nan=False) + "\n")


def rate_text(rate: float) -> str:
    """A learning rate to two digits, as people write it: `1.5e-4`."""
    mantissa, exponent = f"{rate:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


MINUTES = 2.0
"""Between two lines of progress where there is no terminal to draw a bar on."""


class TrainingProgress:
    """Counts steps on stderr: a bar on a terminal; elsewhere a line every two minutes, so that a log shows life.

    Args:
        total: steps in all.
        shown: False shows nothing, as every process but the first of a launch does.
        bar: False shows lines even on a terminal.
        clock: seconds, for tests.
    """

    def __init__(
        self, total: int, *, shown: bool = True, bar: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._clock = total, clock
        self._drawn = shown and bar and err_console.is_terminal
        self._lines = shown and not self._drawn
        self._bar = _bar(self._drawn)
        self._task = self._bar.add_task("training", total=total)
        self._began = self._said = clock()
        self._first: int | None = None

    def __enter__(self) -> TrainingProgress:
        if self._drawn:  # rich 13.0 ends a bar that is not shown with an empty line
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            self._bar.stop()

    def update(self, done: int, what: str = "training") -> None:
        """So many steps are done."""
        self._bar.update(self._task, completed=done, description=what)
        now = self._clock()
        if self._first is None:
            self._first, self._began = done, now
        if self._lines and now - self._said >= 60 * MINUTES and done < self._total:
            self._said = now
            say_progress(done, self._total, now - self._began, done - self._first)


def say_progress(done: int, total: int, seconds: float, steps: int) -> None:
    """One line: how far, for how long, and how long it will take at the pace of these `steps` in these `seconds`."""
    left = f", about {_duration(seconds / steps * (total - done))} left" if steps > 0 else ""
    err_console.print(
        f"{done} of {total} steps ({done / total:.0%}), {_duration(seconds)} gone{left}", soft_wrap=True
    )


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _bar(drawn: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps,"),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=err_console,
        disable=not drawn,
    )
