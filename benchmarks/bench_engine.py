"""Speed and memory of the trajectory engine, each figure beside its yardstick in the same run.

    python benchmarks/bench_engine.py            # everything, some minutes and 5 GB of disk
    python benchmarks/bench_engine.py --quick    # small shapes, half a minute

(a) exact top triples from factors against a dense LAPACK SVD, one core;
(b) all three deltas of all modules and checkpoints of a 7B-shaped run against reading its files into fresh
    arrays, cold (page cache dropped with posix_fadvise) and warm; scaling in modules and checkpoints; memory;
(c) one 70B-shaped layer, extrapolated to 80.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nextrl.trajectory.lowrank import LowRank
from nextrl.trajectory.spectra import iter_spectra
from nextrl.trajectory.trajectory import Trajectory

torch.set_num_threads(1)
SPACING = 10
QWEN_7B = {"hidden": 3584, "key": 512, "inner": 18944, "rank": 32}
LLAMA_70B = {"hidden": 8192, "key": 1024, "inner": 28672, "rank": 64}


def shapes(hidden: int, key: int, inner: int) -> dict[str, tuple[int, int]]:
    """The seven matrices of a layer, (m, n)."""
    attention = {
        "q_proj": (hidden, hidden),
        "k_proj": (key, hidden),
        "v_proj": (key, hidden),
        "o_proj": (hidden, hidden),
    }
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    named = {f"self_attn.{n}": s for n, s in attention.items()}
    return named | {f"mlp.{n}": s for n, s in mlp.items()}


def generate(root: Path, layers: int, checkpoints: int, hidden: int, key: int, inner: int, rank: int) -> int:
    """A bf16 run laid out as TRL writes it, each step a random walk; returns its bytes."""
    g = torch.Generator().manual_seed(0)
    total = 0
    for n in range(1, checkpoints + 1):
        folder = root / f"checkpoint-{n * SPACING}"
        folder.mkdir(parents=True)
        state = {}
        for layer in range(layers):
            for name, (m, k) in shapes(hidden, key, inner).items():
                prefix = f"base_model.model.model.layers.{layer}.{name}."
                # One noise block a module, scaled by sqrt(t): cheap, and the deltas have the sizes of a walk.
                base = torch.Generator().manual_seed(layer * 7 + m % 97 + k % 89)
                a = (torch.rand(rank, k, generator=base) * 2 - 1) * k**-0.5
                state[prefix + "lora_A.weight"] = (
                    a + 6e-4 * n**0.5 * torch.randn(rank, k, generator=g)
                ).bfloat16()
                state[prefix + "lora_B.weight"] = (
                    6e-4 * n**0.5 * torch.randn(m, rank, generator=g)
                ).bfloat16()
        save_file(state, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        total += (folder / "adapter_model.safetensors").stat().st_size
    return total


def clock(work: Callable[[], object], repeats: int) -> float:
    """Best of `repeats`, seconds, after one run that is not counted."""
    work()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def bench_svd(size: int, rank: int, dense: bool) -> dict[str, Any]:
    """(a) one matrix."""
    g = torch.Generator().manual_seed(size)
    x = LowRank(torch.randn(size, rank, generator=g), torch.randn(size, rank, generator=g))
    ours = clock(lambda: x.top(1), 5)
    row: dict[str, Any] = {"size": size, "rank": rank, "ours_ms": ours * 1e3}
    if dense:
        full = x.left @ x.right.mT
        start = time.perf_counter()
        sigma = torch.linalg.svd(full, full_matrices=False)[1]
        row["dense_s"] = time.perf_counter() - start
        row["ratio"] = row["dense_s"] / ours
        row["sigma_relative_difference"] = float(abs(x.top(1).sigma[0] - sigma[0].double()) / sigma[0])
    return row


def drop_cache(root: Path) -> None:
    """Ask the kernel to forget the files' pages."""
    for file in root.rglob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_all(root: Path) -> float:
    """Seconds to read every tensor of the run with safetensors into fresh arrays."""
    start = time.perf_counter()
    for file in sorted(root.rglob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            held = [handle.get_tensor(key).clone() for key in handle.keys()]  # noqa: SIM118
            del held
    return time.perf_counter() - start


def ours(root: Path, workers: int, steps: list[int] | None = None) -> float:
    """Seconds to load the run and take the spectra and first vectors of all its deltas."""
    start = time.perf_counter()
    traj = Trajectory.load(root, steps=steps)
    for _ in iter_spectra(traj, 5 * SPACING, workers=workers):
        pass
    return time.perf_counter() - start


def bench_run(root: Path, size: int) -> dict[str, Any]:
    """(b) one run: ours on both cores and on one, beside reading cold and warm."""
    drop_cache(root)
    cold = read_all(root)
    warm = read_all(root)
    drop_cache(root)
    processor = time.process_time()
    both = ours(root, 2)
    processor = time.process_time() - processor
    one = ours(root, 1)
    return {
        "bytes": size,
        "read_cold_s": cold,
        "read_warm_s": warm,
        "ours_cold_2_threads_s": both,
        "ours_warm_1_thread_s": one,
        "ours_cpu_s": processor,
        "ratio_to_cold_read": both / cold,
        "ratio_to_warm_read": both / warm,
        "peak_memory_mb": peak_memory(root),
    }


def peak_memory(root: Path) -> float:
    """Peak resident megabytes (VmHWM) of a fresh process that does nothing else."""
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from nextrl.trajectory.spectra import iter_spectra; from nextrl.trajectory.trajectory import Trajectory\n"
        f"for _ in iter_spectra(Trajectory.load(sys.argv[1]), {5 * SPACING}): pass\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1024


def scaling(parent: Path, shape: dict[str, int], layers: int, checkpoints: int) -> list[dict[str, Any]]:
    """Time against modules (1x, 2x, 4x layers) and against checkpoints."""
    rows = []
    for factor in (1, 2, 4):
        root = parent / f"layers{factor}"
        generate(root, layers * factor, checkpoints, **shape)
        rows.append(
            {
                "layers": layers * factor,
                "checkpoints": checkpoints,
                "seconds": min(ours(root, 2) for _ in range(2)),
            }
        )
    for factor in (1, 2, 4):
        steps = [SPACING * n for n in range(1, checkpoints * factor // 4 + 1)]
        root = parent / "layers2"
        rows.append(
            {
                "layers": 2 * layers,
                "checkpoints": len(steps),
                "seconds": min(ours(root, 2, steps) for _ in range(2)),
            }
        )
    return rows


def bench(quick: bool, parent: Path) -> dict[str, Any]:
    """All parts."""
    small = {"hidden": 512, "key": 128, "inner": 1024, "rank": 16}
    result: dict[str, Any] = {
        "quick": quick,
        "load_average": os.getloadavg(),
        "cores": len(os.sched_getaffinity(0)),
    }
    sizes = [(512, 16)] if quick else [(2048, 32), (3584, 32)]
    result["svd"] = [bench_svd(size, rank, True) for size, rank in sizes]
    shape, layers, count = (small, 2, 8) if quick else (QWEN_7B, 28, 15)
    root = parent / "run"
    result["run"] = {
        **shape,
        "layers": layers,
        "checkpoints": count,
        **bench_run(root, generate(root, layers, count, **shape)),
    }
    shutil.rmtree(root)
    result["scaling"] = scaling(parent, shape, 1, 16 if not quick else 8)
    if not quick:
        root = parent / "large"
        size = generate(root, 1, 15, **LLAMA_70B)
        one = bench_run(root, size)
        result["large"] = {
            **LLAMA_70B,
            "layers_run": 1,
            "one_layer": one,
            "extrapolated_80_layers_s": 80 * one["ours_cold_2_threads_s"],
        }
    result["load_average_after"] = os.getloadavg()
    return result


def main() -> None:
    """Run and print one JSON object; `--out` keeps it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small shapes, half a minute")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = bench(options.quick, Path(folder))
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
