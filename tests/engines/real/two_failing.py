"""One process's part of `test_launch.py`: a reward function fails on one of two, in the middle of a search.

accelerate launch --multi_gpu --num_processes 2 ... two_failing.py 1      # the one that fails
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from nextrl.engines.trl.callback import LeapCallback
from trl_runs import VALIDATION, trainer


def main() -> None:
    """Two steps, then a search whose first candidate cannot be graded."""
    torch.set_num_threads(1)
    fails = os.environ["RANK"] == sys.argv[1]

    def reward(completions: list[str], **_: Any) -> list[float]:
        if fails and not built.model.training:
            raise ZeroDivisionError("this reward cannot be computed")
        return [float(sum(map(ord, completion)) % 3) for completion in completions]

    leaps = LeapCallback(every=2, method="linear", at=[2], horizon=2, validation=VALIDATION, prompts=16)
    out = Path(tempfile.mkdtemp())
    built = trainer(out, [leaps], rewards=reward, per_device_train_batch_size=16, max_steps=4)
    built.train()


if __name__ == "__main__":
    main()
