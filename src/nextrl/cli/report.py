"""`nextrl report DIR`: rebuild the page from what DIR holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nextrl.cli import values
from nextrl.cli.console import AsJson, console, emit_json
from nextrl.errors import InputError
from nextrl.runs.layout import RESULT
from nextrl.runs.report import write_report
from nextrl.runs.result import read_result


def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Folder with a result.json, as demo and run write it.", callback=values.path
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Write DIR/report.html anew from DIR/result.json; nothing is trained and nothing is fetched.

    Example: nextrl report demo-out
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the one that `nextrl demo` or `nextrl run` wrote")
    page = write_report(read_result(folder / RESULT), folder)
    if as_json:
        emit_json({"report": str(page), "bytes": page.stat().st_size})
        return
    console.print(f"The page: {page}", soft_wrap=True)
