"""The table of docs/algorithms.md from the records of studies/algorithms/run.py: means and standard errors over seeds.

python -m studies.algorithms.table
"""

from __future__ import annotations

import json
from typing import Any

from nextrl.engines import algorithms
from studies.folders import records_to_read
from studies.over_seeds import mean_and_error

ARMS = {
    "plain": "plain, 5e-5",
    "tuned": "plain, 1e-3",
    "auto": "auto, from 5e-5",
    "next": "next, leap at 100",
}
STEPS = (40, 100, 150)


def at(records: list[dict[str, Any]], key: str, step: int) -> str:
    """A figure at a step, or a dash where the arm was not measured there."""
    found = [r[key][r["steps"].index(step)] for r in records if step in r["steps"]]
    return mean_and_error(found) if found else "-"


def row(name: str, arm: str, records: list[dict[str, Any]]) -> str:
    """One line of the table."""
    searched = [r["search_completions"] for r in records]
    cells = [
        name,
        ARMS[arm],
        str(len(records)),
        *(at(records, "accuracy", step) for step in STEPS),
        at(records, "greedy", records[0]["steps"][-1]),
        f"{sum(r['completions'][-1] for r in records) / len(records):.0f}",
        f"{sum(searched) / len(records):.0f}",
        f"{sum(r['seconds'][-1] for r in records) / len(records):.0f}",
        f"{records[0]['learning_rate'][-1]:.1e}" if len(records) == 1 else rates(records),
    ]
    return "| " + " | ".join(cells) + " |"


def rates(records: list[dict[str, Any]]) -> str:
    """The range of the rates that the seeds ended at."""
    ends = sorted(r["learning_rate"][-1] for r in records)
    return f"{ends[0]:.1e}" if ends[0] == ends[-1] else f"{ends[0]:.1e} to {ends[-1]:.1e}"


def main() -> None:
    """All algorithms, in the order of the registry; what has not been run is left out."""
    folder = records_to_read("algorithms", __doc__)
    heads = ["algorithm", "arm", "seeds", *(f"step {s}" for s in STEPS), "greedy, end"]
    heads += ["completions", "of them searched", "s", "rate, end"]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for name in algorithms.names():
        for arm in ARMS:
            paths = sorted(folder.glob(f"{name}/{arm}/seed-*/record.json"))
            records = [json.loads(path.read_text()) for path in paths]
            if records:
                print(row(name, arm, records))


if __name__ == "__main__":
    main()
