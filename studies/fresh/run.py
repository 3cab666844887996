"""Can the batch sampled after a window judge the window? `studies/fresh/callback.py` from six learning rates.

    python -m studies.fresh.run            # about twenty minutes a task on two cores
    python -m studies.fresh.table

Two tasks x three seeds, as in studies/auto, whose plain runs, `auto` and controls are its yardstick.
"""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from nextrl.engines.settings import TrainSettings
from nextrl.engines.trl.trainer import build_trainer, with_adapter
from nextrl.runs.arm import ArmRecord, ArmSettings
from nextrl.runs.loop import one_thread
from nextrl.runs.meter import Meter
from nextrl.tasks import base, bases
from studies.auto.run import EVALUATIONS, STARTS
from studies.folders import default_out, parser
from studies.fresh.callback import Dials, FreshBatch


def work(task: str, rate: float, seed: int, out: Path) -> str:
    """One run; its record is written to `out/TASK/RATE/seed-N.json`."""
    path = out / task / f"{rate:g}" / f"seed-{seed}.json"
    if path.is_file():
        return f"{path}: there already"
    one_thread()
    settings = TrainSettings(steps=200, learning_rate=rate, seed=seed)
    arm = ArmSettings(
        name="fresh", kind="auto", label="fresh", task=task, train=settings, eval_at=EVALUATIONS
    )
    model, tokenizer = bases.load("tiny", task)
    record = ArmRecord(name="fresh", kind="auto", label="fresh")
    leaps, meter = FreshBatch(), Meter(arm, tokenizer, record)
    trainer = build_trainer(
        with_adapter(model, arm.lora, seed),
        tokenizer,
        base.get(task),
        settings,
        out / "scratch",
        save=False,
        callbacks=[leaps, meter],
    )
    leaps.trainer = trainer
    began = time.perf_counter()
    trainer.train()
    kept = record.model_dump(include={"steps", "accuracy", "se", "greedy", "learning_rate", "rewards"})
    kept |= {"dials": asdict(Dials()), "seconds": round(time.perf_counter() - began, 1)}
    kept |= {"completions_read": leaps.account.read, "decisions": leaps.account.decisions}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept) + "\n")
    ends = " ".join(
        f"{s}:{a:.3f}"
        for s, a in zip(record.steps, record.accuracy, strict=True)
        if s in (20, 40, 60, 100, 200)
    )
    return f"{task} {rate:g} {seed}  {ends}  lr {record.learning_rate[-1]:.2g}"


def main() -> None:
    """Run what is missing, two at a time."""
    arguments = parser(__doc__)
    arguments.add_argument("--out", type=Path, default=default_out("fresh"), help="records")
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--tasks", nargs="+", default=["chain-wrong-rule", "chain"])
    arguments.add_argument("--rates", type=float, nargs="+", default=STARTS)
    arguments.add_argument("--workers", type=int, default=2)
    options = arguments.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    jobs = [(t, r, s, options.out) for s in options.seeds for r in options.rates for t in options.tasks]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for line in pool.map(work, *zip(*jobs, strict=True)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
