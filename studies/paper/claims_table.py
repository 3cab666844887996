"""Two tables from the records of studies/paper/claims.py: fewer steps (c), and algorithms and tasks (d).

python -m studies.paper.claims_table [FOLDER]
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from studies.folders import published, records_to_read
from studies.over_seeds import mean_and_error
from studies.paper.claims import (
    AFTER,
    ALGORITHMS,
    AT,
    CAUTIOUS,
    LEAPS,
    LONG,
    SMOLLM2_CAUTIOUS,
    SMOLLM2_TASK,
    SMOLLM2_TUNED,
    TASKS,
    TUNED,
)

END = AT + AFTER
COMPARED = [(task, rate) for task in TASKS for rate in (CAUTIOUS, TUNED)]
COMPARED += [(SMOLLM2_TASK, rate) for rate in (SMOLLM2_CAUTIOUS, SMOLLM2_TUNED)]
Records = dict[str, dict[str, Any]]
"""Seed ("seed-0") -> an arm's record."""


def read(folder: Path, task: str, cell: str) -> dict[str, Records]:
    """Arm -> its records."""
    found: dict[str, Records] = {}
    for path in sorted((folder / task / cell).glob("*/seed-*.json")):
        found.setdefault(path.parent.name, {})[path.stem] = json.loads(path.read_text())
    return found


def at(record: dict[str, Any], step: int) -> float | None:
    """Accuracy measured at that step."""
    return record["accuracy"][record["steps"].index(step)] if step in record["steps"] else None


def needed(record: dict[str, Any], accuracy: float) -> float | None:
    """Steps after which a run has reached an accuracy, on the line between two evaluations; None: it never has."""
    pairs = list(zip(record["steps"], record["accuracy"], strict=True))
    if pairs[0][1] >= accuracy:
        return float(pairs[0][0])
    for (before, low), (after, high) in itertools.pairwise(pairs):
        if low < accuracy <= high:
            return before + (after - before) * (accuracy - low) / (high - low)
    return None


def over(values: list[float | None], digits: int = 3, sign: str = "") -> str:
    """Mean and error; a dash where any is missing."""
    known = [v for v in values if v is not None]
    return mean_and_error(known, digits, sign) if known and len(known) == len(values) else "-"


def charged(record: dict[str, Any]) -> float:
    """Steps that a run up to its end is worth, completions of its search included."""
    trained = record["completions"][-1] - record["search_completions"]
    return float(record["steps"][-1] * record["completions"][-1] / trained)


def saved(arm: list[dict[str, Any]], plain: list[dict[str, Any]]) -> list[str]:
    """Steps that plain takes to an arm's accuracy at its end; what share of them the arm saves, its search charged.

    Where plain never gets there both are bounds, and the seeds of which that is so are counted.
    """
    needs = [needed(p, a["accuracy"][-1]) for a, p in zip(arm, plain, strict=True)]
    if 0.0 in needs:  # plain began above it: nothing was spared
        return ["0", "-"]
    known = [100 * (1 - charged(a) / n) for a, n in zip(arm, needs, strict=True) if n]
    if len(known) == len(needs):
        return [over(needs, 0), over(list(known), 0)]
    bounds = [100 * (1 - charged(a) / LONG) for a, n in zip(arm, needs, strict=True) if n is None]
    beyond = f"({len(bounds)} of {len(needs)})"
    return [f"> {LONG} {beyond}", f"> {min(bounds):.1f} {beyond}"]


def row(arms: dict[str, Records], name: str) -> list[str]:
    """One arm: accuracy after its leap, at 250 and at 400, what it is ahead of plain, and its price."""
    seeds = [seed for seed in arms[name] if seed in arms["plain"]]
    mine, plain = [arms[name][s] for s in seeds], [arms["plain"][s] for s in seeds]
    leaps = name in LEAPS or name == "restart"
    ends = [at(r, END) for r in mine]
    ahead = [e - (at(p, END) or 0.0) if e is not None else None for e, p in zip(ends, plain, strict=True)]
    ran_on = [r if at(r, END) is None else until(r, END) for r in mine]
    alphas = ", ".join(f"{d['alpha']:g}" for r in mine for d in r["decisions"]) if name in LEAPS else ""
    return [
        name,
        str(len(seeds)),
        alphas or "-",
        over([r["accuracy"][0] for r in mine]) if leaps else over([at(r, AT) for r in mine]),
        over(ends),
        over([at(r, LONG) for r in mine]) if not leaps and name != "auto" else "-",
        *(["-"] * 3 if name == "plain" else [over(ahead, sign="+"), *saved(ran_on, plain)]),
        over([charged(r) for r in ran_on], 0) if leaps else str(END),
        over([r["fit_seconds"] for r in mine], 0) if name in LEAPS else "-",
        over([r["seconds"][-1] for r in ran_on], 0),
    ]


def until(record: dict[str, Any], step: int) -> dict[str, Any]:
    """A record as it would be had the run ended there."""
    end = record["steps"].index(step) + 1
    return record | {key: record[key][:end] for key in ("steps", "accuracy", "completions", "seconds")}


def steps_table(folder: Path) -> None:
    """(c), one table for each task and rate."""
    head = (
        "arm", "seeds", "alpha", f"at {AT}", f"at {END}", f"at {LONG}", f"ahead of plain at {END}",
        "steps plain takes to that", "saved, %", "steps charged", "fit, s", f"s to {END}",
    )  # fmt: skip
    for task, rate in COMPARED:
        arms = read(folder, task, f"grpo-{rate:g}")
        if "plain" not in arms:
            continue
        print(f"\n`{task}`, rate {rate:g}:\n\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        for name in ("plain", "cooled", *LEAPS, "restart", "auto", "full"):
            if name in arms:
                print("| " + " | ".join(row(arms, name)) + " |")


def algorithms_table(folder: Path) -> None:
    """(d)."""
    print(
        "\n| task | algorithm | seeds | plain at 250 | next-paper, ahead | next, ahead |\n|---|---|---|---|---|---|"
    )
    for task in (*TASKS, "partial"):
        for algorithm in ALGORITHMS:
            arms = read(folder, task, f"{algorithm}-{CAUTIOUS:g}")
            seeds = sorted(
                set(arms.get("plain", {})) & set(arms.get("next-paper", {})) & set(arms.get("next", {}))
            )
            if not seeds:
                continue
            plain = [at(arms["plain"][s], END) or 0.0 for s in seeds]
            cells = [
                over([(at(arms[n][s], END) or 0.0) - p for s, p in zip(seeds, plain, strict=True)], sign="+")
                for n in ("next-paper", "next")
            ]
            print(f"| {task} | {algorithm} | {len(seeds)} | {over(list(plain))} | {cells[0]} | {cells[1]} |")


def main() -> None:
    """Both tables."""
    folder = records_to_read("paper", __doc__)
    folder = folder / "claims" if folder == published("paper") else folder
    steps_table(folder)
    algorithms_table(folder)


if __name__ == "__main__":
    main()
