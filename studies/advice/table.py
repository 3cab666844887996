"""Is the advice right? `decide` on the measurements of studies/advice/measure.py, against what the grid says paid.

    python -m studies.advice.table
    python -m studies.advice.table --calibrate      # the thresholds, from all three seeds

What would have paid is read off the same grid: "faster" where the best higher rate ends, at step 150 and in the mean
over seeds, more than .02 above this one; "slower" where a lower one does; "keep" otherwise. Advice counts as faster for
`leap` and `raise_lr`, keep for `continue` and `average`, slower for `lower_lr`. Advice at step 50 or 100 sees nothing
after it. Balanced accuracy is the mean over the three classes of the share that was right, 33 % for any constant.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

from nextrl.judge.advice_features import AdviceFeatures
from nextrl.judge.advice_signs import DEFAULT, Thresholds
from nextrl.judge.advise import decide
from nextrl.judge.regime import PersistenceWindow
from studies.folders import parser, published

END, MARGIN = "150", 0.02
SEEDS = (0, 1, 2)
LEVELS = ("high", "medium", "low")
CLASSES = ("faster", "keep", "slower")
CLASS_OF = {
    "leap": "faster",
    "raise_lr": "faster",
    "continue": "keep",
    "average": "keep",
    "lower_lr": "slower",
}
# What calibration tries; everything else stays as it is.
GRID: dict[str, tuple[float, ...]] = {
    "faster": (0.15, 0.2, 0.25, 0.3, 0.35),
    "closing": (0.0, 0.4, 0.8, 1.0, 1.2, 1.4),
    "oscillates": (-0.2, -0.25, -0.3, -0.35, -0.4),
    "closing_back": (0.0, 0.15, 0.3, 0.5),
    "learned": (0.0, 0.05, 0.08, 0.12),
}


@dataclass(frozen=True)
class Case:
    """One run looked at once."""

    task: str
    rate: float
    seed: int
    step: str
    truth: str
    seen: AdviceFeatures

    def advised(self, thresholds: Thresholds) -> str:
        """The action."""
        return decide(self.seen, thresholds).advice


def what_paid(rate: float, ends: dict[float, float]) -> str:
    """The class that the grid shows for a rate."""
    higher = max((a for r, a in ends.items() if r > rate), default=0.0)
    lower = max((a for r, a in ends.items() if r < rate), default=0.0)
    if max(higher, lower) - ends[rate] <= MARGIN:
        return "keep"
    return "faster" if higher >= lower else "slower"


def _seen(stored: dict[str, Any]) -> AdviceFeatures:
    """The measurements of a record, without those that no rule reads any more."""
    read = {field.name: stored[field.name] for field in fields(AdviceFeatures) if field.name in stored}
    return AdviceFeatures(**{**read, "windows": tuple(PersistenceWindow(**w) for w in stored["windows"])})


def read(folder: Path) -> list[Case]:
    """Every case of both tasks."""
    cases = []
    for path in sorted(folder.glob("*.json")):
        rows = json.loads(path.read_text())
        by_rate: dict[float, list[float]] = {}
        for row in rows:
            by_rate.setdefault(row["rate"], []).append(row["accuracy"][END])
        ends = {r: sum(v) / len(v) for r, v in by_rate.items()}
        for row in rows:
            truth = what_paid(row["rate"], ends)
            for step, stored in row["features"].items():
                cases.append(Case(path.stem, row["rate"], row["seed"], step, truth, _seen(stored)))
    return cases


def count(cases: Iterable[Case], thresholds: Thresholds) -> Counter[tuple[str, str]]:
    """(what paid, class advised) -> cases."""
    return Counter((c.truth, CLASS_OF[c.advised(thresholds)]) for c in cases)


def accuracies(counts: Counter[tuple[str, str]]) -> tuple[float, float, float]:
    """(share right, balanced accuracy, share right of the best constant)."""
    rows = {c: sum(counts[c, a] for a in CLASSES) for c in CLASSES}
    total = sum(rows.values())
    right = sum(counts[c, c] for c in CLASSES) / total
    present = [c for c in CLASSES if rows[c]]
    balanced = sum(counts[c, c] / rows[c] for c in present) / len(present)
    return right, balanced, max(rows.values()) / total


def calibrate(cases: list[Case], seeds: Iterable[int]) -> tuple[Thresholds, float, int]:
    """The thresholds that do best on some seeds: (the median of each among equals, their balanced accuracy, equals)."""
    mine = [c for c in cases if c.seed in set(seeds)]
    found: list[tuple[float, Thresholds]] = []
    for values in itertools.product(*GRID.values()):
        thresholds = replace(DEFAULT, **dict(zip(GRID, values, strict=True)))
        found.append((accuracies(count(mine, thresholds))[1], thresholds))
    top = max(score for score, _ in found)
    best = [t for score, t in found if score == top]
    middle = {name: round(median(getattr(t, name) for t in best), 3) for name in GRID}
    return replace(DEFAULT, **middle), top, len(best)


def print_table(title: str, counts: Counter[tuple[str, str]]) -> None:
    """A confusion table and the line under it."""
    right, balanced, constant = accuracies(counts)
    print(f"\n{title}\n\n| what paid | " + " | ".join(f"advised {c}" for c in CLASSES) + " |")
    print("|---|" + "---|" * len(CLASSES))
    for truth in CLASSES:
        print(f"| {truth} | " + " | ".join(str(counts[truth, a]) for a in CLASSES) + " |")
    total = sum(counts.values())
    print(
        f"\n{right:.0%} of {total} right, balanced {balanced:.0%}; best constant {constant:.0%}, balanced 33%."
    )


def main() -> None:
    """The confusion tables: each seed by thresholds that never saw it; then what is shipped, cell by cell."""
    arguments = parser(__doc__)
    arguments.add_argument("folder", type=Path, nargs="?", default=published("advice"))
    arguments.add_argument("--calibrate", action="store_true")
    options = arguments.parse_args()
    cases = read(options.folder)
    if options.calibrate:
        thresholds, score, equals = calibrate(cases, SEEDS)
        print({name: getattr(thresholds, name) for name in GRID}, f"{score:.1%}", f"{equals} equals")
        return
    unseen: Counter[tuple[str, str]] = Counter()
    for held in reversed(SEEDS):
        thresholds, score, _ = calibrate(cases, set(SEEDS) - {held})
        counts = count((c for c in cases if c.seed == held), thresholds)
        values = ", ".join(f"{name} {getattr(thresholds, name):g}" for name in GRID)
        print_table(
            f"Seed {held} by thresholds from the other two ({values}; {score:.0%} balanced there)", counts
        )
        unseen += counts
    print_table("All seeds, each held out once", unseen)
    for step in ("50", "100"):
        print_table(f"As shipped, at step {step}", count((c for c in cases if c.step == step), DEFAULT))
    for task in sorted({c.task for c in cases}):
        print_table(f"As shipped, {task}", count((c for c in cases if c.task == task), DEFAULT))
    sure = Counter(
        (advice.confidence, CLASS_OF[advice.advice] == c.truth) for c in cases for advice in [decide(c.seen)]
    )
    parts = [f"{level} {sure[level, True]} of {sure[level, True] + sure[level, False]}" for level in LEVELS]
    print(f"\nAs shipped, right by confidence: {', '.join(parts)}.")
    print("\n| task | rate | what paid | at step 50 (seeds 0, 1, 2) | at step 100 |\n|---|---|---|---|---|")
    for task, rate in sorted({(c.task, c.rate) for c in cases}):
        rows = [c for c in cases if (c.task, c.rate) == (task, rate)]
        cells = [", ".join(c.advised(DEFAULT) for c in rows if c.step == s) for s in ("50", "100")]
        print(f"| {task} | {rate:g} | {rows[0].truth} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
