"""How many hostile inputs the tests try, by kind: the figures of docs/trust.md.

    python tools/hostile_counts.py

`python -m pytest tests/hostile` tries them; a test fails where one is neither answered nor refused in one line, so when
it passes, none is left over.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "tests" / "hostile")]

import test_cases_by_hand  # noqa: E402
import test_command_line  # noqa: E402
import test_doors  # noqa: E402


def main() -> None:
    """Print a line for each file and each kind."""
    tables = {
        test_doors: {name: count for name, (_, count) in test_doors.DOORS.items()},
        test_command_line: {name: count for name, (_, count) in test_command_line.KINDS.items()},
        test_cases_by_hand: {
            name: sum(1 for _ in cases()) for name, cases in test_cases_by_hand.KINDS.items()
        },
    }
    for module, table in tables.items():
        kinds = ", ".join(f"{name} {count}" for name, count in table.items())
        sys.stdout.write(f"{module.__name__}: {sum(table.values())} ({kinds})\n")


if __name__ == "__main__":
    main()
