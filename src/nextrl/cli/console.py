"""What every verb shares: two consoles, the option `--json` and its output, and a progress bar.

Whatever is printed may hold a stranger's names. So neither console reads markup or emoji codes, and what a terminal
would act on is escaped in the one function through which rich takes every text.
"""

from __future__ import annotations

import json
import sys
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


console = _Plain(markup=False, emoji=False)
err_console = _Plain(stderr=True, markup=False, emoji=False)


def emit_json(value: Any) -> None:
    """Write one JSON object to stdout and nothing else; numbers that JSON lacks become null."""
    sys.stdout.write(json.dumps(json_ready(value), allow_nan=False) + "\n")


def rate_text(rate: float) -> str:
    """A learning rate to two digits, as people write it: `1.5e-4`."""
    mantissa, exponent = f"{rate:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def say_command(before: str, command: str) -> None:
    """A command on a line of its own, whole however narrow the terminal, so that it can be copied."""
    console.print(f"{before}\n  {command}", highlight=False, soft_wrap=True)


def training_bar(visible: bool) -> Progress:
    """A bar that counts steps on stderr, on a terminal only."""
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
        disable=not (visible and err_console.is_terminal),
    )
