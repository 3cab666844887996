"""Time, memory and held-out error of every extrapolator on a trajectory of a large model's shape.

Qwen2.5-7B with LoRA r = 32 on all linear layers has 196 modules in 28 layers; a run of 15 checkpoints (k =
10) and one more at step 200 is written to a temporary folder in bfloat16 (2.6 GB) with a drift, a saturating
part and a random walk, and read back as any run is. Each method is fitted at T = 150 for h = 50 and compared
with step 200.

    python benchmarks/bench_extrapolators.py                # everything but next-paper, 28 layers
    python benchmarks/bench_extrapolators.py --layers 2     # quick
    python benchmarks/bench_extrapolators.py --layers 1 --methods next,next-paper --only self_attn.k_proj
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from nextrl.errors import InputError
from nextrl.extrapolators import get, names
from nextrl.trajectory.trajectory import Trajectory

HIDDEN, KV, FF, RANK = 3584, 512, 18944, 32
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (FF, HIDDEN),
    "mlp.up_proj": (FF, HIDDEN),
    "mlp.down_proj": (HIDDEN, FF),
}
STEPS, HORIZON = (*range(10, 151, 10), 200), 50


def write_run(folder: Path, layers: int, only: str | None) -> None:
    """A run of `layers` layers, in bfloat16."""
    draws = torch.Generator().manual_seed(0)
    modules = {
        f"model.layers.{i}.{kind}": shape
        for i in range(layers)
        for kind, shape in SHAPES.items()
        if only is None or kind == only
    }
    start, drift, settling, place = {}, {}, {}, {}
    for module, (m, n) in modules.items():
        start[module] = torch.randn(RANK, n, generator=draws) / math.sqrt(n)
        # One direction dominates, as in every LoRA run that was looked at.
        weights = 0.5 ** torch.arange(RANK)
        drift[module] = torch.randn(m, RANK, generator=draws) * weights
        settling[module] = torch.randn(m, RANK, generator=draws) * weights
        place[module] = torch.zeros(m, RANK)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "init_lora_weights": True}
    config["target_modules"] = sorted({kind.rsplit(".", 1)[-1] for kind in SHAPES})
    before = 0
    for step in STEPS:
        state = {}
        for module, (m, _) in modules.items():
            jitter = torch.randn(m, RANK, generator=draws) * 0.002 * math.sqrt(step - before)
            place[module] += jitter
            b = drift[module] * step / 200 + settling[module] * (1 - math.exp(-step / 60)) + place[module]
            a = start[module] * (1 + step / 5000)
            stem = f"base_model.model.{module}"
            state[f"{stem}.lora_A.weight"] = a.bfloat16().contiguous()
            state[f"{stem}.lora_B.weight"] = (b * 1e-3).bfloat16().contiguous()
        out = folder / f"checkpoint-{step}"
        out.mkdir(parents=True)
        save_file(state, out / "adapter_model.safetensors")
        (out / "adapter_config.json").write_text(json.dumps(config))
        before = step


class PeakMemory:
    """Largest anonymous resident memory (GB) of this process while inside; pages of mapped files do not
    count."""

    def __enter__(self) -> PeakMemory:
        self.peak, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            for text in Path("/proc/self/status").read_text().splitlines():
                if text.startswith("RssAnon"):
                    self.peak = max(self.peak, int(text.split()[1]) / 1e6)

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


def measure(traj: Trajectory, name: str, modules: list[str]) -> dict[str, float]:
    """Seconds and memory of the fit; cosine and relative error at T + h."""
    params = {"accuracy": {t: 0.2 + t / 500 for t in traj.steps}} if name == "alpharl" else {}
    past = traj.upto(150)
    with PeakMemory() as memory:
        started, cpu = time.perf_counter(), time.process_time()
        prediction = get(name, **params).fit(past, HORIZON)
        fit, cpu = time.perf_counter() - started, time.process_time() - cpu
    inner = predicted = actual = 0.0
    for module in modules:
        move, real = prediction.delta(module), traj.delta(module, 150, 200)
        inner += float(move.inner(real))
        predicted += float(move.norm()) ** 2
        actual += float(real.norm()) ** 2
    error = math.sqrt(max(0.0, 1 + (predicted - 2 * inner) / actual))
    cosine = inner / math.sqrt(predicted * actual) if predicted > 0 else 0.0
    # CPU seconds too: on a busy machine the clock measures the neighbours.
    return {"fit_s": fit, "cpu_s": cpu, "peak_gb": memory.peak, "cosine": cosine, "relative_error": error}


def main() -> None:
    """Parse flags, write the run, print one line a method (and JSON with --json)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--only", choices=sorted(SHAPES), help="one kind of module")
    parser.add_argument("--methods", help="comma-separated; default all but next-paper")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run", type=Path, help="keep the run in this folder and reuse it")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    wanted = args.methods.split(",") if args.methods else [n for n in names() if n != "next-paper"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.run or Path(temporary)
        if not any(folder.glob("checkpoint-*")):
            write_run(folder, args.layers, args.only)
        traj = Trajectory.load(folder)
        # The error is measured on one module of each kind in the first layer: enough, and cheap.
        sample = [m for m in traj.modules if ".layers.0." in m]
        results = {}
        print(f"{len(traj.modules)} modules, {args.threads} threads, T = 150, h = {HORIZON}")
        for name in wanted:
            try:
                row = results[name] = measure(traj, name, sample)
            except InputError as error:
                print(f"{name:14s} {error}")
                continue
            print(
                f"{name:14s} fit {row['fit_s']:7.2f} s ({row['cpu_s']:.2f} CPU s)   peak {row['peak_gb']:.2f} GB   "
                f"cosine {row['cosine']:.3f}   relative error {row['relative_error']:.3f}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
