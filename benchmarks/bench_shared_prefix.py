"""What `train.share_prefixes` saves of a GRPO step of SmolLM2-135M on short sums: CPU seconds in one run.

    python benchmarks/bench_shared_prefix.py [--steps 2]

8 prompts x 8 completions, prompts of 35 to 37 tokens, completions of at most 4; one thread. The rewards of both runs
are printed too: they are the same.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.engines.trl.trainer import build_trainer, with_adapter
from nextrl.tasks import bases, get


def measure(steps: int, shares: bool) -> tuple[float, list[float]]:
    """(CPU seconds a step, mean reward of each step)."""
    base, tokenizer = bases.load("smollm2-135m", "short-sums")
    settings = TrainSettings(
        steps=steps, prompts_per_step=8, completions_per_prompt=8, learning_rate=3e-4, share_prefixes=shares
    )
    with tempfile.TemporaryDirectory() as folder:
        model = with_adapter(base, LoraSettings(), 0)
        trainer = build_trainer(model, tokenizer, get("short-sums"), settings, Path(folder), save=False)
        began = time.process_time()
        trainer.train()
        seconds = (time.process_time() - began) / steps
    return seconds, [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]


def main() -> None:
    """Both, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shared, rewards = measure(options.steps, True)
    plain, expected = measure(options.steps, False)
    print(f"CPU s a step: {plain:.1f} without, {shared:.1f} with shared prefixes, {plain / shared:.1f} times")
    print(f"rewards: {expected} without, {rewards} with")


if __name__ == "__main__":
    main()
