"""What `LeapCallback` remembers between windows, and how it lies in a trainer's checkpoint.

Two files beside the adapter: `nextrl_state.safetensors` holds the window's start (every factor of A and B, or every
trained weight, in their own dtype), the optimizer's moments there where the policy may undo a window, the run before
the last leap where it may still be taken back, the run's beginning while it may begin again, and the checkpoints that
a named method is fitted on; `nextrl_state.json` holds the rest, what tells the weights beside it from others, the first
file's checksum and one of its own, and is written last, so that a checkpoint has either a whole state or none.

The trainer writes its own files first and tells afterwards. A run killed in between would have a checkpoint without a
state, so the state is written to `nextrl_pending/checkpoint-N` before the trainer begins, and moved from there into
the checkpoint: once it is written, or else when the next run begins.
"""

from __future__ import annotations

import shutil
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from nextrl.checkpoints.atomic import sealed, sha256, write_json, write_tensors, writing
from nextrl.checkpoints.layouts.listing import trainer_checkpoint
from nextrl.checkpoints.tensorfile import read_tensors
from nextrl.engines.history import AdapterHistory
from nextrl.engines.live_weights import State
from nextrl.engines.optimizer_state import joined, split
from nextrl.engines.point import Point
from nextrl.engines.rollback import Snapshot
from nextrl.errors import InputError, shown
from nextrl.files import read_json

JSON, TENSORS = "nextrl_state.json", "nextrl_state.safetensors"
PENDING = "nextrl_pending"
VERSION = 7

_PLAIN = ("rate", "offset", "factor", "cooled", "partial", "waiting")
"""Fields of `Memory` that stand in the JSON file as they are."""

_MOMENTS = {"start": "start_moments", "before": "moments", "origin": "origin_moments"}
"""What the tensors of a point are called -> what those of its moments are."""


@dataclass
class Memory:
    """What is remembered between windows.

    Attributes:
        start: where the window began; without moments where no window is ever undone.
        rewards: training reward of each step of the window so far.
        rate: highest learning rate that the window was trained at so far.
        offset: validation rows used up by earlier searches.
        factor: product of all the factors by which the learning rate was changed.
        cooled: share of the rate that it is at, at the end of a run; 1 between steps.
        partial: the window did not begin where windows begin (a run resumed without a state).
        snapshot: the run before the leap that this window follows; None where it follows none.
        history: checkpoints that a named method is fitted on; empty for auto.
        waiting: the window has ended, and its decision waits for the checkpoint that is being written.
        origin: where the run began, or was taken up without a memory of it, while it may begin again; None afterwards.
    """

    start: Point
    _: KW_ONLY
    rewards: list[float] = field(default_factory=list)
    rate: float = 0.0
    offset: int = 0
    factor: float = 1.0
    cooled: float = 1.0
    partial: bool = False
    snapshot: Snapshot | None = None
    history: AdapterHistory = field(default_factory=AdapterHistory)
    waiting: bool = False
    origin: Point | None = None


def write(folder: Path, memory: Memory, rest: dict[str, Any]) -> None:
    """Save a memory and other JSON-ready values into a checkpoint's folder, each file atomically."""
    moments, tensors = _split_point(memory.start, "start")
    for index, state in enumerate(memory.history.states):
        tensors |= {f"history/{index}/{name}": t for name, t in state.items()}
    snapshot, more = _split_snapshot(memory.snapshot)
    tensors |= more
    origin = None
    if memory.origin is not None:
        numbers, more = _split_point(memory.origin, "origin")
        origin = {"moments": numbers, "step": memory.origin.step}
        tensors |= more
    write_tensors(folder / TENSORS, tensors)
    window = {
        "rewards": memory.rewards,
        **{name: getattr(memory, name) for name in _PLAIN},
        "moments": moments,
        "began": memory.start.step,
        "snapshot": snapshot,
        "origin": origin,
        "history": {"steps": memory.history.steps, "rewards": list(memory.history.rewards.items())},
    }
    write_json(
        folder / JSON,
        sealed({"version": VERSION, "tensors": sha256(folder / TENSORS), "window": window, **rest}),
    )


def write_pending(output_dir: Path, step: int, memory: Memory, rest: dict[str, Any]) -> None:
    """Save what belongs into `checkpoint-<step>` before the trainer writes that folder."""
    forget_pending(output_dir)
    write(trainer_checkpoint(output_dir / PENDING, step), memory, rest)


def deliver_pending(folder: Path) -> bool:
    """Move what waits for a checkpoint into its folder; False where nothing waits for it.

    Raises:
        InputError: the folder cannot be written to.
    """
    waiting = _waiting_for(folder)
    if not (waiting / JSON).is_file():
        return False
    for name in (TENSORS, JSON):  # in the order of `write`: the JSON file says that the state is whole
        if (waiting / name).is_file():  # a kill between the two leaves the second one
            with writing(folder / name):
                (waiting / name).replace(folder / name)
    return True


def rival(folder: Path) -> dict[str, Any] | None:
    """What tells the weights of a state that waits for a checkpoint which has another one; None where no two compete.

    An earlier run may have left that other one: only the weights say which of them is right. Empty where the one that
    waits is damaged, or does not know its weights.
    """
    waiting = _waiting_for(folder)
    if not ((folder / JSON).is_file() and (waiting / JSON).is_file()):
        return None
    place = waiting if (waiting / TENSORS).is_file() else folder  # where a kill in `deliver_pending` left it
    try:
        values = _values(waiting / JSON)
        whole = values["tensors"] == sha256(place / TENSORS)
    except InputError:
        return {}
    return values.get("weights") or {} if whole else {}


def settle_pending(output_dir: Path) -> None:
    """Move what waits into checkpoints that have no state, and remove the rest.

    A checkpoint that is not the one to go on from may be that later; if the state is not its own, that is seen then.

    Raises:
        InputError: see `deliver_pending`.
    """
    pending = output_dir / PENDING
    for waiting in sorted(pending.iterdir()) if pending.is_dir() else []:
        folder = output_dir / waiting.name
        if folder.is_dir() and not (folder / JSON).is_file():
            deliver_pending(folder)
    forget_pending(output_dir)


def forget_pending(output_dir: Path) -> None:
    """Remove what waits for a checkpoint."""
    pending = output_dir / PENDING
    if pending.is_dir():  # Python 3.11 opens what it is to remove, and would wait for a pipe
        shutil.rmtree(pending, ignore_errors=True)


def _waiting_for(folder: Path) -> Path:
    """Where the state of a checkpoint lies until it is moved there."""
    return folder.parent / PENDING / folder.name


def missing(folder: Path) -> str:
    """Names of the state's files that a checkpoint lacks."""
    return " and ".join(name for name in (JSON, TENSORS) if not (folder / name).is_file())


def read(folder: Path, like: State) -> tuple[Memory, dict[str, Any]] | None:
    """The state that `write` left in a checkpoint's folder, in the dtype of `like`; None if none.

    The history, and moments, come on the CPU, all else where `like` lies.

    Raises:
        InputError: the files are damaged, of another version, or of another adapter.
    """
    if not (folder / JSON).is_file():
        return None
    values = _values(folder / JSON)
    if values["tensors"] != sha256(folder / TENSORS):
        raise InputError(
            f"{folder / TENSORS} does not belong to the {JSON} beside it: use another checkpoint"
        )
    tensors = read_tensors(folder / TENSORS)
    try:
        memory = _memory(values["window"], tensors, like)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / JSON} is damaged ({error!r}): use another checkpoint") from error
    if {n: t.shape for n, t in memory.start.state.items()} != {n: t.shape for n, t in like.items()}:
        raise InputError(
            f"{folder} holds the state of another adapter or of other weights: resume with what it was saved with"
        )
    return memory, values


def _values(path: Path) -> dict[str, Any]:
    """What the JSON file says, where it is as it was written."""
    try:
        values = read_json(path)
    except InputError as error:
        raise InputError(f"{path} is damaged ({error}): use another checkpoint") from error
    if not isinstance(values, dict) or not {"version", "tensors", "window"} <= values.keys():
        raise InputError(f"{path} is damaged (no state of LeapCallback): use another checkpoint")
    if values["version"] != VERSION:
        raise InputError(
            f"{path} is of version {shown(values['version'])}, not {VERSION}: resume this run with the nextrl "
            "that wrote it"
        )
    if values.get("digest") != sealed(values)["digest"]:  # not the values themselves: a NaN equals nothing
        raise InputError(f"{path} is damaged (not as it was written): use another checkpoint")
    return values


def _memory(window: dict[str, Any], tensors: dict[str, Tensor], like: State) -> Memory:
    steps = [int(step) for step in window["history"]["steps"]]
    states = [_as_live(_named(tensors, f"history/{i}/"), like, "cpu") for i in range(len(steps))]
    return Memory(
        start=_joined_point(window["moments"], window["began"], tensors, like, "start"),
        rewards=list(window["rewards"]),
        snapshot=_joined_snapshot(window["snapshot"], tensors, like),
        history=AdapterHistory(steps, states, {int(s): r for s, r in window["history"]["rewards"]}),
        origin=_joined_origin(window["origin"], tensors, like),
        **{name: window[name] for name in _PLAIN},
    )


def _named(tensors: dict[str, Tensor], prefix: str) -> State:
    return {n.removeprefix(prefix): t.clone() for n, t in tensors.items() if n.startswith(prefix)}


def _as_live(state: State, like: State, device: str | None = None) -> State:
    """The state in the adapter's present dtype, each tensor where the live one lies, or on a device.

    PEFT makes a half-precision adapter float32 when it is loaded, and a model may be split over several devices.
    """
    live = {name: like.get(name, tensor) for name, tensor in state.items()}
    return {name: t.to(device or live[name].device, live[name].dtype) for name, t in state.items()}


def _split_snapshot(snapshot: Snapshot | None) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """A snapshot as JSON-ready numbers and tensors by name."""
    if snapshot is None:
        return None, {}
    numbers, tensors = _split_point(snapshot.point, "before")
    plain = ("alpha", "steps", "factor", "reward", "variance", "measured")
    values = {"moments": numbers, "step": snapshot.point.step}
    return values | {name: getattr(snapshot, name) for name in plain}, tensors


def _joined_snapshot(
    values: dict[str, Any] | None, tensors: dict[str, Tensor], like: State
) -> Snapshot | None:
    if values is None:
        return None
    rest = {name: value for name, value in values.items() if name not in ("moments", "step")}
    return Snapshot(_joined_point(values["moments"], values["step"], tensors, like, "before"), **rest)


def _joined_origin(values: dict[str, Any] | None, tensors: dict[str, Tensor], like: State) -> Point | None:
    if values is None:
        return None
    return _joined_point(values["moments"], values["step"], tensors, like, "origin")


def _split_point(point: Point, name: str) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """A point's moments as JSON-ready values, and its tensors by name; its step is left to the caller."""
    moments, tensors = split(point.moments, _MOMENTS[name])
    return moments, {f"{name}/{key}": t for key, t in point.state.items()} | tensors


def _joined_point(
    moments: list[dict[str, Any]], step: int, tensors: dict[str, Tensor], like: State, name: str
) -> Point:
    """The reverse."""
    state = _as_live(_named(tensors, f"{name}/"), like)
    return Point(state, joined(moments, tensors, _MOMENTS[name]), step)
