"""`nextrl report DIR`: rebuild the page from what DIR holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from nextrl.cli.console import AsJson, console, emit_json
from nextrl.errors import InputError
from nextrl.runs.report import write_report


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with a result.json, as demo and run write it.")
    ],
    as_json: AsJson = False,
) -> None:
    """Write DIR/report.html anew from DIR/result.json; nothing is trained and nothing is fetched.

    Example: nextrl report demo-out
    """
    page = write_report(read_result(folder), folder)
    if as_json:
        emit_json({"report": str(page), "bytes": page.stat().st_size})
        return
    console.print(f"The page: {page}", markup=False, highlight=False, soft_wrap=True)


def read_result(folder: Path) -> dict[str, Any]:
    """What `folder/result.json` holds.

    Raises:
        InputError: the folder or the file is not there, cannot be read, or is not a JSON object.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the one that `nextrl demo` or `nextrl run` wrote")
    path = folder / "result.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no result.json: its run has not finished; run the same command again"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not JSON ({error}): rebuild it with the command that made {folder}"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}, not an object: it is no result of nextrl")
    return value
