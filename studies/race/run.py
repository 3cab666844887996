"""Plain runs with their checkpoints kept: what every direction is leapt from, and what advice is judged by.

    python -m studies.race.run             # about 25 minutes on one free core
    python -m studies.race.leaps
    python -m studies.race.table           # of the published records, or of the folder named

`--set race`: both tasks x three rates (far too low, low, tuned) x five seeds, 150 steps. `--set advice`: the other
rates of the grid of docs/advice.md x three seeds. A run that is there already is left as it is.
"""

from __future__ import annotations

import os
from pathlib import Path

from nextrl.engines.settings import TrainSettings
from nextrl.runs.arm import ArmSettings
from nextrl.runs.loop import one_thread, run_arm
from studies.folders import default_out, parser

TASKS = ("chain", "chain-wrong-rule")
RACE_RATES = {"chain": (5e-5, 2e-4, 5e-4), "chain-wrong-rule": (5e-5, 2e-4, 1e-3)}
GRID = (1e-5, 5e-5, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 2e-2)
STEPS = 150
EVALUATIONS = (50, 100, 150)


def arm(task: str, rate: float, seed: int) -> ArmSettings:
    """One plain run."""
    return ArmSettings(
        name=f"{task}/plain-{rate:g}/seed-{seed}",
        kind="plain",
        label=f"plain-{rate:g}",
        task=task,
        train=TrainSettings(steps=STEPS, learning_rate=rate, seed=seed),
        save=True,
        eval_at=EVALUATIONS,
    )


def arms(which: str) -> list[ArmSettings]:
    """The runs of one set, seed by seed, so that what is done is always whole seeds."""
    if which == "race":
        return [arm(t, r, s) for s in range(5) for t in TASKS for r in RACE_RATES[t]]
    return [arm(t, r, s) for s in range(3) for t in TASKS for r in GRID if r not in RACE_RATES[t]]


def main() -> None:
    """Run what is missing, one arm after the other."""
    arguments = parser(__doc__)
    arguments.add_argument("--out", type=Path, default=default_out("race") / "runs")
    arguments.add_argument("--set", choices=("race", "advice"), nargs="+", default=["race", "advice"])
    options = arguments.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    one_thread()
    for which in options.set:
        for one in arms(which):
            folder = options.out / one.name
            record = run_arm(one, folder, folder)
            print(f"{one.name}: {record.accuracy[-1]:.3f}, {record.train_seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
