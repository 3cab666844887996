"""What nextrl adds to a TRL run on the default task, as ratios measured in one run.

    python benchmarks/bench_loop.py [--steps 60]
    python benchmarks/bench_loop.py --sft --steps 200 --rate 1e-2    # SFT alone: what `auto` reads beside training

Engine: wall time of a step over bare model time (generation, forward, backward, optimizer) in the same steps.
Callback: CPU time of the callback's own hooks (saving its memory apart) over that of the rest of the run, for `auto`
and for a named method, whose windows without a search and whose searches are told apart.
Saving: CPU time of a checkpoint (trainer's files, callback's memory, resume marker) over that of the ten steps between
two; CPU time, because wall time of a busy machine stretches either at will. Fit: seconds of `next` and `next-paper` on
the run's own trajectory.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from nextrl.engines import memory
from nextrl.engines.settings import LoraSettings, TrainSettings
from nextrl.engines.trl.callback import LeapCallback
from nextrl.engines.trl.trainer import as_dataset, build_trainer, with_adapter
from nextrl.errors import InputError
from nextrl.leaps.leap import leap
from nextrl.runs.arm import ArmRecord
from nextrl.runs.resume import Resumable
from nextrl.tasks import chain, get
from nextrl.tasks.bases import tiny
from nextrl.trajectory.trajectory import Trajectory


def timed(seconds: dict[str, float], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its time added to `seconds[name]`."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        began, cpu = time.perf_counter(), time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - began
            seconds[f"{name} cpu"] += time.process_time() - cpu

    return wrapper


def instrument(trainer: Any, seconds: dict[str, float]) -> None:
    """Clock the four parts that any GRPO loop has, and saving."""
    trainer.model.generate = timed(seconds, "generation", trainer.model.generate)
    trainer._get_per_token_logps_and_entropies = timed(
        seconds, "forward", trainer._get_per_token_logps_and_entropies
    )
    trainer.accelerator.backward = timed(seconds, "backward", trainer.accelerator.backward)
    trainer._save_checkpoint = timed(seconds, "saving", trainer._save_checkpoint)
    memory.write_pending = timed(seconds, "saving", memory.write_pending)
    handler = trainer.callback_handler
    handler.on_save = timed(seconds, "saving", handler.on_save)
    create = trainer.create_optimizer

    def optimizer(*args: Any, **kwargs: Any) -> Any:
        made = create(*args, **kwargs)
        made.step = timed(seconds, "optimizer", made.step)
        return made

    trainer.create_optimizer = optimizer


def clock_hooks(callback: LeapCallback, seconds: dict[str, float]) -> dict[str, list[float]]:
    """CPU seconds of the callback's hooks, saving apart: one entry per decision, and what came after the last."""
    spent: dict[str, list[float]] = {"windows": [], "rest": [0.0]}
    window = spent["rest"]

    def clocked(hook: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            seen, saved, began = len(callback.decisions), seconds["saving cpu"], time.process_time()
            hook(*args, **kwargs)
            window[0] += time.process_time() - began - (seconds["saving cpu"] - saved)
            if len(callback.decisions) > seen:
                spent["windows"].append(window[0])
                window[0] = 0.0

        return wrapper

    callback.on_step_begin = clocked(callback.on_step_begin)  # type: ignore[method-assign]
    callback.end_step = clocked(callback.end_step)  # type: ignore[method-assign]
    callback.on_step_end = clocked(callback.on_step_end)  # type: ignore[method-assign]
    return spent


def measure(
    steps: int, rate: float, folder: Path, callback: LeapCallback | None, tokens: int = 0
) -> tuple[dict[str, float], float, Any, dict[str, list[float]]]:
    """Train; returns the clocks, the wall time of training, the callback, its hooks' clocks."""
    model, tokenizer = tiny.load("chain")
    task = get("chain")
    settings = TrainSettings(steps=steps, learning_rate=rate, max_completion_length=tokens or None)
    seconds: dict[str, float] = defaultdict(float)
    hooks = clock_hooks(callback, seconds) if callback else {}
    trainer = build_trainer(
        with_adapter(model, LoraSettings(), 0),
        tokenizer,
        task,
        settings,
        folder,
        callbacks=[*([callback] if callback else []), resumable(folder)],
    )
    if tokens:
        trainer.generation_config.min_new_tokens = tokens
    instrument(trainer, seconds)
    began, cpu = time.perf_counter(), time.process_time()
    trainer.train()
    seconds["whole cpu"] = time.process_time() - cpu
    return seconds, time.perf_counter() - began, callback, hooks


def resumable(folder: Path) -> Resumable:
    """What marks a checkpoint as whole in `nextrl run`."""
    record = ArmRecord(name="run", kind="plain", label="run")
    return Resumable(
        record, lambda state: None, lambda model, optimizer: None, lambda: False, folder / "stopped"
    )


def saved_share(seconds: dict[str, float]) -> float:
    """CPU time of saving over that of everything else."""
    return seconds["saving cpu"] / (seconds["whole cpu"] - seconds["saving cpu"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=5e-5, help="learning rate of the run with the callback")
    parser.add_argument("--tokens", type=int, default=0, help="of each completion; 0: as the task has them")
    parser.add_argument(
        "--sft", action="store_true", help="SFTTrainer with `auto` at batch sizes 1 and 8, alone"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.sft:
        for batch in (1, 8):
            print(supervised(options.steps, options.rate, batch))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        seconds, wall, *_ = measure(options.steps, 5e-5, folder / "plain", None)
        bare = sum(seconds[k] for k in ("generation", "forward", "backward", "optimizer"))
        saving = seconds["saving"]
        print(f"bare model time {bare / options.steps:.3f} s a step; TRL's step {wall / options.steps:.3f} s")
        print(f"engine over bare, checkpoints apart: {(wall - saving) / bare - 1:.1%}")
        print(f"saving every 10 steps: {saved_share(seconds):.1%} of the CPU time of the steps between")
        for method in ("next", "next-paper"):
            try:
                began = time.perf_counter()
                leap(Trajectory.load(folder / "plain"), method, horizon=10)
                print(f"fit of {method} on {options.steps} steps: {time.perf_counter() - began:.1f} s")
            except InputError as error:
                print(f"fit of {method}: {error}")
        seconds, wall, callback, hooks = measure(
            options.steps, options.rate, folder / "auto", LeapCallback(), options.tokens
        )
        cpu = seconds["whole cpu"]
        print(f"the same with LeapCallback's memory: {saved_share(seconds):.1%}")
        own = sum(map(sum, hooks.values()))
        of_steps = [spent / ((cpu - own) / options.steps * 10) for spent in hooks["windows"]]
        print(
            f"callback: {own / (cpu - own):.2%} of the run's CPU time; by decision, of ten steps: median "
            f"{median(of_steps):.2%}; each: {', '.join(f'{share:.2%}' for share in of_steps)}"
        )
        print(f"completions searched: {callback.costs.search_completions}")
        named_method(options.steps, options.rate, folder / "named", options.tokens)


def supervised(steps: int, rate: float, batch: int) -> str:
    """Rows through the model and CPU time of SFT on the task's demonstrations with `auto`, over those without it."""
    rows, cpu = zip(*(fine_tuned(steps, rate, batch, auto) for auto in (False, True)), strict=True)
    return (
        f"SFT at batch size {batch}, {steps} steps: {rows[0]} rows plain, {rows[1]} with auto, which reads "
        f"{(rows[1] - rows[0]) / steps:.1f} more a step; CPU time {cpu[1] / cpu[0]:.1f} times that of plain"
    )


def fine_tuned(steps: int, rate: float, batch: int, auto: bool) -> tuple[int, float]:
    """(rows through the model, CPU seconds of training) of one SFT run."""
    examples, rows = get("chain").examples("train")[:364], 0
    texts = Dataset.from_list([{"prompt": e.prompt, "completion": chain.solve(e.prompt)} for e in examples])
    model, tokenizer = tiny.load("chain")
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=with_adapter(model, LoraSettings(r=4, alpha=8, target_modules=["q_proj", "down_proj"]), 0),
            args=SFTConfig(
                output_dir=folder,
                max_steps=steps,
                learning_rate=rate,
                lr_scheduler_type="constant",
                per_device_train_batch_size=batch,
                save_strategy="no",
                bf16=False,
                gradient_checkpointing=False,
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
                logging_steps=steps,
            ),
            train_dataset=texts.select(range(300)),
            eval_dataset=texts.select(range(300, 364)),
            processing_class=tokenizer,
            callbacks=[LeapCallback()] if auto else [],
        )

        def count(model: Any, given: Any, options: Any) -> None:
            nonlocal rows
            rows += len(options["input_ids"])

        trainer.model.register_forward_pre_hook(count, with_kwargs=True)
        began = time.process_time()
        trainer.train()
        return rows, time.process_time() - began


def named_method(steps: int, rate: float, folder: Path, tokens: int) -> None:
    """Windows of a named method with and without a search, and what a completion costs in one."""
    held_out = as_dataset(get("chain").examples("validation")[:64])
    leaping = LeapCallback(method="linear", at=[steps // 20 * 10], horizon=10, validation=held_out)
    seconds, _, callback, hooks = measure(steps, rate, folder, leaping, tokens)
    own = sum(map(sum, hooks.values()))
    step = (seconds["whole cpu"] - own) / steps
    trained = TrainSettings(steps=steps, learning_rate=rate).completions_per_step
    pairs = list(zip(hooks["windows"], callback.decisions, strict=True))
    quiet = [spent / (10 * step) for spent, decision in pairs if not decision.completions]
    searches = [(spent, decision.completions) for spent, decision in pairs if decision.completions]
    print(f"a named method's windows without a search: {max(quiet, default=0.0):.2%} of ten steps at most")
    for spent, completions in searches:
        dearer = spent / completions / (step / trained)
        print(f"a search: {completions} completions, each {dearer:.2f} times a trained one's CPU time")


if __name__ == "__main__":
    main()
