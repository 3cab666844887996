"""Does what holds for GRPO hold for the other algorithms? Each x {plain, tuned plain, auto, next} x three seeds.

    nice -n 19 python -m studies.algorithms.run     # about 45 minutes on one core
    python -m studies.algorithms.table              # of the published records, or of the folder named

Task `chain`. Plain at 5e-5 (150 steps, the trajectory of the leap), plain at 1e-3 (100 steps), `auto` from 5e-5 (100
steps), `next` (one leap of horizon 50 from plain's step 100, then 50 steps). Every arm goes through TRL and writes its
own record; a second call goes on with the arms that are missing, and an arm may be asked for by its kind.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from nextrl.engines import algorithms
from nextrl.engines.settings import TrainSettings
from nextrl.extrapolators.alphas import WIDE_ALPHAS
from nextrl.runs.arm import ArmSettings, LeapSettings
from nextrl.runs.loop import one_thread, run_arm
from studies.folders import default_out, parser

CAUTIOUS, TUNED = 5e-5, 1e-3
ARMS = ("plain", "tuned", "next", "auto")
EVALUATIONS = (40, 100)


def arm(name: str, algorithm: str, seed: int) -> ArmSettings:
    """One arm of one algorithm and seed."""
    steps = {"plain": 150, "next": 150}.get(name, 100)
    rate = TUNED if name == "tuned" else CAUTIOUS
    train = TrainSettings(algorithm=algorithm, steps=steps, learning_rate=rate, seed=seed)
    leap = (
        LeapSettings(method="next", horizon=50, alphas=WIDE_ALPHAS, accept="argmax")
        if name == "next"
        else None
    )
    evaluations = (100, 150) if leap else (*EVALUATIONS, 150) if steps == 150 else EVALUATIONS
    return ArmSettings(
        name=f"{algorithm}/{name}/seed-{seed}",
        kind={"tuned": "control", "next": "leap"}.get(name, name),
        label=name,
        train=train,
        start=100 if leap else 0,
        leap=leap,
        auto=name == "auto",
        save=name == "plain",
        eval_at=evaluations,
    )


def main() -> None:
    """Run what is missing, one arm after the other."""
    arguments = parser(__doc__)
    arguments.add_argument("--out", type=Path, default=default_out("algorithms") / "raw")
    arguments.add_argument(
        "--runs", type=Path, default=default_out("algorithms") / "runs", help="checkpoints go here"
    )
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--algorithms", nargs="+", choices=algorithms.names(), default=algorithms.names())
    arguments.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    options = arguments.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    one_thread()
    for seed in options.seeds:
        for algorithm in options.algorithms:
            for name in options.arms:
                wanted = arm(name, algorithm, seed)
                plain = options.runs / algorithm / "plain" / f"seed-{seed}"
                record = run_arm(wanted, options.runs / wanted.name, plain)
                (options.out / wanted.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(options.runs / wanted.name / "record.json", options.out / wanted.name)
                print(f"{wanted.name}: {record.accuracy[-1]:.3f}, {record.seconds[-1]:.0f} s", flush=True)


if __name__ == "__main__":
    main()
