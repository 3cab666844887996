"""Where studies write, and where their published records lie.

A study writes outside the repository unless `--out` says otherwise, so that a checkout stays clean and a run that was
cut short never mixes with what is published. A table reads the published records, `studies/<name>/raw`, unless it is
given another folder. To publish new records, give a study `--out studies/<name>/raw`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

STUDIES = Path(__file__).parent


def default_out(name: str) -> Path:
    """The folder of a study outside the repository: `nextrl-studies/NAME` among the system's temporary files."""
    return Path(tempfile.gettempdir()) / "nextrl-studies" / name


def published(name: str) -> Path:
    """The records of a study that are in git."""
    return STUDIES / name / "raw"


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that prints a module's docstring as it is written."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def records_to_read(name: str, description: str | None) -> Path:
    """The folder that a table was asked to read: its one argument, the published records by default."""
    arguments = parser(description)
    arguments.add_argument(
        "folder", type=Path, nargs="?", default=published(name), help="records; default: the published ones"
    )
    folder: Path = arguments.parse_args().folder
    return folder
