"""Does time or memory grow faster than the run does? Many checkpoints, and many modules, at three sizes side by side.

    python benchmarks/bench_size.py            # two to five minutes, 0.5 GB of temporary disk
    python benchmarks/bench_size.py --quick    # a tenth of each size, half a minute

(a) `nextrl inspect` on 2,500, 5,000 and 10,000 checkpoint folders (every value read);
(b) `nextrl analyze` on 15, 30 and 60 checkpoints of 200 modules;
(c) `nextrl analyze` on 60 checkpoints of 50, 100 and 200 modules.

Each verb runs in a process of its own, right after the files were written (so from a warm page cache). CPU seconds
and the peak of its resident memory are what the kernel counted for that process (`wait4`). `growth` compares what the
last doubling added with twice what the one before added, so that the fixed cost of starting Python and torch falls out:
1 is linear, 2 is quadratic. The program ends with 1 where a growth of CPU time or memory is above 1.5.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from safetensors.torch import save_file

HIDDEN, RANK = 256, 8
CHECKPOINTS, MODULES = 60, 200  # of `analyze`
FOLDERS = 10_000  # of `inspect`
WORST_GROWTH = 1.5
# Below these an increase is noise: of a process that starts Python and torch.
CPU_NOISE, MEMORY_NOISE = 1.0, 10.0


class Cost(NamedTuple):
    """What one process took: seconds on the clock, seconds of CPU time, peak resident memory in MB (10^6 bytes)."""

    seconds: float
    cpu: float
    peak: float


def write_run(folder: Path, checkpoints: int, modules: int, hidden: int, rank: int) -> None:
    """A float32 run laid out as TRL writes it; B walks at random, A stays."""
    draws = torch.Generator().manual_seed(0)
    names = [f"base_model.model.model.layers.{i}.mlp.up_proj" for i in range(modules)]
    a = torch.randn(modules, rank, hidden, generator=draws)
    b = torch.zeros(modules, hidden, rank)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["up_proj"]}
    for number in range(1, checkpoints + 1):
        b += torch.randn(b.shape, generator=draws) * 1e-3
        state = {f"{name}.lora_A.weight": a[i].clone() for i, name in enumerate(names)}
        state |= {f"{name}.lora_B.weight": b[i].clone() for i, name in enumerate(names)}
        place = folder / f"checkpoint-{number * 10}"
        place.mkdir(parents=True)
        save_file(state, place / "adapter_model.safetensors")
        (place / "adapter_config.json").write_text(json.dumps(config))


def cost(*arguments: str) -> Cost:
    """Run `nextrl` with these arguments in a process of its own."""
    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "nextrl", *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"nextrl {' '.join(arguments)} ended with {child.returncode}")
    # Linux counts ru_maxrss in units of 1024 bytes.
    return Cost(time.perf_counter() - started, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6)


def growth(values: Sequence[float], noise: float) -> float | None:
    """What the last doubling added over twice what the one before it added: 1 is linear; None where it added no more
    than noise."""
    first, second = values[1] - values[0], values[2] - values[1]
    return None if second < noise else second / max(2 * first, noise)


def series(title: str, sizes: Sequence[int], measure: Callable[[int], Cost]) -> list[float]:
    """Measure and print one table; returns the growths that are more than noise."""
    print(f"\n{title}\n{'size':>8} {'seconds':>9} {'CPU s':>9} {'peak MB':>9}")
    costs = []
    for size in sizes:
        costs.append(measure(size))
        print(f"{size:>8} {costs[-1].seconds:9.2f} {costs[-1].cpu:9.2f} {costs[-1].peak:9.0f}", flush=True)
    found = growth([c.cpu for c in costs], CPU_NOISE), growth([c.peak for c in costs], MEMORY_NOISE)
    said = ["in the noise" if value is None else f"{value:.2f}" for value in found]
    print(f"growth: CPU time {said[0]}, memory {said[1]}")
    return [value for value in found if value is not None]


def main() -> None:
    """Parse flags, measure, print; exit 1 where something grows faster than the run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of each size")
    scale = 10 if parser.parse_args().quick else 1
    folders, checkpoints, modules = FOLDERS // scale, max(12, CHECKPOINTS // scale), MODULES // scale

    def inspect(size: int) -> Cost:
        with tempfile.TemporaryDirectory() as place:
            write_run(Path(place), size, 4, 16, 4)
            return cost("inspect", place)

    def analyze(size: int, width: int) -> Cost:
        with tempfile.TemporaryDirectory() as place:
            write_run(Path(place), size, width, HIDDEN, RANK)
            return cost("analyze", place, "--out", f"{place}/out", "--plots", "none")

    halves = (4, 2, 1)
    found = series("(a) inspect: checkpoint folders of 4 modules", [folders // n for n in halves], inspect)
    found += series(
        f"(b) analyze: checkpoints of {modules} modules",
        [checkpoints // n for n in halves],
        lambda size: analyze(size, modules),
    )
    found += series(
        f"(c) analyze: modules of {checkpoints} checkpoints",
        [modules // n for n in halves],
        lambda size: analyze(checkpoints, size),
    )
    if max(found, default=0.0) > WORST_GROWTH:
        raise SystemExit(f"something grows faster than linear: {max(found):.2f} is above {WORST_GROWTH}")


if __name__ == "__main__":
    main()
