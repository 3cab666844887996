"""Three tables from the records of studies/paper/paths.py: R^2 ahead, E1 by step, and E1 at the same accuracy.

python -m studies.paper.paths_table [FOLDER]

In the third, two figures are of all singular values and of the eight largest; LoRA of rank 8 has no more.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from nextrl.trajectory.linearity import COMPONENTS
from studies.folders import published, records_to_read
from studies.over_seeds import mean_and_error

REACHED = (0.4, 0.5, 0.6, 0.7, 0.8)


def read(folder: Path) -> dict[tuple[str, str, float], list[dict[str, Any]]]:
    """(task, kind, rate) -> records, one a seed."""
    found: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/*/seed-*.json")):
        record = json.loads(path.read_text())
        run = record["run"]
        found.setdefault((run["task"], run["kind"], run["rate"]), []).append(record)
    return found


def crossing(record: dict[str, Any], reached: float) -> float | None:
    """The step at which accuracy reached so much, on the line between two evaluations; None: it never did."""
    looks = [(int(step), accuracy) for step, accuracy in record["accuracy"].items()]
    for (before, low), (after, high) in itertools.pairwise(looks):
        if low < reached <= high:
            return before + (after - before) * (reached - low) / (high - low)
    return None


def at_reward(record: dict[str, Any], reached: float, kind: str) -> float | None:
    """E1 (`e1`, or `e1_of_8`) where accuracy reached so much, on the line between two checkpoints.

    None where it never did, or did so before the first checkpoint.
    """
    step = crossing(record, reached)
    for (at, low), (then, high) in itertools.pairwise(zip(record["steps"], record[kind], strict=True)):
        if step is not None and at <= step <= then:
            return float(low + (high - low) * (step - at) / (then - at))
    return None


def reached_cell(found: list[dict[str, Any]], reached: float) -> str:
    """E1 of all singular values and of eight where accuracy reached so much, with the seeds that did if not all."""
    kinds = ("e1", "e1_of_8")
    both = [[e for r in found if (e := at_reward(r, reached, kind)) is not None] for kind in kinds]
    if not both[0]:
        return "-"
    count = f" ({len(both[0])} of {len(found)})" if len(both[0]) < len(found) else ""
    return ", ".join(dict.fromkeys(map(mean_and_error, both))) + count


def main() -> None:
    """R^2 ahead, E1 by step, E1 at the same accuracy."""
    folder = records_to_read("paper", __doc__)
    runs = read(folder / "paths" if folder == published("paper") else folder)
    print(
        "| task | training | rate | seeds | accuracy | "
        + " | ".join(f"R² of {c}" for c in COMPONENTS)
        + " | u, v turned |"
    )
    print("|---|---|---|---|---|" + "---|" * (len(COMPONENTS) + 1))
    for (task, kind, rate), found in runs.items():
        cells = [
            f"{mean_and_error([r['linear_ahead'][c][0] for r in found], 2)} "
            f"({fmean([r['linear_ahead'][c][3] / r['linear_ahead'][c][4] for r in found]):.0%})"
            for c in COMPONENTS
        ]
        cells.append(", ".join(mean_and_error([r["turned"][n] for r in found], 2) for n in ("u", "v")))
        ends = mean_and_error([list(r["accuracy"].values())[-1] for r in found])
        print(f"| {task} | {kind} | {rate:g} | {len(found)} | {ends} | " + " | ".join(cells) + " |")
    steps = (10, 30, 60, 100, 150)
    print(
        "\n| task | training | rate | "
        + " | ".join(f"E1 at {s}" for s in steps)
        + " | of 8 values, at 10 | at 150 | energy share at 150 |"
    )
    print("|---|---|---|" + "---|" * (len(steps) + 3))
    for (task, kind, rate), found in runs.items():
        cells = [mean_and_error([r["e1"][r["steps"].index(s)] for r in found]) for s in steps]
        cells += [mean_and_error([r["e1_of_8"][i] for r in found]) for i in (0, -1)]
        cells.append(mean_and_error([r["energy_share"][-1] for r in found]))
        print(f"| {task} | {kind} | {rate:g} | " + " | ".join(cells) + " |")
    print("\n| task | training | rate | " + " | ".join(f"E1 at accuracy {x}" for x in REACHED) + " |")
    print("|---|---|---|" + "---|" * len(REACHED))
    for (task, kind, rate), found in runs.items():
        cells = [reached_cell(found, x) for x in REACHED]
        print(f"| {task} | {kind} | {rate:g} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
