"""Kill a run with SIGKILL at random moments, go on each time, and compare its end with an unkilled run, to the bit.

    python -m studies.resume.kill --kills 50 --out /tmp/killed

Four small runs take turns: `auto` with its search, a named method with a search in two cycles, an unsearched leap, and
no leap at all. Each is killed until it gets through; then its adapter must be that of the unkilled run byte for byte,
its record must be the same but for the clock, and nothing half-written may be left. Prints one JSON object; exit code
1 where anything differs.

A run is a forked child of a process that has imported everything and computed nothing, so that a kill costs a second,
not ten.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from nextrl.runs.config import RunConfig
from nextrl.runs.run import run
from studies.folders import parser

SMALL: dict[str, Any] = {
    "train": {
        "steps": 6,
        "save_every": 2,
        "learning_rate": 5e-4,
        "prompts_per_step": 4,
        "completions_per_prompt": 4,
    },
    "lora": {"r": 4, "alpha": 8},
    "eval": {"every": 3, "prompts": 20},
}
LEAPS: dict[str, dict[str, Any]] = {
    "auto": {"method": "auto", "every": 2},
    "searched": {"method": "secant", "at": [2, 4], "prompts": 16},
    "fixed": {"method": "secant", "every": 2, "alpha": 1.0},
    "none": {"method": "none"},
}


def child(config: RunConfig, training: int) -> None:
    """The run itself; writes a byte into `training` when the loading is over."""
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"

    def began() -> bool:
        os.write(training, b".")
        return False

    code = 1
    try:
        result = run(config, stop_asked=began).result
        code = 0 if result else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def start(config: RunConfig) -> tuple[int, int]:
    """(process id, a descriptor to read its progress from) of a forked run."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        child(config, writing)
    os.close(writing)
    os.read(reading, 1)
    return process, reading


def finish(config: RunConfig) -> float:
    """Run to the end without a kill; seconds from the end of loading."""
    process, reading = start(config)
    began = time.perf_counter()
    _, status = os.waitpid(process, 0)
    os.close(reading)
    assert status == 0, f"the run in {config.output_dir} failed"
    return time.perf_counter() - began


def ending(out: Path) -> dict[str, Any]:
    """What must be the same: the adapter's bytes and the figures, the clock apart."""
    result = json.loads((out / "result.json").read_text())
    arm = {key: value for key, value in result["arms"]["run"].items() if key != "seconds"}
    leaps = [
        {k: v for k, v in leap.items() if not k.endswith("seconds")}
        for leap in result["leaps"].get("run", [])
    ]
    return {
        "adapter": (out / "final" / "adapter_model.safetensors").read_bytes(),
        "arm": arm,
        "leaps": leaps,
        "completions": result["costs"]["run"]["search_completions"],
        "trajectory": result["trajectory"],
        "folder": sorted(p.name for p in out.iterdir()),
        "checkpoints": sorted(p.name for p in (out / "trajectory").iterdir()),
    }


def main() -> None:
    """Kill, go on, compare."""
    arguments = parser(__doc__)
    arguments.add_argument("--kills", type=int, default=50)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path, required=True)
    options = arguments.parse_args()
    rng = random.Random(options.seed)
    began = time.perf_counter()

    def config(name: str, folder: str) -> RunConfig:
        return RunConfig(**SMALL, leap=LEAPS[name], output_dir=options.out / folder)

    seconds = {name: finish(config(name, f"whole-{name}")) for name in LEAPS}
    wanted = {name: ending(options.out / f"whole-{name}") for name in LEAPS}
    kills: list[dict[str, Any]] = []
    differences: list[str] = []
    runs, name, taken_up = 0, "auto", 0
    while len(kills) < options.kills or taken_up:
        if not taken_up:
            name, runs = list(LEAPS)[runs % len(LEAPS)], runs + 1
        here = config(name, f"killed-{runs}")
        process, reading = start(here)
        # A run that was killed often enough is let through: otherwise a long search could be cut off for ever.
        lucky = len(kills) >= options.kills or taken_up >= 6
        delay = 600.0 if lucky else rng.uniform(0.0, seconds[name])
        deadline = time.perf_counter() + delay
        while os.waitpid(process, os.WNOHANG) == (0, 0):
            if time.perf_counter() >= deadline:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                whole = len(list((here.output_dir / "trajectory").glob("*/nextrl_checkpoint.json")))
                kills.append(
                    {"run": runs, "leap": name, "after": round(delay, 3), "whole_checkpoints": whole}
                )
                taken_up += 1
                break
            time.sleep(0.005)
        else:
            got = ending(here.output_dir)
            differences += [f"run {runs} ({name}): {k}" for k in got if got[k] != wanted[name][k]]
            shutil.rmtree(here.output_dir)
            taken_up = 0
        os.close(reading)
    report = {
        "kills": len(kills),
        "runs": runs,
        "differences": differences,
        "seconds": round(time.perf_counter() - began, 1),
        "moments": kills,
    }
    print(json.dumps(report))
    raise SystemExit(1 if differences else 0)


if __name__ == "__main__":
    main()
