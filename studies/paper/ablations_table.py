"""The tables of studies/paper/ablations.py: what a leap at step 150 adds to the accuracy, by variant and by alpha.

python -m studies.paper.ablations_table [FOLDER]
"""

from __future__ import annotations

import json
from typing import Any

from studies.folders import published, records_to_read
from studies.over_seeds import mean_and_error
from studies.paper.ablations import ALPHAS, VARIANTS
from studies.paper.claims import SMOLLM2_TASK, TASKS

SHOWN = ("0.5", "1.5", "4", "8")
ALL_ALPHAS = tuple(f"{alpha:g}" for alpha in ALPHAS)
OVER_ALPHAS = ("as published", "next", "secant")


def gains(records: list[dict[str, Any]], name: str, alpha: str) -> list[float]:
    """Accuracy after the leap minus that of staying put, one a seed."""
    label = "full" if "full" in name else "plain"
    return [r["variants"][name]["accuracy"][alpha] - r["plain"][label]["staying"] for r in records]


def table(
    every: list[dict[str, Any]], names: list[str], alphas: tuple[str, ...], also: tuple[str, ...]
) -> None:
    """Gains of these variants at these alphas, and other figures of theirs."""
    head = ["variant", "seeds", *(f"alpha {a}" for a in alphas), *also]
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for name in names:
        records = [r for r in every if name in r["variants"]]
        if not records:
            continue
        own = [r["variants"][name] for r in records]
        cells = [mean_and_error(gains(records, name, a), sign="+") for a in alphas]
        cells += [mean_and_error([v[k] for v in own], 2) for k in also]
        print(f"| {name} | {len(records)} | " + " | ".join(cells) + " |")


def main() -> None:
    """Two tables for each task."""
    folder = records_to_read("paper", __doc__)
    folder = folder / "ablations" if folder == published("paper") else folder
    for task in (*TASKS, SMOLLM2_TASK):
        every = [json.loads(path.read_text()) for path in sorted((folder / task).glob("seed-*.json"))]
        if not every:
            continue
        for label in ("plain", "full"):
            known = [r["plain"][label] for r in every if label in r["plain"]]
            if known:
                at, later = (mean_and_error([p[s] for p in known]) for s in ("staying", "200"))
                print(f"`{task}`, {label}: {at} at step 150, {later} at step 200.")
        table(every, [v.name for v in VARIANTS], SHOWN, ("cosine", "length"))
        print(f"\nThe same on `{task}` over all alphas:")
        table(every, list(OVER_ALPHAS), ALL_ALPHAS, ())
        print()


if __name__ == "__main__":
    main()
