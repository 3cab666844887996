"""The table of studies/paper/ablations.py: what a leap at step 150 adds to the accuracy, variant by variant.

python -m studies.paper.ablations_table [FOLDER]
"""

from __future__ import annotations

import json
from typing import Any

from studies.folders import published, records_to_read
from studies.over_seeds import mean_and_error
from studies.paper.ablations import TASKS, VARIANTS

SHOWN = ("0.5", "1.5", "4", "8")


def gains(records: list[dict[str, Any]], name: str, alpha: str) -> list[float]:
    """Accuracy after the leap minus that of staying put, one a seed."""
    label = "full" if "full" in name else "plain"
    return [r["variants"][name]["accuracy"][alpha] - r["plain"][label]["staying"] for r in records]


def main() -> None:
    """One table for each task."""
    folder = records_to_read("paper", __doc__)
    folder = folder / "ablations" if folder == published("paper") else folder
    for task in TASKS:
        every = [json.loads(path.read_text()) for path in sorted((folder / task).glob("seed-*.json"))]
        if not every:
            continue
        for label in ("plain", "full"):
            known = [r["plain"][label] for r in every if label in r["plain"]]
            if known:
                at, later = (mean_and_error([p[s] for p in known]) for s in ("staying", "200"))
                print(f"`{task}`, {label}: {at} at step 150, {later} at step 200.")
        head = ["variant", "seeds", *(f"alpha {a}" for a in SHOWN), "cosine", "length", "fit, s"]
        print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        for variant in VARIANTS:
            records = [r for r in every if variant.name in r["variants"]]
            if not records:
                continue
            own = [r["variants"][variant.name] for r in records]
            cells = [mean_and_error(gains(records, variant.name, a), sign="+") for a in SHOWN]
            cells += [mean_and_error([v[k] for v in own], 2) for k in ("cosine", "length")]
            cells.append(mean_and_error([v["fit_seconds"] for v in own], 0))
            print(f"| {variant.name} | {len(records)} | " + " | ".join(cells) + " |")
        print()


if __name__ == "__main__":
    main()
