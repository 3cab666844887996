"""What a verl run with leaps remembers, in verl's own checkpoint: `global_step_N/nextrl/`.

shards-world_W-rank_R.safetensors   each process's shards of the adapter where the window began, and of the moments
state.json                          the rest, what tells the weights beside it from others among it; written last, so
                                    that a folder has either a whole state or none

verl writes its tracker file (`latest_checkpointed_iteration.txt`) after everything else, and this is written before
verl begins: a checkpoint that the tracker names has a whole state.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nextrl.checkpoints.atomic import write_json
from nextrl.engines.fingerprint import Fingerprint, agrees
from nextrl.engines.memory import Memory
from nextrl.engines.point import Point
from nextrl.engines.session import Session
from nextrl.engines.verl.remote import VerlRun
from nextrl.errors import InputError, shown
from nextrl.files import NoSuchFile, read_json
from nextrl.judge import decision_file
from nextrl.say import say

log = logging.getLogger(__name__)

FOLDER, JSON, SHARDS = "nextrl", "state.json", "shards-world_{world}-rank_{rank}.safetensors"
VERSION = 4

_NUMBERS = ("rewards", "rate", "factor", "cooled")
"""Fields of `Memory` that verl runs use, but for the points."""


def save(checkpoint: Path, run: VerlRun, session: Session) -> None:
    """Write the state into `global_step_N`."""
    folder, kept = checkpoint / FOLDER, session.memory
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON).unlink(missing_ok=True)
    copies = {"start": _key(kept.start.state)}
    moments = {"start_moments": _key(kept.start.moments)} if kept.start.moments else {}
    if kept.origin is not None:
        copies["origin"] = _key(kept.origin.state)
        moments["origin_moments"] = _key(kept.origin.moments)
    run.workers.ask("save", str(folder / SHARDS), copies, moments)
    values = {
        "version": VERSION,
        "memory": {"began": kept.start.step, **{name: getattr(kept, name) for name in _NUMBERS}},
        "moments": bool(kept.start.moments),
        "origin": None if kept.origin is None else kept.origin.step,
        "base_rate": run.base_rate,
        "weights": run.workers.ask("fingerprint"),
        **session.state(),
    }
    write_json(folder / JSON, values)


def prune(run_folder: Path, saved: int) -> None:
    """Remove the state of checkpoints whose actor verl has removed (`trainer.max_actor_ckpt_to_keep`).

    Args:
        saved: the step that was just saved. Where its actor is not seen from here (the workers write to a disk of
            their own), nothing is known of the others' either.
    """
    if not (run_folder / f"global_step_{saved}" / "actor").is_dir():
        return
    for folder in run_folder.glob(f"global_step_*/{FOLDER}"):
        if not (folder.parent / "actor").is_dir():
            shutil.rmtree(folder, ignore_errors=True)


def load(checkpoint: Path, run: VerlRun, session: Session, step: int) -> bool:
    """Take up the state in `global_step_N`; False where it has none, or one that belongs to other weights.

    Raises:
        InputError: it is damaged, of another version, or of other shards; or see `Session.begins_late`.
    """
    path = checkpoint / FOLDER / JSON
    try:
        values = read_json(path)
    except NoSuchFile:
        session.begins_late(step)
        session.decisions = decision_file.read(run.folder, upto=step)
        say(
            log,
            "%s holds no state of nextrl: a new window begins at step %d, at the rate that verl has%s",
            checkpoint,
            step,
            f"; {len(session.decisions)} decisions up to it are kept" if session.decisions else "",
        )
        return False
    now = run.workers.ask("fingerprint")
    with _undamaged(path):
        if values["version"] != VERSION:
            raise InputError(
                f"{path} is of version {values['version']}, not {VERSION}: resume with the nextrl that wrote it"
            )
        belongs = _belongs(values["weights"], now)
    if not belongs:
        session.begins_late(step)
        say(
            log,
            "%s holds the state of another run, which is left alone: it was written beside other weights than those "
            "that were loaded (a run without nextrl has written into the same folder since); a new window begins at "
            "step %d, at the rate that verl has",
            path,
            step,
        )
        return False
    _take_up(checkpoint, values, run, session, step)
    return True


def _take_up(checkpoint: Path, values: dict[str, Any], run: VerlRun, session: Session, step: int) -> None:
    """Bring copies, memory and rate to what the state says.

    Raises:
        InputError: it is damaged, or of other shards.
    """
    path = checkpoint / FOLDER / JSON
    start, moments, origin, origin_moments = (run.workers.name() for _ in range(4))
    with _undamaged(path):
        numbers = dict(values["memory"])
        began = Point(start, moments if values["moments"] else [], numbers.pop("began"))  # type: ignore[arg-type]
        memory = Memory(began, **numbers)
        copies, names = {"start": start.key}, {"start_moments": moments.key} if values["moments"] else {}
        if values["origin"] is not None:
            memory.origin = Point(origin, origin_moments, values["origin"])  # type: ignore[arg-type]
            copies["origin"], names["origin_moments"] = origin.key, origin_moments.key
    run.workers.ask("load", str(checkpoint / FOLDER / SHARDS), copies, names)
    with _undamaged(path):
        session.restore(memory, values, step)
        _bring_rate(run, session, values)


def _belongs(saved: Sequence[Fingerprint], now: Sequence[Fingerprint]) -> bool:
    """Whether the processes hold the weights that a state was written beside.

    True where that cannot be told: on another number of processes (for which there are no shards, and `load` says so),
    and of weights that are loaded in another dtype.
    """
    if len(saved) != len(now):
        return True
    return all(agrees(then, part) for then, part in zip(saved, now, strict=True))


def _bring_rate(run: VerlRun, session: Session, values: dict[str, Any]) -> None:
    """Bring the rate to what it was, where verl began optimizer or schedule at the configured one.

    verl loads each of them only if `actor.checkpoint.load_contents` names it (`optimizer`, `extra`;
    utils/checkpoint/fsdp_checkpoint_manager.py:load_checkpoint). A rate that was never changed is verl's affair.
    """
    base = float(values["base_rate"])
    if base > 0.0 and session.memory.factor != 1.0:
        run.set_base_rate(base)


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Around whatever takes a state file to be as it was written."""
    try:
        yield
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {shown(str(error))}"
        raise InputError(f"{path} is damaged ({what}): use another checkpoint") from error


def _key(held: Any) -> int:
    return int(held.key)
