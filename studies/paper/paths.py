"""Two claims of the NExt paper on paths of training: rank-1 parts do not go on along lines; LoRA is more dominant.

    python -m studies.paper.paths                    # goes on where it was stopped, run by run
    python -m studies.paper.paths --tasks short-sums # SmolLM2-135M-Instruct, half an hour of a core for each run
    python -m studies.paper.paths_table FOLDER

Claim (a): lines through the leading vectors of 10 checkpoints do not predict the next 5 (R^2 ahead, per matrix). Claim
(b): E1 = sigma_1 / sum of sigma of W_t - W_0 is greater under LoRA than under full fine-tuning. Both from the same
GRPO runs, LoRA (rank 8) and full fine-tuning side by side, at the paper's kind of cautious rate and at a tuned one
(full fine-tuning at a tenth of LoRA's rate, as is usual), 150 steps of 16 x 8 completions (SmolLM2: 8 x 8), a
checkpoint every 10, all singular values of all matrices that LoRA adapts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from nextrl.checkpoints.atomic import write_json
from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.engines.trl.trainer import build_trainer, with_adapter
from nextrl.runs.arm import read_record
from nextrl.runs.loop import one_thread
from nextrl.tasks import base, bases
from nextrl.tasks.evaluate import evaluate
from nextrl.trajectory.linearity import COMPONENTS, linearity_ahead
from nextrl.trajectory.spectra import Spectrum, iter_spectra
from nextrl.trajectory.trajectory import Trajectory
from studies.folders import default_out, parser
from studies.paper.claims import CAUTIOUS, SMOLLM2_CAUTIOUS, SMOLLM2_TASK, SMOLLM2_TUNED, TASKS, TUNED, Cell

RATES = {task: (CAUTIOUS, TUNED) for task in TASKS} | {SMOLLM2_TASK: (SMOLLM2_CAUTIOUS, SMOLLM2_TUNED)}
STEPS, EVERY = 150, 10
RANK = LoraSettings().r
FITTED = 10  # checkpoints that the lines of claim (a) are fitted on
EVALUATIONS = (0, 10, 20, 30, 60, 100, 150)


@dataclass(frozen=True)
class Run:
    """One run: `lora` or `full` fine-tuning."""

    kind: str
    task: str
    rate: float
    seed: int

    @property
    def path(self) -> str:
        return f"{self.task}/{self.kind}-{self.rate:g}/seed-{self.seed}.json"

    @property
    def smollm2(self) -> bool:
        """Whether this is the real model's task; the others are the tiny one's."""
        return self.task == SMOLLM2_TASK

    @property
    def settings(self) -> TrainSettings:
        """Of the trainer."""
        settings = TrainSettings(steps=STEPS, learning_rate=self.rate, seed=self.seed)
        small = {"prompts_per_step": 8, "share_prefixes": True}
        return settings.model_copy(update=small) if self.smollm2 else settings


def weights(model: Any, lora: bool) -> dict[str, Tensor]:
    """Effective weights (float64) of the matrices that LoRA adapts, by name; the same matrices in both kinds."""
    found = {}
    for name, module in model.named_modules():
        if lora and hasattr(module, "lora_A"):
            delta = module.get_delta_weight("default")
            plain = name.removeprefix("base_model.model.")
            found[plain] = (module.base_layer.weight + delta).detach().double()
        elif not lora and isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            found[name] = module.weight.detach().double()
    return found


class Spectra(TrainerCallback):
    """Keeps the singular values and the leading pair of W_t - W_0 of every matrix, and measures accuracy."""

    def __init__(self, run: Run, tokenizer: Any) -> None:
        self.run, self.tokenizer, self.lora = run, tokenizer, run.kind == "lora"
        self.accuracy: dict[int, float] = {}
        self.steps: list[int] = []
        self.parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = {name: w.clone() for name, w in weights(kwargs["model"], self.lora).items()}
        self.evaluate(kwargs["model"], 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % EVERY == 0:
            self.steps.append(state.global_step)
            for name, weight in weights(kwargs["model"], self.lora).items():
                u, sigma, vh = torch.linalg.svd(weight - self.start[name], full_matrices=False)
                self.parts.setdefault(name, []).append((sigma, u[:, 0].float(), vh[0].float()))
        if state.global_step in EVALUATIONS:
            self.evaluate(kwargs["model"], state.global_step)

    def evaluate(self, model: Any, step: int) -> None:
        """On 1000 held-out prompts, SmolLM2 on 256."""
        prompts = 256 if self.run.smollm2 else 1000
        self.accuracy[step] = evaluate(
            model, self.tokenizer, base.get(self.run.task), prompts=prompts
        ).accuracy

    def spectra(self) -> list[Spectrum]:
        """Of the global deltas, one for each matrix."""
        return [
            Spectrum(tuple(self.steps), *(torch.stack(column) for column in zip(*rows, strict=True)))
            for rows in self.parts.values()
        ]


def from_checkpoints(run: Run, folder: Path) -> dict[str, Any]:
    """What is kept of a LoRA run whose checkpoints lie in a folder: studies.paper.claims trains the same one."""
    traj, record = Trajectory.load(folder), read_record(folder)
    found = iter_spectra(traj.at([s for s in traj.steps if s <= STEPS]))
    accuracy = {s: a for s, a in zip(record.steps, record.accuracy, strict=True) if s <= STEPS}
    return summary(run, [kinds["global"] for _, kinds in found], accuracy)


def summary(run: Run, spectra: list[Spectrum], accuracy: dict[int, float]) -> dict[str, Any]:
    """What is kept of a run."""
    steps = spectra[0].steps
    ahead = [linearity_ahead(spectrum) for spectrum in spectra]
    by_step = [[float(s.nuclear_share()[i]) for s in spectra] for i in range(len(steps))]
    energy = [[float(s.share()[i]) for s in spectra] for i in range(len(steps))]
    linear = {}
    for name in COMPONENTS:
        found = [a[name] for a in ahead if a[name] == a[name]]
        linear[name] = [median(found), min(found), max(found), sum(r2 < 0 for r2 in found), len(found)]
    return {
        # An adapter of rank 8 has 8 singular values, and their E1 cannot be below 1/8: this is the same of both kinds.
        "e1_of_8": [
            round(fmean(float(s.sigma[i, 0] / s.sigma[i, :RANK].sum()) for s in spectra), 5)
            for i in range(len(steps))
        ],
        # |cosine| of the leading pair where the lines end with that of the last checkpoint, mean over matrices.
        "turned": {
            name: round(
                fmean(abs(float(at[FITTED - 1] @ at[-1])) for at in (getattr(s, name) for s in spectra)), 4
            )
            for name in ("u", "v")
        },
        "run": asdict(run),
        "accuracy": accuracy,
        "steps": list(steps),
        "e1": [round(fmean(row), 5) for row in by_step],
        "energy_share": [round(fmean(row), 5) for row in energy],
        "linear_ahead": {name: [round(x, 4) for x in row] for name, row in linear.items()},
    }


def trained(run: Run, scratch: Path) -> dict[str, Any]:
    """What is kept of a run that is trained here; no checkpoint is left of it."""
    model, tokenizer = bases.load("smollm2-135m" if run.smollm2 else "tiny", run.task)
    if run.kind == "lora":
        model = with_adapter(model, LoraSettings(), run.seed)
    path, task = Spectra(run, tokenizer), base.get(run.task)
    trainer = build_trainer(model, tokenizer, task, run.settings, scratch, save=False, callbacks=[path])
    trainer.train()
    return summary(run, path.spectra(), path.accuracy)


def work(run: Run, out: Path, claims: Path | None) -> str:
    """One run; its record is written to `out / run.path`."""
    if (out / run.path).is_file():
        return f"{run.path}: there already"
    one_thread()
    plain = Cell(run.task, "grpo", run.rate, run.seed).path("plain")
    if claims is not None and run.kind == "lora" and (claims / plain / "record.json").is_file():
        kept = from_checkpoints(run, claims / plain)
    else:
        kept = trained(run, out / "scratch")
    write_json(out / run.path, json.loads(json.dumps(kept)))
    return f"{run.path}  {list(kept['accuracy'].values())[-1]:.3f}  E1 {kept['e1'][-1]:.3f}  {kept['linear_ahead']}"


def runs(seeds: list[int], tasks: list[str]) -> Iterator[Run]:
    """LoRA and full fine-tuning side by side."""
    for seed in seeds:
        for task in tasks:
            for rate in RATES[task]:
                yield Run("lora", task, rate, seed)
                yield Run("full", task, rate / 10, seed)


def main() -> None:
    """Run what is missing."""
    arguments = parser(__doc__)
    arguments.add_argument("--out", type=Path, default=default_out("paper") / "paths", help="records")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--tasks", nargs="+", choices=list(RATES), default=list(TASKS))
    arguments.add_argument(
        "--claims",
        type=Path,
        help="--runs of studies.paper.claims; LoRA runs that lie there are not trained again",
    )
    arguments.add_argument("--workers", type=int, default=2)
    given = arguments.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        for line in pool.map(
            partial(work, out=given.out, claims=given.claims), list(runs(given.seeds, given.tasks))
        ):
            print(line, flush=True)


if __name__ == "__main__":
    main()
