"""Pages show what their commands print: a table that was not pasted again after its records grew is found here."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {
    "studies.race.table": "docs/predictors.md",
    "studies.advice.table": "docs/advice.md",
    "studies.grid.table": "docs/auto-evidence.md",
    "studies.algorithms.table": "docs/algorithms.md",
    "studies.scale.table": "docs/scale.md",
    "studies.callback.table": "studies/callback/README.md",
    "studies.smollm2.table": "studies/smollm2/README.md",
    "studies.paper.paths_table": "studies/paper/README.md",
    "studies.paper.claims_table": "studies/paper/README.md",
    "studies.paper.ablations_table": "studies/paper/README.md",
}
Row = tuple[str, ...]


def tables(text: str) -> Iterator[tuple[Row, list[Row]]]:
    """(header, rows) of each Markdown table."""
    lines: list[Row] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append(tuple(cell.strip() for cell in line.strip("| ").split("|")))
        elif lines:
            yield lines[0], lines[2:]
            lines = []


def stale(page: str, printed: str) -> list[Row]:
    """Rows of a page that stand under a header which was printed, and were not.

    Raises:
        ValueError: the page has no table of what was printed.
    """
    headers = {header for header, _ in tables(printed)}
    rows = {row for _, group in tables(printed) for row in group}
    shown = [row for header, group in tables(page) if header in headers for row in group]
    if not shown:
        raise ValueError("the page has no table with a header that was printed")
    return [row for row in shown if row not in rows]


@pytest.mark.parametrize("command", PAGES)
def test_a_page_shows_what_its_command_prints(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [command])
    runpy.run_module(command, run_name="__main__")
    assert stale((ROOT / PAGES[command]).read_text(), capsys.readouterr().out) == []


def test_a_row_that_is_not_printed_any_more_is_found() -> None:
    printed = "| task | gain |\n|---|---|\n| chain | +0.10 |\n"
    assert stale("words\n\n" + printed, printed) == []
    assert stale(printed.replace("+0.10", "+0.11"), printed) == [("chain", "+0.11")]
    with pytest.raises(ValueError, match="no table"):
        stale(printed.replace("gain", "loss"), printed)
