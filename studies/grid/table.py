"""The tables of docs/auto-evidence.md from the records of studies/grid/run.py.

python -m studies.grid.table
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from studies.folders import records_to_read
from studies.over_seeds import mean_and_error

Runs = dict[tuple[str, str, str, float], list[dict[str, Any]]]
"""(task, name, rule, rate) -> records, one a seed."""


def read(folder: Path, group: str) -> Runs:
    """The records of one group."""
    found: Runs = {}
    for path in sorted((folder / group).glob("*/*/*/seed-*.json")):
        record = json.loads(path.read_text())
        arm = record["arm"]
        found.setdefault((arm["task"], arm["name"], arm["rule"], arm["rate"]), []).append(record)
    return found


def area(record: dict[str, Any]) -> float:
    """Mean accuracy over the run: the area under the curve by its steps."""
    steps, accuracy = record["steps"], record["accuracy"]
    parts = [
        (b - a) * (x + y) / 2 for a, b, x, y in zip(steps, steps[1:], accuracy, accuracy[1:], strict=False)
    ]
    return sum(parts) / steps[-1]


def end(record: dict[str, Any]) -> float:
    """Accuracy at the last step."""
    return float(record["accuracy"][-1])


def best_plain(runs: Runs, task: str, name: str) -> float:
    """The plain rate of the greatest mean area."""
    rates = {
        rate: found for (t, n, rule, rate), found in runs.items() if (t, n, rule) == (task, name, "plain")
    }
    return max(rates, key=lambda rate: sum(map(area, rates[rate])) / len(rates[rate])) if rates else math.nan


def row(label: str, records: Sequence[dict[str, Any]], steps: Iterable[int]) -> str:
    """One arm."""
    cells = [mean_and_error([r["accuracy"][r["steps"].index(s)] for r in records]) for s in steps]
    areas, averaged = mean_and_error([*map(area, records)]), mean_and_error([r["averaged"] for r in records])
    searched = sum(r.get("searched", 0) for r in records)
    return f"| {label} | {len(records)} | {areas} | " + " | ".join(cells) + f" | {averaged} | {searched} |"


def print_starts(runs: Runs) -> None:
    """Each task: every start of `auto`, plain rates, rules without a judge; then the goals."""
    order = {"auto": 0, "kl-back": 1, "kl": 2, "effopd": 3, "plain": 4}
    met: list[str] = []
    for task in dict.fromkeys(t for t, *_ in runs):
        steps = (20, 40, 60, 100, 200)
        best = best_plain(runs, task, "default")
        print(f"\n### {task}\n")
        print("| arm | seeds | area | " + " | ".join(f"step {s}" for s in steps) + " | averaged | searched |")
        print("|---|---|---|" + "---|" * (len(steps) + 2))
        mine = [(rule, rate, found) for (t, _, rule, rate), found in runs.items() if t == task]
        for rule, rate, found in sorted(mine, key=lambda entry: (order[entry[0]], entry[1])):
            tuned = " (best)" if rule == "plain" and rate == best else ""
            print(row(f"{rule}, {rate:g}{tuned}", found, steps))
        if math.isnan(best):
            continue
        tuned_runs = {r["arm"]["seed"]: r for r in runs[task, "default", "plain", best]}
        for rule, rate, found in sorted(mine, key=lambda entry: entry[1]):
            pairs = [(r, tuned_runs[r["arm"]["seed"]]) for r in found if r["arm"]["seed"] in tuned_runs]
            if rule == "auto" and pairs:
                met.append(
                    f"| {task} | {rate:g} | {len(pairs)} | "
                    f"{mean_and_error([area(a) / area(b) if area(b) > 0 else area(b) / area(a) for a, b in pairs])} | "
                    f"{mean_and_error([end(a) - end(b) for a, b in pairs])} |"
                )
    print("\n| task | start | seeds | area over the best plain rate's | end less the best plain rate's |")
    print("|---|---|---|---|---|")
    print("\n".join(met))


def print_options(runs: Runs) -> None:
    """Each option: `auto` from two starts beside the best of three plain rates."""
    print("\n| option | best plain rate | its area, end | auto from 1e-5 | auto from 2e-2 |")
    print("|---|---|---|---|---|")
    for name in dict.fromkeys(n for _, n, *_ in runs):
        best = best_plain(runs, "chain", name)
        cells = [
            f"{mean_and_error([*map(area, found)])}, {mean_and_error([*map(end, found)])}" if found else "-"
            for found in (
                runs.get(("chain", name, rule, rate), [])
                for rule, rate in (("plain", best), ("auto", 1e-5), ("auto", 2e-2))
            )
        ]
        print(f"| {name} | {best:g} | " + " | ".join(cells) + " |")


def print_watched(runs: Runs) -> None:
    """Each plain run that was watched: its accuracy, and the most harm that its windows added up to."""
    print("\n| task | plain rate | seed | accuracy at the end | largest S | nats per window: median, most |")
    print("|---|---|---|---|---|---|")
    for (task, _, _, rate), found in runs.items():
        for record in found:
            harm, nats = ([row[i] for row in record["seen"]] for i in (6, 2))
            print(
                f"| {task} | {rate:g} | {record['arm']['seed']} | {end(record):.3f} | {max(harm):.1f} | "
                f"{statistics.median(nats):.2g}, {max(nats):.2g} |"
            )


def main() -> None:
    """All tables."""
    folder = records_to_read("grid", __doc__)
    print_starts(read(folder, "starts"))
    if whole := read(folder, "weights"):
        print("\n## All weights")
        print_starts(whole)
    print_options(read(folder, "options"))
    print_watched(read(folder, "watched"))


if __name__ == "__main__":
    main()
