"""The control: supervised fine-tuning with and without the line. Held-out loss over rates and seeds, as a table.

    python studies/callback/sft.py

The tiny noisy base on right demonstrations of the chain task, 100 steps of 16, LoRA of rank 8, Adam at a constant
rate; half a minute a run. Each run's losses go to studies/callback/raw/sft.json, each mean stands with its standard
error over seeds.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from nextrl import LeapCallback
from nextrl.checkpoints.atomic import write_json
from nextrl.engines.settings import LoraSettings
from nextrl.engines.trl.trainer import with_adapter
from nextrl.over_seeds import mean_and_error
from nextrl.tasks import chain, get
from nextrl.tasks.bases import tiny

OUT = Path(__file__).parent / "raw" / "sft.json"
RATES, SEEDS, STEPS, EVERY = (1e-6, 2e-5, 1e-3, 1e-2, 5e-2), (0, 1, 2), 100, 20


def demonstrations(split: Any, count: int) -> Dataset:
    """Prompts of a split with their right solutions."""
    examples = get("chain").examples(split)[:count]
    return Dataset.from_list([{"prompt": e.prompt, "completion": chain.solve(e.prompt)} for e in examples])


def losses(rate: float, seed: int, with_line: bool) -> dict[str, Any]:
    """Held-out loss every 20 steps, and what the callback did."""
    model, tokenizer = tiny.load("chain")
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            max_steps=STEPS,
            learning_rate=rate,
            lr_scheduler_type="constant",
            per_device_train_batch_size=16,
            eval_strategy="steps",
            eval_steps=EVERY,
            eval_on_start=True,
            logging_steps=10,
            save_strategy="no",
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            seed=seed,
        )
        trainer = SFTTrainer(
            model=with_adapter(model, LoraSettings(), seed),
            args=config,
            train_dataset=demonstrations("train", 4000),
            eval_dataset={name: demonstrations(name, 256) for name in ("validation", "test")},
            processing_class=tokenizer,
        )
        # By itself the callback would take the test rows, too.
        callback = LeapCallback(seed=seed, validation=trainer.eval_dataset["validation"])
        if with_line:
            trainer.add_callback(callback)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    logs = [row for row in trainer.state.log_history if "eval_test_loss" in row]
    return {
        "rate": rate,
        "seed": seed,
        "with": with_line,
        "loss": {str(row["step"]): row["eval_test_loss"] for row in logs},
        "decisions": callback.decisions if with_line else [],
        "rows_scored": callback.costs.search_completions if with_line else 0,
    }


def main() -> None:
    """Run what is missing, then print."""
    torch.set_num_threads(1)
    runs = json.loads(OUT.read_text())["runs"] if OUT.is_file() else []
    done = {(r["rate"], r["seed"], r["with"]) for r in runs}
    for rate in RATES:
        for seed in SEEDS:
            for with_line in (False, True):
                if (rate, seed, with_line) not in done:
                    runs.append(losses(rate, seed, with_line))
                    write_json(OUT, {"runs": runs})
    steps = [str(s) for s in range(0, STEPS + 1, EVERY)]
    print(f"| rate | the line | seeds | {' | '.join(steps)} | rows scored | rate at the end |")
    print("|" + "---|" * (len(steps) + 5))
    for rate in RATES:
        for with_line in (False, True):
            chosen = [r for r in runs if (r["rate"], r["with"]) == (rate, with_line)]
            cells = [mean_and_error([r["loss"][s] for r in chosen]) for s in steps]
            ends = ", ".join(f"{r['decisions'][-1]['learning_rate']:.2g}" for r in chosen if r["decisions"])
            scored = round(sum(r["rows_scored"] for r in chosen) / len(chosen))
            line = "with" if with_line else "without"
            print(f"| {rate:g} | {line} | {len(chosen)} | {' | '.join(cells)} | {scored} | {ends} |")


if __name__ == "__main__":
    main()
