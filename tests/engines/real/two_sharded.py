"""One process's part of `test_sharded_runs.py`: TRL trainers whose parameters lie in pieces on two processes.

    accelerate launch --use_fsdp --fsdp_version 2 ... two_sharded.py OUT
    accelerate launch --use_deepspeed --zero_stage 3 ... two_sharded.py OUT      # or 2

accelerate cuts models on GPUs alone. On CPUs it is told here to go its way for GPUs, with gloo underneath.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from step_ends import watched_run

from nextrl.engines.trl.callback import LeapCallback


def gloo_for_gpus() -> None:
    """Before anything asks which processes there are."""
    os.environ["DS_ACCELERATOR"] = os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    import deepspeed
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    # DeepSpeed's own way to gather on one machine is compiled at its first use, for minutes; killed, it leaves a lock
    # that the next run waits for.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    PartialState._prepare_backend = lambda self, *arguments, **options: ("gloo", DistributedType.MULTI_GPU)


def main() -> None:
    """A named method's leaps, and auto under a rate that is much too high; one file a process."""
    torch.set_num_threads(1)
    gloo_for_gpus()
    out, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    named = LeapCallback(every=2, method="linear", at=[2, 4], horizon=2, alpha=3.0)
    found = {
        "named": watched_run(out / "named", named, max_steps=5, learning_rate=1e-3),
        "auto": watched_run(out / "auto", LeapCallback(every=3), max_steps=3, learning_rate=0.3),
    }
    torch.save(found, out / f"rank-{rank}.pt")


if __name__ == "__main__":
    main()
