"""`nextrl eval`: accuracy of a model, with or without an adapter, on a task's held-out prompts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from nextrl.checkpoints.adapter import CONFIG, AdapterCheckpoint
from nextrl.checkpoints.naming import module_name
from nextrl.checkpoints.tensorfile import UNREADABLE
from nextrl.cli import values
from nextrl.cli.checkpoints import AllowPickle
from nextrl.cli.console import AsJson, console, emit_json
from nextrl.cli.device import Device
from nextrl.errors import InputError, first_line, needs, shown
from nextrl.scalars import MAX_SEED
from nextrl.tasks import base, bases
from nextrl.tasks.bases.device import placed
from nextrl.tasks.evaluate import evaluate


def evaluate_command(
    model: Annotated[
        str,
        typer.Argument(help="`tiny`, `smollm2-135m`, or a local Hugging Face folder.", callback=values.place),
    ],
    adapter: Annotated[Path | None, typer.Option(help="A PEFT adapter folder.", callback=values.path)] = None,
    task: Annotated[str, typer.Option(help="A task's name, a .jsonl or .py file (docs/tasks.md).")] = "chain",
    prompts: Annotated[int, typer.Option(min=2, max=values.MAX_PROMPTS, help="Held-out prompts.")] = 1000,
    temperature: Annotated[float, typer.Option(min=0.01, callback=values.temperature)] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED)] = 0,
    device: Device = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=values.MAX_PROMPTS,
            help="Prompts answered together; as many as 4 GB of keys and values hold, 1024 at most, by default.",
        ),
    ] = None,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Sampled and greedy accuracy with its standard error.

    Example: nextrl eval tiny --adapter demo-out/arms/plain/checkpoint-200 --task chain
    """
    chosen = base.get(task)
    checkpoint = None if adapter is None else _opened(adapter, allow_pickle)
    loaded, tokenizer = bases.load(model, task)
    if checkpoint is not None:
        loaded = _with_adapter(loaded, checkpoint)
    result = evaluate(
        placed(loaded, device),
        tokenizer,
        chosen,
        prompts=prompts,
        temperature=temperature,
        seed=seed,
        batch=batch_size,
    )
    if as_json:
        emit_json({"accuracy": result.accuracy, "se": result.se, "greedy": result.greedy, "n": result.n})
        return
    console.print(
        f"{task}: {result.accuracy:.3f} ± {result.se:.3f} sampled at temperature {temperature:g}, "
        f"{result.greedy:.3f} greedy, {result.n} held-out prompts"
    )


def _opened(adapter: Path, allow_pickle: bool) -> AdapterCheckpoint:
    """The adapter as every verb reads it, all of its values looked at.

    Raises:
        InputError: it is none, or none that the other verbs would take.
    """
    if not (adapter / CONFIG).exists():
        raise InputError(f"{adapter} holds no PEFT adapter ({CONFIG} is missing): name an adapter folder")
    checkpoint = AdapterCheckpoint.open(0, adapter, allow_pickle=allow_pickle)
    if problem := checkpoint.broken_values():
        raise InputError(str(problem))
    return checkpoint


def _with_adapter(model: Any, checkpoint: AdapterCheckpoint) -> Any:
    """The model with the adapter on it, every tensor of its file in its place.

    PEFT leaves out, with a warning at most, what a model has no place for, and begins anew what a file lacks: a model
    without its adapter would be measured. So what was loaded is compared with the file.

    Raises:
        InputError: the model is not the one that the adapter was trained on, or PEFT cannot load it.
    """
    with needs("trl", "--adapter"):
        from peft import PeftModel, get_peft_model_state_dict
    folder = checkpoint.folder
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is compared below
            adapted = PeftModel.from_pretrained(model, str(folder), torch_device="cpu")
            loaded = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    except UNREADABLE as error:
        line = first_line(error)
        raise InputError(f"{folder}: PEFT cannot put the adapter on this model ({line})") from error
    own = {module_name(key): tensor for key, tensor in loaded.items()}
    stored = {module_name(key): key for key in checkpoint.file.entries}
    # An embedding that PEFT saved whole beside its factors is in the model's own state, and in no adapter's.
    rest = {name: adapted.state_dict().get(stored[name]) for name in stored if name not in own}
    held = own | {name: tensor for name, tensor in rest.items() if tensor is not None}
    wrong = {name for name in stored if name not in held} | {name for name in own if name not in stored}
    for name in set(stored) - wrong:
        if not checkpoint.file.get(stored[name]).to(held[name].dtype).equal(held[name].cpu()):
            wrong.add(name)
    if wrong:
        raise InputError(
            f"{folder}: the adapter does not act on this model: {shown(min(wrong))} is not the same in both "
            f"({len(wrong)} of {len(stored)} tensors): name the model that it was trained on"
        )
    return adapted
