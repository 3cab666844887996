"""The table of controls of docs/auto-evidence.md from the records of studies/auto/run.py: means with errors over seeds.

python -m studies.auto.table
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from studies.folders import records_to_read
from studies.grid.run import LAB, OWN
from studies.grid.table import area
from studies.over_seeds import mean_and_error

STEPS = (20, 40, 60, 100, 200)


def records(folder: Path, task: str) -> dict[str, list[dict]]:
    """Arm name -> its records, one a seed."""
    found: dict[str, list[dict]] = {}
    for path in sorted(folder.glob(f"{task}/*/seed-*/record.json")):
        found.setdefault(path.parent.parent.name, []).append(json.loads(path.read_text()))
    return found


def rate_of(name: str) -> float:
    """The learning rate in an arm's name, for sorting."""
    try:
        return float(name.split("-", 1)[1])
    except (ValueError, IndexError):  # a learning-rate-free optimizer has no rate
        return math.inf


def print_task(folder: Path, task: str) -> None:
    """One table: an arm a row."""
    arms = records(folder, task)
    if not arms:
        return
    print(f"\n### {task}\n")
    print("| arm | seeds | area | " + " | ".join(f"step {s}" for s in STEPS) + " |")
    print("|---|---|---|" + "---|" * len(STEPS))
    for name in sorted(arms, key=lambda n: (n.split("-")[0], rate_of(n))):
        runs = arms[name]
        cells = [mean_and_error([r["accuracy"][r["steps"].index(s)] for r in runs]) for s in STEPS]
        areas = mean_and_error([*map(area, runs)])
        print(f"| {name} | {len(runs)} | {areas} | " + " | ".join(cells) + " |")


def main() -> None:
    """Each task."""
    folder = records_to_read("auto", __doc__)
    for task in (*LAB, *OWN):
        print_task(folder, task)


if __name__ == "__main__":
    main()
