"""The tables of studies/smollm2/README.md from the records of studies/smollm2/run.py.

python -m studies.smollm2.table
"""

from __future__ import annotations

import json
from statistics import fmean

from studies.folders import records_to_read
from studies.over_seeds import mean_and_error

STEPS = (0, 20, 40, 60, 80, 100)


def cell(values: list[float], errors: list[float]) -> str:
    """Mean over seeds and its standard error; with one seed the error over prompts, in brackets."""
    if not values:
        return "-"
    of_prompts = f" (± {errors[0]:.3f})" if len(values) == 1 else ""
    return mean_and_error(values) + of_prompts


def row(name: str, runs: list[dict]) -> str:
    """One arm: accuracy by step, greedy at the end, costs."""
    at = [
        [(r["accuracy"][i], r["se"][i]) for r in runs for i, s in enumerate(r["steps"]) if s == t]
        for t in STEPS
    ]
    cells = [cell([a for a, _ in found], [e for _, e in found]) for found in at]
    tail = [
        f"{fmean([r['greedy'][-1] for r in runs]):.3f}",
        f"{fmean([r['completions'][-1] for r in runs]):.0f}",
        f"{fmean([r['search_completions'] for r in runs]):.0f}",
        f"{fmean([r['seconds'][-1] for r in runs]):.0f}",
        ", ".join(f"{r['learning_rate'][-1]:.2g}" for r in runs),
    ]
    return "| " + " | ".join([name, str(len(runs)), *cells, *tail]) + " |"


def persistence_row(name: str, runs: list[dict]) -> str:
    """Excess persistence of a plain run at each window's end, mean over seeds."""
    by_step: dict[int, list[float]] = {}
    for run in runs:
        for entry in run["persistence"]:
            by_step.setdefault(entry["step"], []).append(entry["excess"])
    return f"{name}: " + ", ".join(f"{s}: {fmean(v):.2f}" for s, v in sorted(by_step.items()))


def main() -> None:
    """One table a task."""
    raw = records_to_read("smollm2", __doc__)
    for task in sorted(p for p in raw.iterdir() if p.is_dir()):
        arms: dict[str, list[dict]] = {}
        for path in sorted(task.glob("seed-*/*.json")):
            arms.setdefault(path.stem, []).append(json.loads(path.read_text()))
        columns = [*(f"step {s}" for s in STEPS), "greedy", "completions", "searched", "s", "rate at the end"]
        print(f"### {task.name}\n\n| arm | seeds | " + " | ".join(columns) + " |")
        print("|---|---|" + "---|" * len(columns))
        for name, runs in arms.items():
            print(row(name, runs))
        print("\nExcess persistence at the end of each window of 10 steps:\n")
        for name, runs in arms.items():
            if any(r["persistence"] for r in runs):
                print(f"- {persistence_row(name, runs)}")
        print()


if __name__ == "__main__":
    main()
