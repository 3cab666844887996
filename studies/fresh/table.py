"""The prototype beside `auto` and plain runs, from the published records of studies/fresh and studies/auto.

    python -m studies.fresh.table

Means over seeds with standard errors. `area` is the mean accuracy over the evaluations up to step 200, each weighted by
the steps until the next: how soon a run gets where it ends. Completions searched: none for the prototype, see
studies/auto for `auto`.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from studies.folders import published, records_to_read
from studies.over_seeds import mean_and_error

TASKS = ("chain", "chain-wrong-rule")
STEPS = (20, 40, 60, 100, 200)
TUNED = "plain-0.002"
"""The best of a sweep on chain-wrong-rule; studies/auto has no plain runs of the other task."""
SEEDS = (0, 1, 2)


def area(record: dict[str, Any]) -> float:
    """Area under the accuracy over steps, by trapezoids, divided by the steps."""
    steps, accuracy = record["steps"], record["accuracy"]
    pairs = list(zip(steps, accuracy, strict=True))
    parts = [(t - s) * (a + b) / 2 for (s, a), (t, b) in itertools.pairwise(pairs)]
    return sum(parts) / (steps[-1] - steps[0])


def row(name: str, runs: list[dict[str, Any]]) -> str:
    """One line of the table."""
    cells = [mean_and_error([r["accuracy"][r["steps"].index(s)] for r in runs]) for s in STEPS]
    return f"| {name} | {len(runs)} | " + " | ".join([*cells, mean_and_error([area(r) for r in runs])]) + " |"


def read(pattern: str, folder: Path) -> list[dict[str, Any]]:
    """Records of the seeds that are shown."""
    found = [folder / pattern.format(seed=seed) for seed in SEEDS]
    return [json.loads(path.read_text()) for path in found if path.is_file()]


def main() -> None:
    """Print one table for each task."""
    folder, auto = records_to_read("fresh", __doc__), published("auto")
    for task in TASKS:
        print(f"\n### {task}\n")
        print("| arm | seeds | " + " | ".join(f"step {s}" for s in STEPS) + " | area |")
        print("|---|---|" + "---|" * (len(STEPS) + 1))
        for start in sorted(
            (p for p in (folder / task).iterdir() if p.is_dir()), key=lambda p: float(p.name)
        ):
            print(
                row(
                    f"fresh batch, from {start.name}", read(f"{task}/{start.name}/seed-{{seed}}.json", folder)
                )
            )
            print(
                row(
                    f"auto, from {start.name}",
                    read(f"{task}/auto-{start.name}/seed-{{seed}}/record.json", auto),
                )
            )
        if tuned := read(f"{task}/{TUNED}/seed-{{seed}}/record.json", auto):
            print(row(TUNED, tuned))


if __name__ == "__main__":
    main()
