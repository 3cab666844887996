"""What `auto` is measured against: plain runs at seven rates on task B, and learning-rate-free optimizers on all tasks.

    python -m studies.auto.run            # about a quarter of an hour on two cores
    python -m studies.auto.run --tasks chain partial penalty sparse half-nat --only prodigy mechanic
    python -m studies.auto.table          # of the published records, or of the folder named

Three seeds on task B, two on the others. Every arm goes through TRL, as in the demo, and writes its own record; a
second call goes on with those that are missing. `auto` itself and other plain runs are in studies/grid.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from nextrl.engines.settings import TrainSettings
from nextrl.runs.arm import ArmSettings
from nextrl.runs.loop import one_thread, run_arm
from studies.folders import default_out, parser
from studies.grid import tasks as own
from studies.grid.run import OWN

RATES = (1e-5, 5e-5, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
EVALUATIONS = (10, 20, 30, 40, 50, 60, 80, 100, 150, 200)


def arms(task: str, seed: int) -> list[ArmSettings]:
    """Every arm of one task and seed."""

    def arm(name: str, kind: str, rate: float, optimizer: str = "adamw") -> ArmSettings:
        train = TrainSettings(steps=200, learning_rate=rate, seed=seed, optimizer=optimizer)
        return ArmSettings(
            name=f"{task}/{name}/seed-{seed}",
            kind=kind,
            label=name,
            task=task,
            model=own.MODEL if task in OWN else "tiny",
            train=train,
            save=kind == "plain",
            eval_at=EVALUATIONS,
        )

    return [
        *(arm(f"plain-{r:g}", "plain", r) for r in RATES),
        arm("prodigy-schedulefree", "control", 1e-3, "prodigy-schedulefree"),
        arm("mechanic", "control", 1e-3, "mechanic"),
    ]


def work(arm: ArmSettings, out: Path) -> str:
    """Run one arm in a worker process."""
    one_thread()
    record = run_arm(arm, out / arm.name, out / arm.name)
    return f"{arm.name}: {record.accuracy[-1]:.3f} at step {record.steps[-1]}"


def main() -> None:
    """Run what is missing, two arms at a time."""
    arguments = parser(__doc__)
    arguments.add_argument("--out", type=Path, default=default_out("auto"), help="checkpoints and records")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--tasks", nargs="+", default=["chain-wrong-rule"])
    arguments.add_argument("--only", nargs="+", default=[""], help="arms whose name begins with one of these")
    arguments.add_argument("--workers", type=int, default=2)
    options = arguments.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    wanted = [arm for seed in options.seeds for task in options.tasks for arm in arms(task, seed)]
    wanted = [arm for arm in wanted if arm.label.startswith(tuple(options.only))]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for line in pool.map(work, wanted, [options.out] * len(wanted)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
