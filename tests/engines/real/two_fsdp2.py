"""One process's part of `test_fsdp2.py`: TRL trainers whose model accelerate cuts in pieces over two processes.

    accelerate launch --use_fsdp --fsdp_version 2 ... two_fsdp2.py OUT

accelerate shards on GPUs alone; on CPUs it goes its way for GPUs here, with gloo underneath.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import TrainerCallback

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
PartialState._prepare_backend = lambda self, *arguments, **options: ("gloo", DistributedType.MULTI_GPU)

from nextrl.engines.live_adapter import LiveAdapter, State
from nextrl.engines.trl.callback import LeapCallback
from trl_runs import trainer


class Seen(TrainerCallback):
    """The whole adapter, and this process's pieces of it, where each step begins and where it ends, leaps included."""

    def __init__(self) -> None:
        self.begins: list[State] = []
        self.ends: list[State] = []
        self.pieces: list[State] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.adapter = LiveAdapter(kwargs["model"])
        self.begins.append(self.adapter.read())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(self.adapter.read())
        self.pieces.append(
            {n: p.detach().to_local().clone() for n, p in self.adapter.parameters.items()}
        )


def sharded_run(out: Path, leaps: LeapCallback, **options: Any) -> dict[str, Any]:
    """A run with leaps; what the adapter was before and after the callback at each step."""
    before, after = Seen(), Seen()
    run = trainer(out, [before, leaps, after], use_cpu=False, per_device_train_batch_size=16, **options)
    run.train()
    return {
        "begins": before.begins,
        "ends": before.ends,
        "after": after.ends,
        "pieces": after.pieces,
        "kinds": sorted({type(p).__name__ for p in after.adapter.parameters.values()}),
        "decisions": [decision.model_dump(mode="json") for decision in leaps.decisions],
    }


def main() -> None:
    """A named method's leaps, and auto under a rate that is much too high; one file a process."""
    torch.set_num_threads(1)
    out, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    named = LeapCallback(every=2, method="linear", at=[2, 4], horizon=2, alpha=3.0)
    found = {
        "named": sharded_run(out / "named", named, max_steps=6, learning_rate=1e-3),
        "step": sharded_run(out / "step", LeapCallback(every=3), max_steps=4, learning_rate=0.05),
    }
    torch.save(found, out / f"rank-{rank}.pt")


if __name__ == "__main__":
    main()
