"""What verl leaves beside its checkpoints: the log of its file logger, and the optimizer's shards.

Read from verl 0.9.1: `utils/tracking.py:FileLogger` writes a line {"step": N, "data": {name: figure}} for each step,
`utils/checkpoint/fsdp_checkpoint_manager.py` writes `actor/optim_world_size_W_rank_R.pt`. One of verl's steps is a
batch of rollouts, with an optimizer update for each mini-batch of each of `ppo_epochs` passes over it.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nextrl.checkpoints.fsdp_shards import read_shard
from nextrl.checkpoints.layouts.verl import EARLIER_METRICS, METRICS, SETTINGS
from nextrl.checkpoints.tensorfile import UNREADABLE
from nextrl.errors import InputError
from nextrl.files import MAX_UPDATES, NoSuchFile, is_step, parse_json, read_json, read_lines
from nextrl.say import say

log = logging.getLogger(__name__)

MAX_LOG, MAX_LINE = 2**28, 2**20
"""Bytes of the log, and of a line of it; verl writes some 8 kB for each step."""

LOOKED_AT = 10
"""Checkpoints, counted from the last one, that are asked for the number of updates."""


def entries(run: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's file log as {"step": N, name: figure}, in the order in which they were written.

    A resumed run logs some steps again: the later line counts. Lines that are none are left out, as is a missing file.
    One that cannot be read, or holds no line of the logger's, is named.
    """
    for name in (EARLIER_METRICS, METRICS):
        any_line = found = False
        try:
            for line in read_lines(run / name, MAX_LOG):
                any_line = True
                if (entry := _entry(line, name)) is not None:
                    found = True
                    yield entry
        except NoSuchFile:
            continue
        except InputError as error:
            say_not_used(str(error))
            continue
        if any_line and not found:
            say_not_used(f"{run / name}: holds no line of verl's file logger")


def _entry(line: bytes, where: str) -> dict[str, Any] | None:
    """What a line of the log says; None of one that is none."""
    try:
        value = parse_json(line, where) if len(line) <= MAX_LINE else None
    except InputError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("data"), dict):
        return None
    return {**value["data"], "step": value.get("step")}


@functools.cache  # the log is read for each figure anew
def say_not_used(why: str) -> None:
    """Say, once, that a trainer's log is not used; `why` names it."""
    say(log, "%s; so rewards and learning rates are not known from it", why)


def optimizer(checkpoint: Path) -> dict[str, Any]:
    """The optimizer's state in a `global_step_N`, as one of its processes saved it; empty where there is none."""
    for shard in sorted((checkpoint / "actor").glob("optim_world_size_*_rank_*.pt"))[:1]:
        try:
            state = read_shard(shard)
        except UNREADABLE:
            return {}
        return state if isinstance(state, dict) else {}
    return {}


def updates_per_step(run: Path, checkpoints: Mapping[int, Path]) -> int | None:
    """Optimizer updates in each of a run's steps; None where nothing says it.

    Adam counts its updates in its state. A step that was taken back, and one whose gradient was not finite, is not in
    that count, and a new optimizer begins it at 0: so the most that an interval had says how many a step has.

    Args:
        run: the folder of all checkpoints.
        checkpoints: step -> `global_step_N`.
    """
    counts = {0: 0.0}
    for step in sorted(checkpoints)[-LOOKED_AT:]:
        taken = _updates(optimizer(checkpoints[step]))
        if step and taken is not None:
            counts[step] = taken
    known = _per_step(counts)
    return 1 if known is None and _one_by_settings(run) else known


def _per_step(counts: Mapping[int, float]) -> int | None:
    """The most updates that a step holds by a trainer's count of them; None where the count does not rise with steps.

    Args:
        counts: step of the run -> updates that the trainer had counted there.
    """
    gaps = itertools.pairwise(sorted(counts.items()))
    most = max(((b - a) / (late - early) for (early, a), (late, b) in gaps), default=0.0)
    return math.ceil(most) if 0.5 <= most <= MAX_UPDATES else None


def _updates(state: Mapping[str, Any]) -> float | None:
    """Adam's own count of its updates."""
    moments = state.get("state")
    for entry in moments.values() if isinstance(moments, dict) else ():
        step = entry.get("step") if isinstance(entry, dict) else None
        try:
            count = float(step)  # type: ignore[arg-type]  # a tensor, or a number; anything else is no count
        except UNREADABLE:
            return None
        return count if is_step(count) else None
    return None


def _one_by_settings(run: Path) -> bool:
    """Whether `nextrl run` began this one: it tells verl to take one update a step, unless the user said otherwise."""
    try:
        settings = read_json(run / SETTINGS)
    except InputError:
        return False
    overrides = settings.get("overrides") if isinstance(settings, dict) else None
    return isinstance(overrides, list) and not any("ppo_epochs" in str(word) for word in overrides)
