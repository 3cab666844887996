"""What every verb shares: two consoles, the option `--json` and its output, and a progress bar."""

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

from nextrl.nested import json_ready

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, and nothing else.")]

console = Console()
err_console = Console(stderr=True)


def emit_json(value: Any) -> None:
    """Write one JSON object to stdout and nothing else; numbers that JSON lacks become null."""
    sys.stdout.write(json.dumps(json_ready(value), allow_nan=False) + "\n")


def training_bar(visible: bool) -> Progress:
    """A bar that counts steps on stderr, on a terminal only."""
    return Progress(
        TextColumn("{task.description}"),
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
