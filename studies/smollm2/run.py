"""SmolLM2-135M-Instruct by GRPO: what is `auto` worth on a real language model, beside its controls?

    python -m studies.smollm2.run           # goes on where it was stopped, arm by arm
    python -m studies.smollm2.table         # of the published records, or of the folder named

Two tasks, seeds 0 and 1, 100 steps of 8 prompts x 8 completions, rank 8 on all linear layers or (`all-`) all weights,
evaluated on 256 held-out prompts; shared prefixes make a step a sixth as long. Arms come in the order of what they
tell: all of seed 0 first. A finished arm leaves one JSON file in --out and is not run again; checkpoints stay under
--runs. Leap arms go on from step 60 of the plain run at 1e-5.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from nextrl import Trajectory
from nextrl.checkpoints.atomic import write_json
from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.extrapolators.alphas import WIDE_ALPHAS
from nextrl.runs.arm import ArmRecord, ArmSettings, LeapSettings
from nextrl.runs.loop import one_thread, run_arm
from nextrl.trajectory.persistence import adam_persistence, excess
from studies.folders import default_out, parser

SUMS = "short-sums"
GYM = "reasoning_gym:chain_sum?shots=2&max_terms=3&max_digits=1&size=20000&tokens=4"
STEPS, WINDOW, LEAP_AT = 100, 10, 60
EVALUATIONS = (20, 40, 60, 80, 100)


def arm(task: str, name: str, seed: int) -> ArmSettings:
    """One arm by name: `plain-RATE`, `auto-RATE`, `prodigy-schedulefree`, `next-H` or `linear-H`.

    `all-` before either of the first two trains all weights, without checkpoints: each would take 3 GB.
    """
    every = name.startswith("all-")
    kind, _, number = name.removeprefix("all-").partition("-")
    rate = float(number) if kind in ("plain", "auto") else 1e-3 if kind == "prodigy" else 1e-5
    leaping = kind in ("next", "linear")
    return ArmSettings(
        name=name,
        kind="leap" if leaping else "control" if kind == "prodigy" else "auto" if kind == "auto" else "plain",
        label=name,
        task=task,
        model="smollm2-135m",
        train=TrainSettings(
            steps=STEPS,
            save_every=WINDOW,
            learning_rate=rate,
            prompts_per_step=8,
            completions_per_prompt=8,
            share_prefixes=True,
            optimizer="prodigy-schedulefree" if kind == "prodigy" else "adamw",
            seed=seed,
        ),
        lora=None if every else LoraSettings(),
        auto=kind == "auto",
        leap=LeapSettings(method=kind, horizon=int(number), alphas=WIDE_ALPHAS, accept="argmax")
        if leaping
        else None,
        start=LEAP_AT if leaping else 0,
        save=not every,
        eval_at=EVALUATIONS,
        eval_prompts=256,
    )


def wanted(seeds: list[int], tasks: list[str], only: list[str]) -> list[ArmSettings]:
    """The arms to run, most telling first; a leap arm after the plain run that it goes on from."""
    names = ["plain-3e-4", "plain-1e-5", "auto-1e-5", "prodigy-schedulefree"]
    names += ["plain-1e-3", "next-20", "linear-20", "auto-3e-4", "auto-1e-3"]
    names += ["all-auto-1e-6", "all-plain-1e-5", "all-plain-3e-5"]
    return [arm(t, n, seed) for seed in seeds for t in tasks for n in names if not only or n in only]


def folder_name(task: str) -> str:
    """A task's name as a folder's."""
    return re.sub(r"[^\w.-]+", "-", task.partition("?")[0]).strip("-")


def persistence(run: Path) -> list[dict[str, float]]:
    """Persistence and its excess over Adam's zero point at every window's end of a run's checkpoints."""
    trajectory = Trajectory.load(run)
    steps = [s for s in trajectory.steps if s - 2 * WINDOW in (0, *trajectory.steps)]
    zero, rows = adam_persistence(WINDOW), []
    for step in steps:
        c = trajectory.persistence(WINDOW, at=step)
        rows.append({"step": step, "persistence": c, "excess": excess(c, zero)})
    return rows


def summary(settings: ArmSettings, record: ArmRecord, run: Path) -> dict:
    """What is kept of an arm."""
    kept = record.model_dump()
    kept["settings"] = settings.model_dump(mode="json")
    # A leap is a jump in the path, and a window across it says nothing.
    straight = settings.save and settings.kind in ("plain", "control")
    kept["persistence"] = persistence(run) if straight else []
    return kept


def main() -> None:
    """Run what is missing, one arm after the other."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--out", type=Path, default=default_out("smollm2") / "raw", help="folder for records"
    )
    arguments.add_argument(
        "--runs", type=Path, default=default_out("smollm2") / "runs", help="folder for checkpoints"
    )
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments.add_argument("--tasks", nargs="+", default=[SUMS, GYM], help="task names")
    arguments.add_argument("--arms", nargs="+", default=[], help="only these")
    options = arguments.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    one_thread()
    for settings in wanted(options.seeds, options.tasks, options.arms):
        place = Path(folder_name(settings.task)) / f"seed-{settings.train.seed}"
        out = options.out / place / f"{settings.name}.json"
        if out.is_file():
            continue
        folder, plain = (options.runs / place / name for name in (settings.name, "plain-1e-5"))

        def progress(name: str, step: int, folder: Path = folder) -> None:
            with (folder / "progress.txt").open("a") as file:
                file.write(f"{step}\n")

        record = run_arm(settings, folder, plain, progress)
        write_json(out, json.loads(json.dumps(summary(settings, record, folder), allow_nan=True)))
        print(place, settings.name, record.steps, [round(a, 3) for a in record.accuracy], flush=True)


if __name__ == "__main__":
    main()
