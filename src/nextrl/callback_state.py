"""What `LeapCallback` remembers between windows, and how it lies in a trainer's checkpoint.

Two files beside the adapter: `nextrl_state.safetensors` holds the window's start (every factor of A and B, in their
own dtype) and the previous window's displacement (left (m, q) and right (n, q) of each module);
`nextrl_state.json` holds the rest and the first file's checksum, and is written last, so that a checkpoint has
either a whole state or none.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from nextrl.adapter import State
from nextrl.atomic import sha256, write_json, write_tensors
from nextrl.errors import InputError
from nextrl.lowrank import LowRank

JSON, TENSORS = "nextrl_state.json", "nextrl_state.safetensors"
VERSION = 1


@dataclass
class Memory:
    """What is remembered between windows.

    Attributes:
        start: the adapter's factors where the window began.
        previous: displacement of the window before, by module in the adapter's order; None before the second.
        rewards: training reward of each step of the window so far.
        rate: highest learning rate that the window was trained at so far.
        offset: validation rows used up by earlier searches.
        factor: product of all the factors by which the learning rate was changed.
        partial: the window did not begin where windows begin (a run resumed without a state).
    """

    start: State
    previous: list[LowRank] | None = None
    rewards: list[float] = field(default_factory=list)
    rate: float = 0.0
    offset: int = 0
    factor: float = 1.0
    partial: bool = False


def write(folder: Path, memory: Memory, rest: dict[str, Any]) -> None:
    """Save a memory and other JSON-ready values into a checkpoint's folder, each file atomically."""
    tensors: dict[str, Tensor] = {f"start/{name}": t for name, t in memory.start.items()}
    for index, delta in enumerate(memory.previous or []):
        tensors[f"previous/{index}/left"], tensors[f"previous/{index}/right"] = delta.left, delta.right
    write_tensors(folder / TENSORS, {name: t.detach().cpu() for name, t in tensors.items()})
    window = {
        "rewards": memory.rewards,
        "rate": memory.rate,
        "offset": memory.offset,
        "factor": memory.factor,
        "partial": memory.partial,
        "previous": None if memory.previous is None else len(memory.previous),
    }
    write_json(
        folder / JSON,
        {"version": VERSION, "tensors": sha256(folder / TENSORS), "window": window, **rest},
    )


def read(folder: Path, like: State) -> tuple[Memory, dict[str, Any]] | None:
    """The state that `write` left in a checkpoint's folder, on the device and in the dtype of `like`; None if none.

    Raises:
        InputError: the files are damaged, of a later version, or of another adapter.
    """
    if not (folder / JSON).is_file():
        return None
    try:
        values = json.loads((folder / JSON).read_text(encoding="utf-8"))
        if values["version"] != VERSION:
            raise InputError(
                f"{folder / JSON} is of version {values['version']}: update nextrl to resume this run"
            )
        if values["tensors"] != sha256(folder / TENSORS):
            raise InputError(
                f"{folder / TENSORS} does not belong to the {JSON} beside it: use another checkpoint"
            )
        tensors = load_file(folder / TENSORS)
        memory = _memory(values["window"], tensors, like)
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError, FileNotFoundError) as error:
        raise InputError(f"{folder / JSON} is damaged ({error!r}): use another checkpoint") from error
    if {n: t.shape for n, t in memory.start.items()} != {n: t.shape for n, t in like.items()}:
        raise InputError(
            f"{folder} holds the state of another adapter: resume with the adapter it was saved with"
        )
    return memory, values


def _memory(window: dict[str, Any], tensors: dict[str, Tensor], like: State) -> Memory:
    device = next(iter(like.values())).device
    start = {
        name.removeprefix("start/"): tensor.to(device, copy=True)
        for name, tensor in tensors.items()
        if name.startswith("start/")
    }
    previous = None
    if window["previous"] is not None:
        previous = [
            LowRank(*(tensors[f"previous/{i}/{side}"].to(device, copy=True) for side in ("left", "right")))
            for i in range(window["previous"])
        ]
    return Memory(
        start,
        previous,
        list(window["rewards"]),
        window["rate"],
        window["offset"],
        window["factor"],
        window["partial"],
    )


def resumed_from(output_dir: Path, step: int) -> Path:
    """The checkpoint that the running `Trainer.train` was told to go on from.

    Transformers keeps it in a local variable of `train` and tells callbacks the step only, so it is looked up on the
    call stack; where it is not there, it is the trainer's own checkpoint of that step.
    """
    frame = inspect.currentframe()
    while frame is not None:
        found = frame.f_locals.get("resume_from_checkpoint")
        if isinstance(found, str | Path):
            return Path(found)
        frame = frame.f_back
    return output_dir / f"checkpoint-{step}"
