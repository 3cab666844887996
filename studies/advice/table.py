"""Is the advice right? `advise` at step 100 of every plain run of a grid, against what the grid says would have paid.

    python studies/advice/table.py TASK=FOLDER [TASK=FOLDER ...] > studies/advice/table.md

FOLDER holds one plain run a rate and seed, as studies/auto/run.py writes it (`plain-RATE/seed-N`). What would have
paid is read off the same grid: "faster" where the best higher rate ends, at step 200 and in the mean over seeds, more
than .02 above this one; "slower" where a lower one does; "keep" otherwise. Advice counts as faster for `leap` and
`raise_lr`, keep for `continue` and `average`, slower for `lower_lr`. The advice sees nothing after step 100.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from nextrl import Trajectory, advise

AT, MARGIN = 100, 0.02
CLASSES = ("faster", "keep", "slower")
CLASS_OF = {
    "leap": "faster",
    "raise_lr": "faster",
    "continue": "keep",
    "average": "keep",
    "lower_lr": "slower",
}


def final_accuracy(folder: Path) -> dict[float, float]:
    """Rate -> mean accuracy over seeds at the end."""
    ends: dict[float, list[float]] = {}
    for record in folder.glob("plain-*/seed-*/record.json"):
        rate = float(record.parent.parent.name.split("-", 1)[1])
        ends.setdefault(rate, []).append(json.loads(record.read_text())["accuracy"][-1])
    return {rate: sum(values) / len(values) for rate, values in ends.items()}


def what_paid(rate: float, ends: dict[float, float]) -> str:
    """The class that the grid shows for a rate."""
    higher = max((a for r, a in ends.items() if r > rate), default=0.0)
    lower = max((a for r, a in ends.items() if r < rate), default=0.0)
    if max(higher, lower) - ends[rate] <= MARGIN:
        return "keep"
    return "faster" if higher >= lower else "slower"


def main() -> None:
    """One line a run on stderr, the tables on stdout."""
    counts: Counter[tuple[str, str]] = Counter()
    details = []
    for argument in sys.argv[1:]:
        task, folder = argument.split("=", 1)
        ends = final_accuracy(Path(folder))
        for run in sorted(Path(folder).glob("plain-*/seed-*")):
            rate = float(run.parent.name.split("-", 1)[1])
            given = advise(Trajectory.load(run).upto(AT))
            truth = what_paid(rate, ends)
            counts[truth, CLASS_OF[given.advice]] += 1
            details.append((task, rate, run.name, truth, given.advice))
            print(*details[-1], file=sys.stderr, flush=True)
    total = sum(counts.values())
    right = sum(counts[c, c] for c in CLASSES)
    most = max(CLASSES, key=lambda c: sum(counts[c, a] for a in CLASSES))
    constant = sum(counts[most, a] for a in CLASSES)
    print("| what paid | " + " | ".join(f"advised {c}" for c in CLASSES) + " |")
    print("|---|" + "---|" * len(CLASSES))
    for truth in CLASSES:
        print(f"| {truth} | " + " | ".join(str(counts[truth, a]) for a in CLASSES) + " |")
    print(
        f"\n{right} of {total} right ({right / total:.0%}); always saying '{most}': {constant / total:.0%}.\n"
    )
    print("| task | rate | what paid | advice (one a seed) |")
    print("|---|---|---|---|")
    for task, rate in sorted({(d[0], d[1]) for d in details}):
        rows = [d for d in details if d[:2] == (task, rate)]
        print(f"| {task} | {rate:g} | {rows[0][3]} | {', '.join(d[4] for d in rows)} |")


if __name__ == "__main__":
    main()
