"""The control: supervised fine-tuning with and without the line. Held-out loss over rates and seeds, as a table.

    python -m studies.callback.sft --published     # the table, from the published records
    python -m studies.callback.sft                 # trains what is missing in --out, half a minute a run

The tiny noisy base on right demonstrations of the chain task, 100 steps of 16, LoRA of rank 8, Adam at a constant
rate. Each run's losses go to `sft.json` in --out, each mean stands with its standard error over seeds.
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
from nextrl.tasks import chain, get
from nextrl.tasks.bases import tiny
from studies.folders import default_out, parser, published
from studies.over_seeds import mean_and_error

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
        "decisions": [d.model_dump(mode="json") for d in callback.decisions] if with_line else [],
        "rows_scored": callback.costs.search_completions if with_line else 0,
    }


def main() -> None:
    """Run what is missing, then print."""
    arguments = parser(__doc__)
    arguments.add_argument("--out", type=Path, default=default_out("callback"))
    arguments.add_argument(
        "--published", action="store_true", help="print the published table, train nothing"
    )
    options = arguments.parse_args()
    if options.published:
        print_table(json.loads((published("callback") / "sft.json").read_text())["runs"])
    else:
        print_table(run_missing(options.out / "sft.json"))


def run_missing(out: Path) -> list[dict[str, Any]]:
    """Every run of the study; those that `out` lacks are trained and added to it."""
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = json.loads(out.read_text())["runs"] if out.is_file() else []
    done = {(r["rate"], r["seed"], r["with"]) for r in runs}
    for rate in RATES:
        for seed in SEEDS:
            for with_line in (False, True):
                if (rate, seed, with_line) not in done:
                    runs.append(losses(rate, seed, with_line))
                    write_json(out, {"runs": runs})
    return runs


def print_table(runs: list[dict[str, Any]]) -> None:
    """Held-out loss by rate, with and without the callback."""
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
