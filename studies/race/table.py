"""The tables of docs/predictors.md from the records of studies/race/leaps.py and onward.py.

    python -m studies.race.table

A method's gain is the test accuracy right after its leap minus that of staying put, at the alpha that validation
prompts preferred, 0 where none beat staying put (`none`'s gain is 0). The standard error is over seeds, paired: every
method leaps the same checkpoints, and "to factors" is the mean over runs of a method's gain minus that of `factors`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, median
from typing import Any

from studies.folders import records_to_read
from studies.over_seeds import mean_and_error

TASKS = {"chain": ("5e-05", "0.0002", "0.0005"), "chain-wrong-rule": ("5e-05", "0.0002", "0.001")}
Runs = dict[tuple[str, str, str], dict[str, Any]]


def read(folder: Path) -> Runs:
    """(task, rate, seed) -> record."""
    return {
        (task, rate, path.stem): json.loads(path.read_text())
        for task, rates in TASKS.items()
        for rate in rates
        for path in sorted(folder.glob(f"{task}/{rate}/seed-*.json"))
    }


def cell(values: list[float]) -> str:
    """`+.123 ± .004 (5)`: mean, standard error over seeds, how many."""
    return f"{mean_and_error(values, sign='+')} ({len(values)})" if values else "-"


def gain(entry: dict[str, Any]) -> float:
    """What a user gets: nothing where validation would have stayed."""
    return 0.0 if entry["stays"] else float(entry["gain"])


def entries(runs: Runs, task: str, rate: str, method: str) -> dict[str, dict[str, Any]]:
    """seed -> the method's entry, where it could be fitted."""
    found = {s: r["methods"].get(method, {}) for (t, a, s), r in runs.items() if (t, a) == (task, rate)}
    return {seed: entry for seed, entry in found.items() if "alpha" in entry}


def methods(runs: Runs) -> list[str]:
    """Every method of any run."""
    return sorted({m for r in runs.values() for m in r["methods"]})


def paired(runs: Runs, method: str, rates: Iterable[tuple[str, str]]) -> list[float]:
    """gain of a method minus that of `factors`, run by run."""
    differences = []
    for task, rate in rates:
        mine, theirs = entries(runs, task, rate, method), entries(runs, task, rate, "factors")
        differences += [gain(mine[s]) - gain(theirs[s]) for s in mine if s in theirs]
    return differences


def low(runs: Runs) -> list[tuple[str, str]]:
    """The (task, rate) pairs whose rate is too low."""
    return [(task, rate) for task, rates in TASKS.items() for rate in rates[:2]]


def print_gains(runs: Runs) -> None:
    """One row a method, one column a (task, rate); the order is the mean over the cells where leaps pay."""
    pairs = [(t, r) for t, rates in TASKS.items() for r in rates]
    print("\n| method | " + " | ".join(f"{t} {r}" for t, r in pairs) + " | to factors, four low cells |")
    print("|---|" + "---|" * (len(pairs) + 1))

    def rank(method: str) -> float:
        difference = paired(runs, method, low(runs))
        return -fmean(difference) if difference else math.inf

    for method in sorted(methods(runs), key=rank):
        cells = [cell([gain(e) for e in entries(runs, t, r, method).values()]) for t, r in pairs]
        print(f"| {method} | " + " | ".join(cells) + f" | {cell(paired(runs, method, low(runs)))} |")


def print_geometry(runs: Runs) -> None:
    """Direction and step length, over the cells whose rate is too low, and the cosine at the tuned rates."""
    tuned = [(task, rates[-1]) for task, rates in TASKS.items()]
    print(
        "\n| method | gain at alpha 1 | at its best | best alpha by cell (median) | cosine, low | cosine, tuned |"
    )
    print("|---|---|---|---|---|---|")
    for method in methods(runs):
        found = {pair: list(entries(runs, *pair, method).values()) for pair in low(runs)}
        flat = [e for cell_entries in found.values() for e in cell_entries]
        if not flat:
            continue
        alphas = ", ".join(f"{median([e['alpha'] for e in es]):g}" if es else "-" for es in found.values())
        right = [e["cosine"] for pair in tuned for e in entries(runs, *pair, method).values()]
        print(
            f"| {method} | {fmean(e['gain_at_one'] for e in flat):+.3f} | {fmean(map(gain, flat)):+.3f} | {alphas} | "
            f"{fmean(abs(e['cosine']) for e in flat):.2f} | {fmean(map(abs, right)) if right else math.nan:.2f} |"
        )


def print_tuned(runs: Runs) -> None:
    """What was tried where the rate is right: gain at the best alpha other than 0, whatever validation said."""
    print("\n| method | chain, forced | chain, validated | wrong rule, forced | wrong rule, validated |")
    print("|---|---|---|---|---|")
    tuned = [(task, rates[-1]) for task, rates in TASKS.items()]

    def forced(method: str) -> list[float]:
        return [e["gain"] for pair in tuned for e in entries(runs, *pair, method).values()]

    for method in sorted(methods(runs), key=lambda m: -fmean(forced(m) or [-1.0])):
        row = []
        for pair in tuned:
            found = list(entries(runs, *pair, method).values())
            row += [cell([e["gain"] for e in found]), cell([gain(e) for e in found])]
        print(f"| {method} | " + " | ".join(row) + " |")


def print_landscape(runs: Runs) -> None:
    """Validation gain by alpha for a few directions: what a wrong step length costs next to a wrong direction."""
    alphas = ("0.25", "0.5", "1", "2", "4", "8", "16", "32")
    print("\n| task, rate | method | " + " | ".join(f"alpha {a}" for a in alphas) + " |")
    print("|---|---|" + "---|" * len(alphas))
    for task, rate in low(runs):
        for method in ("factors", "secant", "linear", "next"):
            rows = [
                [r["methods"][method]["scores"][a] - r["none"]["validation"] for a in alphas]
                for (t, x, _), r in runs.items()
                if (t, x) == (task, rate) and "scores" in r["methods"].get(method, {})
            ]
            means = [f"{fmean(column):+.2f}" for column in zip(*rows, strict=True)]
            print(f"| {task} {rate} | {method} | " + " | ".join(means) + " |")


def print_onward(runs: Runs) -> None:
    """Accuracy at step 150 after a leap at 100, minus the plain run's; only leaps that validation accepted."""
    names = sorted({m for r in runs.values() for m in r.get("onward", {})})
    if not names:
        return
    print("\n| method | task, rate | right after | 50 steps on |\n|---|---|---|---|")
    for method in names:
        for task, rates in TASKS.items():
            for rate in rates:
                mine = [
                    r
                    for (t, a, _), r in runs.items()
                    if (t, a) == (task, rate) and method in r.get("onward", {})
                ]
                if mine:
                    after = [r["methods"][method]["gain"] for r in mine]
                    later = [r["onward"][method] - r["plain"]["150"] for r in mine]
                    print(f"| {method} | {task} {rate} | {cell(after)} | {cell(later)} |")


def main() -> None:
    """Five tables."""
    runs = read(records_to_read("race", __doc__))
    print_gains(runs)
    print_geometry(runs)
    print_landscape(runs)
    print_tuned(runs)
    print_onward(runs)


if __name__ == "__main__":
    main()
