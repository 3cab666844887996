"""The NExt paper's ablations (e), as switches of `next-paper`: what is left of a leap at step 150 without each part?

    python -m studies.paper.ablations                     # goes on where it was stopped, variant by variant
    python -m studies.paper.ablations --tasks short-sums  # SmolLM2-135M-Instruct, two and a half hours for each seed
    python -m studies.paper.ablations_table               # of the published records, or of the folder named

One run for each task and seed at the cautious rate, 200 steps of 16 x 8 completions, a checkpoint every 5; the same
with full fine-tuning at a tenth of the rate (the paper's "without LoRA"). Each variant is fitted at step 150 on
checkpoints every 10 and leaps by every alpha; the weights are W_150 plus all of the leap, whatever rank it has, and
1000 held-out prompts are sampled once each, with the same random numbers. Beside the accuracy stands the cosine with
what the run really did in the next 50 steps. SmolLM2 has 8 x 8 completions, a checkpoint every 10, 256 prompts, and
the variants whose fit takes minutes: one of the published networks takes 20 there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextrl.checkpoints.atomic import write_json
from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.leaps.leap import leap
from nextrl.runs.arm import ArmSettings, read_record
from nextrl.runs.loop import one_thread, run_arm
from nextrl.tasks import base, bases
from nextrl.tasks.evaluate import evaluate
from nextrl.trajectory.trajectory import Trajectory
from studies.folders import default_out, parser
from studies.paper.claims import SMOLLM2_CAUTIOUS, SMOLLM2_TASK, TASKS, Cell
from studies.paper.claims import arm as claims_arm

RATE, AT, HORIZON, STEPS, SAVED, EVERY = 5e-5, 150, 50, 200, 5, 10
ALPHAS = (0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 4.0, 8.0)
TEST = {task: 1000 for task in TASKS} | {SMOLLM2_TASK: 256}
FULL_RANK = 128  # as wide as the tiny model's matrices: nothing of a full fine-tuning delta is cut off


@dataclass(frozen=True)
class Variant:
    """One way to fit."""

    name: str
    method: str = "next-paper"
    params: dict[str, Any] = field(default_factory=dict)
    horizon: int = HORIZON
    every: int = EVERY
    full: bool = False


VARIANTS = (
    Variant("as published"),
    Variant("without global", params={"inputs": "local"}),
    Variant("without local", params={"inputs": "global"}),
    Variant("full fine-tuning", full=True),
    *(Variant(f"rank {k}", params={"rank": k}) for k in (2, 4, 8)),
    *(Variant(f"checkpoint every {n}", every=n) for n in (5, 25)),
    *(Variant(f"width {n}", params={"width": n}) for n in (16, 64, 1024)),
    *(Variant(f"horizon {h}", horizon=h) for h in (20, 100)),
    Variant("next", method="next"),
    Variant("next, full fine-tuning", method="next", full=True),
    Variant("secant", method="secant"),
    Variant("secant, full fine-tuning", method="secant", full=True),
)
SMOLLM2_VARIANTS = (
    "secant",
    "next",
    "width 16",
    "width 64",
    "as published",
    "without global",
    "without local",
    "horizon 20",
    "checkpoint every 25",
)


def arm(task: str, seed: int, full: bool) -> ArmSettings:
    """The run that is leapt from."""
    if task == SMOLLM2_TASK:
        return claims_arm(Cell(task, "grpo", SMOLLM2_CAUTIOUS, seed), "plain", STEPS)
    return ArmSettings(
        name=f"{task}/{'full' if full else 'lora'}/seed-{seed}",
        kind="plain",
        label="full" if full else "plain",
        task=task,
        train=TrainSettings(
            steps=STEPS, save_every=SAVED, learning_rate=RATE / 10 if full else RATE, seed=seed
        ),
        lora=None if full else LoraSettings(),
        save=True,
        eval_at=(AT, STEPS),
        eval_prompts=TEST[task],
    )


class Placed:
    """A base model that takes the weights of a checkpoint with a leap on top, and answers test prompts."""

    def __init__(self, task: str, run: Path, full: bool) -> None:
        self.model, self.tokenizer = bases.load("smollm2-135m" if task == SMOLLM2_TASK else "tiny", task)
        self.task, self.start = base.get(task), dict(self.model.named_parameters())
        if full:
            self.whole = Trajectory.from_full_weights(run, bases.folder(f"tiny:{task}"), rank=FULL_RANK)
            at, _ = bases.load(str(run / f"checkpoint-{AT}"), task)
            self.state = {n: p.detach().clone() for n, p in at.named_parameters()}
        else:
            self.whole = Trajectory.load(run)
            self.state = {n: p.detach().clone() for n, p in self.model.named_parameters()}
            for module in self.whole.modules:
                self.state[f"{module}.weight"] += self.whole.weight(AT, module).dense().float()

    def accuracy(self, deltas: dict[str, Tensor]) -> float:
        """Of W_AT plus these (m, n) deltas."""
        with torch.no_grad():
            for name, parameter in self.start.items():
                module = name.removesuffix(".weight")
                parameter.copy_(self.state[name] + deltas.get(module, torch.zeros(())))
        found = evaluate(self.model, self.tokenizer, self.task, prompts=TEST[self.task.name], greedy=False)
        return round(found.accuracy, 4)


def measured(placed: Placed, variant: Variant, seed: int) -> dict[str, Any]:
    """Accuracy by alpha, and the direction against the future."""
    traj = placed.whole.at([s for s in placed.whole.steps if s <= AT and s % variant.every == 0])
    made = leap(traj, variant.method, variant.horizon, at=AT, seed=seed, **variant.params)
    inner = size = actual = 0.0
    for module in traj.modules:
        future, one = placed.whole.delta(module, AT, STEPS), made.prediction.delta(module, 1.0)
        inner += float(one.inner(future))
        size += float(one.square)
        actual += float(future.square)
    by_alpha = {
        f"{alpha:g}": placed.accuracy(
            {m: made.prediction.delta(m, alpha).dense().float() for m in traj.modules}
        )
        for alpha in ALPHAS
    }
    return {
        "accuracy": by_alpha,
        "cosine": round(inner / (size * actual) ** 0.5, 4),
        "length": round((size / actual) ** 0.5, 4),
        "fit_seconds": round(made.seconds, 1),
    }


def work(job: tuple[str, int], out: Path, runs: Path, names: list[str]) -> str:
    """All variants of one task and seed; the record grows with each."""
    task, seed = job
    one_thread()
    path = out / task / f"seed-{seed}.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"plain": {}, "variants": {}}
    if task == SMOLLM2_TASK:
        names = [name for name in SMOLLM2_VARIANTS if name in names]
    by_name = {v.name: v for v in VARIANTS}
    for full in (False, True):
        chosen = [by_name[name] for name in names if name not in record["variants"]]
        wanted = [v for v in chosen if v.full == full]
        if not wanted:
            continue
        settings = arm(task, seed, full)
        folder = runs / settings.name
        run_arm(settings, folder, folder)
        known = read_record(folder)
        placed = Placed(task, folder, full)
        record["plain"][settings.label] = dict(zip(map(str, known.steps), known.accuracy, strict=True))
        record["plain"][settings.label]["staying"] = placed.accuracy({})
        for variant in wanted:
            record["variants"][variant.name] = measured(placed, variant, seed)
            write_json(path, record)
            print(f"{path.name} {task} {variant.name}: {record['variants'][variant.name]}", flush=True)
    return f"{task}, seed {seed}: {len(record['variants'])} variants"


def jobs(seeds: list[int], tasks: list[str]) -> Iterator[tuple[str, int]]:
    """Seed by seed, so that what is done is always whole seeds."""
    for seed in seeds:
        for task in tasks:
            yield task, seed


def main() -> None:
    """Run what is missing."""
    arguments = parser(__doc__)
    arguments.add_argument("--out", type=Path, default=default_out("paper") / "ablations", help="records")
    arguments.add_argument("--runs", type=Path, default=default_out("paper") / "runs", help="checkpoints")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--tasks", nargs="+", choices=[*TASKS, SMOLLM2_TASK], default=list(TASKS))
    names = [v.name for v in VARIANTS]
    arguments.add_argument("--variants", nargs="+", choices=names, default=names)
    arguments.add_argument("--workers", type=int, default=2)
    given = arguments.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    one = partial(work, out=given.out, runs=given.runs, names=given.variants)
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        for line in pool.map(one, list(jobs(given.seeds, given.tasks))):
            print(line, flush=True)


if __name__ == "__main__":
    main()
