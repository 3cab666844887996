"""The tables of docs/auto.md from the records of studies/auto/run.py: means over seeds, with standard errors.

python -m studies.auto.table
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from nextrl.judge.controller_config import ControllerConfig
from studies.folders import records_to_read
from studies.over_seeds import mean_and_error

TASKS = ("chain", "chain-wrong-rule")
STEPS = (20, 40, 60, 100, 200)


def records(folder: Path, task: str) -> dict[str, list[dict]]:
    """Arm name -> its records, one a seed."""
    found: dict[str, list[dict]] = {}
    for path in sorted(folder.glob(f"{task}/*/seed-*/record.json")):
        found.setdefault(path.parent.parent.name, []).append(json.loads(path.read_text()))
    return found


def rate_of(name: str) -> float:
    """The learning rate in an arm's name, for sorting."""
    try:
        return float(name.split("-", 1)[1])
    except (ValueError, IndexError):  # a learning-rate-free optimizer has no rate
        return math.inf


def print_task(folder: Path, task: str) -> None:
    """One table: an arm a row."""
    arms = records(folder, task)
    if not arms:
        return
    print(f"\n### {task}\n")
    print(
        "| arm | seeds | "
        + " | ".join(f"step {s}" for s in STEPS)
        + " | searched | share of completions | s |"
    )
    print("|---|---|" + "---|" * (len(STEPS) + 3))
    for name in sorted(arms, key=lambda n: (n.split("-")[0], rate_of(n))):
        runs = arms[name]
        cells = [mean_and_error([r["accuracy"][r["steps"].index(s)] for r in runs]) for s in STEPS]
        searched = sum(r["search_completions"] for r in runs) / len(runs)
        share = searched / (200 * 128)
        seconds = sum(r["search_seconds"] / r["train_seconds"] for r in runs) / len(runs)
        print(
            f"| {name} | {len(runs)} | "
            + " | ".join(cells)
            + f" | {searched:.0f} | {share:.1%} | {seconds:.1%} |"
        )


def print_paired(folder: Path, task: str, name: str, other: str) -> None:
    """Mean difference of two arms over the seeds that both have, step by step."""
    by_seed = [
        {r["name"].rsplit("/", 1)[1]: dict(zip(r["steps"], r["accuracy"], strict=True)) for r in runs}
        for runs in (records(folder, task).get(arm, []) for arm in (name, other))
    ]
    shared = sorted(by_seed[0].keys() & by_seed[1].keys())
    if len(shared) < 2:
        return
    print(f"\n{task}, {name} minus {other}, {len(shared)} seeds:")
    for step in by_seed[0][shared[0]]:
        differences = [by_seed[0][s][step] - by_seed[1][s][step] for s in shared]
        print(f"step {step}: {mean_and_error(differences)}")


def print_too_far(folder: Path) -> None:
    """How many windows of `auto` went too far, and how many of them persistence alone would not have shown."""
    windows = [
        decision["excess"]
        for task in TASKS
        for name, runs in records(folder, task).items()
        if name.startswith("auto-")
        for run in runs
        for decision in run["decisions"]
        if decision["reason"].startswith("the window moved") and decision["excess"] is not None
    ]
    quiet = sum(excess <= ControllerConfig().screen for excess in windows)
    print(
        f"\nToo far after the first window: {len(windows)}, of them with an excess below the screen: {quiet}"
    )


def main() -> None:
    """Both tasks, and whether a tuned rate loses."""
    folder = records_to_read("auto", __doc__)
    for task in TASKS:
        print_task(folder, task)
    print_paired(folder, "chain-wrong-rule", "auto-0.002", "plain-0.002")
    print_too_far(folder)


if __name__ == "__main__":
    main()
