"""OpenRLHF: `CKPT/global_stepN_hf/`, written with `--ckpt.save_hf`.

Read from openrlhf 0.11.2 (`trainer/ray/ppo_actor.py:save_checkpoint`, `utils/deepspeed/deepspeed.py:save_model`).
With ZeRO-3 or tensor parallelism OpenRLHF writes `adapter_model.bin` (a pickle) and removes the safetensors file.
`CKPT/_actor/global_stepN` beside it is DeepSpeed's own state, which only DeepSpeed reads. N counts PPO iterations
(rollouts), not optimizer steps. A folder `best_global_stepN_hf` repeats one of the numbered ones.
"""

from __future__ import annotations

import re
from pathlib import Path

from nextrl.checkpoints.layouts.adapters import adapters_among
from nextrl.checkpoints.layouts.listing import numbered
from nextrl.checkpoints.run import Layout, Problem

_FOLDER = re.compile(r"^global_step(\d+)_hf$")
_STATE = re.compile(r"^global_step(\d+)$")


def find(run: Path) -> Layout:
    """Checkpoints of `run` in this layout; DeepSpeed state without an adapter is a problem."""
    folders, problems = numbered(run, _FOLDER)
    located, models = adapters_among(folders)
    state = run / "_actor"
    if state.is_dir():
        have = {step for step, _ in folders}
        for step, folder in numbered(state, _STATE)[0]:
            if step not in have:
                twin = f"{run.name}/global_step{step}_hf"
                text = f"{folder}: DeepSpeed state without {twin}; train with --ckpt.save_hf"
                # OpenRLHF keeps the two kinds for different times. So as long as there are adapters at all, a missing
                # twin is only worth a word.
                problems.append(Problem(folder, text, step, fatal=not folders))
    return Layout("openrlhf", located, (*problems, *models))
