"""Two more claims of the NExt paper: 37.5 % fewer steps (c), and that across algorithms and tasks (d).

    python -m studies.paper.claims              # goes on where it was stopped, run by run
    python -m studies.paper.claims_table        # of the published records, or of the folder named

(c) `steps`: the paper's schedule, one leap at step 150 (horizon 50, checkpoints every 10) and 100 steps more, against
400 steps, on two toy tasks, at a cautious rate and at a tuned one. Arms: plain (LoRA), full fine-tuning at a tenth of
the rate; `next-paper` at the paper's alpha 1.5, with alpha searched, and merged into the base with a fresh adapter and
optimizer (the paper's way of going on); our `next`, `secant` and `factors`, searched; the merge without a leap; `auto`.
(d) `algorithms`: plain, `next-paper` and `next` under three algorithms on three tasks, at the cautious rate.
(c) again, `smollm2`: the same schedule and the arms that tell most, on SmolLM2-135M-Instruct and short sums. It runs
only when it is named. There `cooled` is the plain run whose last fifth is cooled down as `auto` does at its end.

16 x 8 completions per step, rank 8 on all linear layers, 1000 held-out prompts per evaluation; SmolLM2 has 8 x 8 and
256. Each record holds the completions and seconds of everything, searches and fits included.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.extrapolators.alphas import PAPER_ALPHA
from nextrl.extrapolators.base import tags_by_name
from nextrl.runs.arm import ArmSettings, LeapSettings
from nextrl.runs.loop import one_thread, run_arm
from studies.folders import default_out, parser
from studies.grid import tasks as own

AT, HORIZON, AFTER, LONG = 150, 50, 100, 400
COOLED = 50  # steps at the end of a run of 250 that `auto` cools over, a fifth
# Nothing that `auto` sees makes it do anything: what is left of it is its cooldown.
NEVER = {"goal": 1e-12} | dict.fromkeys(("bold", "reckless", "ruinous", "undo", "alarm", "harm", "sure"), 1e9)
CAUTIOUS, TUNED = 5e-5, 1e-3
TASKS = ("chain", "chain-wrong-rule")
EVALUATIONS = (50, 100, 150, 160, 200, 250, 300, 350, 400)
LEAPS = ("next-paper", "next-paper-searched", "next-paper-merged", "next", "secant", "factors")
ALGORITHMS = ("grpo", "rloo", "reinforce_plus_plus")
SMOLLM2_TASK, SMOLLM2_CAUTIOUS, SMOLLM2_TUNED = "short-sums", 1e-5, 3e-4
SMOLLM2_ARMS = ("plain", "secant", "next-paper", "next", "auto", "cooled", "next-paper-merged", "full")


@dataclass(frozen=True)
class Cell:
    """What the arms of a comparison share."""

    task: str
    algorithm: str
    rate: float
    seed: int

    def path(self, name: str) -> str:
        """An arm's folder."""
        return f"{self.task}/{self.algorithm}-{self.rate:g}/{name}/seed-{self.seed}"


def leap_settings(name: str) -> LeapSettings:
    """How an arm of that name leaps: the paper's alpha unseen, or the best of a method's range on 128 prompts."""
    method = name.removesuffix("-searched").removesuffix("-merged")
    searched = name not in ("next-paper", "next-paper-merged")
    alphas = tags_by_name(method).alphas if searched else (PAPER_ALPHA,)
    return LeapSettings(method=method, horizon=HORIZON, alphas=alphas, search=searched, accept="argmax")


def arm(cell: Cell, name: str, plain_steps: int = LONG) -> ArmSettings:
    """One arm by name: `plain`, `full`, `auto`, `cooled`, `restart`, or one of LEAPS."""
    leaping, merging = name in LEAPS, name in ("restart", "next-paper-merged")
    start = AT if leaping or merging else AT + AFTER - COOLED if name == "cooled" else 0
    train = TrainSettings(
        algorithm=cell.algorithm,
        steps=plain_steps if name in ("plain", "full") else AT + AFTER,
        learning_rate=cell.rate / 10 if name == "full" else cell.rate,
        seed=cell.seed,
    )
    smollm2 = cell.task == SMOLLM2_TASK
    if smollm2:
        train = train.model_copy(update={"prompts_per_step": 8, "share_prefixes": True})
    looks = [step for step in EVALUATIONS if step <= train.steps]
    if start:
        looks = [step - AT * merging for step in looks if step > start]
    return ArmSettings(
        name=cell.path(name),
        kind="leap" if leaping else name if name in ("auto", "plain") else "control",
        label=name,
        task=cell.task,
        model="smollm2-135m" if smollm2 else "tiny" if cell.task in TASKS else own.MODEL,
        train=train,
        lora=None if name == "full" else LoraSettings(),
        start=start,
        merge=merging,
        leap=leap_settings(name) if leaping else None,
        auto=name in ("auto", "cooled"),
        dials=NEVER if name == "cooled" else {},
        save=name == "plain",
        eval_at=tuple(looks),
        eval_prompts=256 if smollm2 else 1000,
    )


def jobs(groups: list[str], seeds: list[int]) -> Iterator[list[ArmSettings]]:
    """Arms that go on from the same plain run, which is the first of them."""
    for seed in seeds:
        if "steps" in groups:
            for task in TASKS:
                for rate in (CAUTIOUS, TUNED):
                    cell = Cell(task, "grpo", rate, seed)
                    yield [arm(cell, name) for name in ("plain", *LEAPS, "restart", "auto", "full")]
        if "algorithms" in groups:
            for task in (*TASKS, "partial"):
                for algorithm in ALGORITHMS:
                    # Two cells are those of (c): same arms, same folders.
                    steps = LONG if task in TASKS and algorithm == "grpo" else AT + AFTER
                    cell = Cell(task, algorithm, CAUTIOUS, seed)
                    yield [arm(cell, name, steps) for name in ("plain", "next-paper", "next")]
        if "smollm2" in groups:
            for rate in (SMOLLM2_CAUTIOUS, SMOLLM2_TUNED):
                cell = Cell(SMOLLM2_TASK, "grpo", rate, seed)
                yield [arm(cell, name) for name in SMOLLM2_ARMS]


def work(arms: list[ArmSettings], out: Path, runs: Path) -> str:
    """Run what is missing of a cell; a record is copied to `out` as soon as it is there."""
    one_thread()
    said = []
    for settings in arms:
        record = out / f"{settings.name}.json"
        if record.is_file():
            continue
        found = run_arm(settings, runs / settings.name, runs / arms[0].name)
        record.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(runs / settings.name / "record.json", record)
        said.append(f"{settings.name}: {found.accuracy[-1]:.3f} at {found.steps[-1]}")
    return "\n".join(said)


def main() -> None:
    """Run what is missing."""
    arguments = parser(__doc__)
    arguments.add_argument("--out", type=Path, default=default_out("paper") / "claims", help="records")
    arguments.add_argument("--runs", type=Path, default=default_out("paper") / "runs", help="checkpoints")
    arguments.add_argument(
        "--groups", nargs="+", choices=("steps", "algorithms", "smollm2"), default=["steps", "algorithms"]
    )
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--workers", type=int, default=2)
    given = arguments.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        for line in pool.map(partial(work, out=given.out, runs=given.runs), jobs(given.groups, given.seeds)):
            if line:
                print(line, flush=True)


if __name__ == "__main__":
    main()
