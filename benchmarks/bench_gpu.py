"""What `auto` adds to a trainer's own step at a model's size, on one GPU: seconds and memory, beside a plain run's.

    python benchmarks/bench_gpu.py --out gpu_size.json     # Qwen2.5-7B's shape, two minutes on an H200; 20 GB
    python benchmarks/bench_gpu.py --shape tiny            # some layers of 64, on a CPU too: that it works

GRPO under TRL, sampled by Hugging Face generate, on random weights of the shape: bfloat16, with LoRA of rank 32 in
float32 on all linear layers; gradient checkpointing, eight micro-batches per step. The reward is the share of even
token ids, which any model can learn. `auto` starts at 1e-5: in the first steps of a run it looks most often, so that
what is measured bounds what a longer run pays. `sampling`, what the trainer takes to make and grade a batch, and
`passes`, what is left of a plain step, are means over the steps after the first two, in seconds; `callback` is what
`auto` counted itself, of all steps.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from nextrl import LeapCallback
from nextrl.engines.trl.seam_names import SCORE
from nextrl.tasks import bases

FIRST_STEPS = 2  # of a run, whose kernels are still chosen: left out
WINDOW = 5


@dataclass(frozen=True)
class Shape:
    """A model's shape, and the batch of a step: rows of `prompt_tokens` and `completion_tokens` (at most)."""

    layers: int
    hidden: int
    inner: int
    heads: int
    key_heads: int
    vocabulary: int
    rank: int
    rows: int
    prompt_tokens: int
    completion_tokens: int


SHAPES = {
    "7b": Shape(28, 3584, 18944, 28, 4, 152_064, 32, 64, 128, 32),
    "1.5b": Shape(28, 1536, 8960, 12, 2, 151_936, 32, 64, 128, 32),
    "tiny": Shape(2, 64, 128, 4, 2, 1000, 4, 16, 8, 8),
}


def model_of(shape: Shape, device: str) -> Any:
    """A model of the shape with random weights in bfloat16, in a fresh adapter."""
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with torch.device(device):
        base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    lora = LoraConfig(
        r=shape.rank, lora_alpha=2 * shape.rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return get_peft_model(base, lora)


def even(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The share of even ids in a completion."""
    return [sum(i % 2 == 0 for i in ids) / max(1, len(ids)) for ids in completion_ids]


def now() -> float:
    """Seconds, with nothing left to compute."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def time_sampling(trainer: Any) -> list[float]:
    """The seconds of each batch that the trainer makes from here on, in a list that grows."""
    make, spent = getattr(trainer, SCORE.name), list[float]()

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = now()
        batch = make(*args, **kwargs)
        spent.append(now() - began)
        return batch

    setattr(trainer, SCORE.name, timed)
    return spent


class Clock(TrainerCallback):
    """When each step begins, with nothing left to compute, and when training ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def _note(self) -> None:
        self.times.append(now())

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._note()

    def seconds(self) -> list[float]:
        """Of each step, callbacks included."""
        return [end - begin for begin, end in zip(self.times, self.times[1:], strict=False)]


def run(shape: Shape, device: str, steps: int, folder: Path, leaps: LeapCallback | None) -> dict[str, Any]:
    """One run, and what it took."""
    gc.collect()
    cuda = device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    clock = Clock()
    micro = max(2, shape.rows // 8)
    _, tokenizer = bases.load("tiny", "chain")
    # The tokenizer takes each character for a token.
    prompts = [(f"{n}+" * shape.prompt_tokens)[: shape.prompt_tokens] for n in range(1000)]
    trainer = GRPOTrainer(
        model=model_of(shape, device),
        reward_funcs=even,
        args=GRPOConfig(
            output_dir=str(folder),
            max_steps=steps,
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=shape.rows // micro,
            num_generations=8 if shape.rows >= 64 else 4,
            max_completion_length=shape.completion_tokens,
            bf16=cuda,
            use_cpu=not cuda,
            gradient_checkpointing=cuda,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        callbacks=[clock, *([leaps] if leaps else [])],
    )
    sampling = time_sampling(trainer)
    trainer.train()
    took = clock.seconds()
    logged = [line for line in trainer.state.log_history if "reward" in line]
    found = {
        "steps": len(took),
        "seconds": took,
        "sampling": sampling,
        "mean_seconds": statistics.fmean(took[FIRST_STEPS:]),
        "mean_sampling": statistics.fmean(sampling[FIRST_STEPS:]),
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "rewards": [float(line["reward"]) for line in logged],
        "mean_length": statistics.fmean(float(line["completions/mean_length"]) for line in logged),
    }
    if leaps:
        found["callback_seconds"] = leaps.costs.search_seconds
        found["decisions"] = [decision.model_dump(mode="json") for decision in leaps.decisions]
    return found


def bench(name: str, steps: int) -> dict[str, Any]:
    """Plain, then `auto`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = SHAPES[name]
    with tempfile.TemporaryDirectory() as folder:
        plain = run(shape, device, steps, Path(folder) / "plain", None)
        auto = run(shape, device, steps, Path(folder) / "auto", LeapCallback(WINDOW))
    passes = plain["mean_seconds"] - plain["mean_sampling"]
    callback = auto["callback_seconds"] / auto["steps"]
    return {
        "shape": name,
        **asdict(shape),
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "torch": torch.__version__,
        "plain": plain,
        "auto": auto,
        "seconds_per_step": {"sampling": plain["mean_sampling"], "passes": passes, "callback": callback},
        "callback_of_passes": callback / passes,
        "callback_of_a_step": callback / plain["mean_seconds"],
        "bytes_added": auto["peak_bytes"] - plain["peak_bytes"] if device == "cuda" else None,
    }


def main() -> None:
    """Run and print one JSON object; `--out` keeps it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="7b")
    parser.add_argument("--steps", type=int, default=6, help="of each of the two runs")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    text = json.dumps(bench(options.shape, options.steps), indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
