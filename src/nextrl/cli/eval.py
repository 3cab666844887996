"""`nextrl eval`: accuracy of a model, with or without an adapter, on a task's held-out prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nextrl.cli.console import AsJson, console, emit_json
from nextrl.errors import InputError, needs
from nextrl.tasks import base, bases
from nextrl.tasks.evaluate import evaluate


def evaluate_command(
    model: Annotated[str, typer.Argument(help="`tiny`, `smollm2-135m`, or a local Hugging Face folder.")],
    adapter: Annotated[Path | None, typer.Option(help="A PEFT adapter folder.")] = None,
    task: Annotated[str, typer.Option(help="A task's name, a .jsonl or .py file (docs/tasks.md).")] = "chain",
    prompts: Annotated[int, typer.Option(min=2, help="Held-out prompts.")] = 1000,
    temperature: Annotated[float, typer.Option(min=0.01)] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Sampled and greedy accuracy with its standard error.

    Example: nextrl eval tiny --adapter demo-out/arms/plain/checkpoint-200 --task chain
    """
    chosen = base.get(task)
    if adapter is not None and not (adapter / "adapter_config.json").is_file():
        raise InputError(
            f"{adapter} holds no PEFT adapter (adapter_config.json is missing): name an adapter folder"
        )
    loaded, tokenizer = bases.load(model, task)
    if adapter is not None:
        with needs("trl", "--adapter"):
            from peft import PeftModel
        loaded = PeftModel.from_pretrained(loaded, str(adapter))
    result = evaluate(loaded, tokenizer, chosen, prompts=prompts, temperature=temperature, seed=seed)
    if as_json:
        emit_json({"accuracy": result.accuracy, "se": result.se, "greedy": result.greedy, "n": result.n})
        return
    console.print(
        f"{task}: {result.accuracy:.3f} ± {result.se:.3f} sampled at temperature {temperature:g}, "
        f"{result.greedy:.3f} greedy, {result.n} held-out prompts",
        highlight=False,
    )
