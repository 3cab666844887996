"""verl: `RUN/global_step_N/actor/lora_adapter/`, as older versions save it and as today's model merger makes it.

Read from verl 0.9.1 (`utils/checkpoint/fsdp_checkpoint_manager.py`, `trainer/ppo/ray_trainer.py`,
`model_merger/base_model_merger.py`). There a save holds FSDP shards (`model_world_size_W_rank_R.pt`) and
`lora_train_meta.json`; `python -m verl.model_merger merge` writes `TARGET_DIR/lora_adapter/`. The merger writes
lora_alpha 0 where it found no metadata, and no use_rslora at all, so the metadata beside the shards wins.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nextrl.checkpoints.adapter import CONFIG, weights_path
from nextrl.checkpoints.dense import no_adapter
from nextrl.checkpoints.fsdp_shards import newer_shards
from nextrl.checkpoints.layouts.listing import numbered
from nextrl.checkpoints.run import Layout, Located, Problem
from nextrl.errors import InputError, shown
from nextrl.files import MAX_CONFIG, MAX_DIGITS, MAX_STEP, NoSuchFile, is_number, read_json, read_text

FOLDER = re.compile(r"^global_step_(\d+)$")
TRACKER = "latest_checkpointed_iteration.txt"
"""In a run's folder: the step of the last whole checkpoint, which verl writes after all its other files."""

METRICS, EARLIER_METRICS = "metrics.jsonl", "metrics-before.jsonl"
"""In a run's folder: what verl's file logger writes under `nextrl run`, and what it wrote before a resume."""

SETTINGS = "nextrl_run.json"
"""In the folder of a verl run that `nextrl run` began: the settings that may not change when it is resumed."""

ADAPTER = "lora_adapter"
META = "lora_train_meta.json"
_MERGER = "python -m verl.model_merger merge"


def find(run: Path) -> Layout:
    """Checkpoints of `run` in this layout; bare shards are a problem that names the command."""
    folders, problems = numbered(run, FOLDER)
    located = []
    for step, folder in folders:
        adapter = _adapter(folder)
        if adapter is not None:
            located.append(Located(step, adapter, _overrides(folder, adapter)))
            problems += _overtaken(step, folder / "actor", adapter)
        else:
            problems.append(_why_not(step, folder))
    return Layout("verl", tuple(located), (*problems, *_abandoned(run, located)))


def _overtaken(step: int, actor: Path, adapter: Path) -> list[Problem]:
    """An adapter that was written out of shards which verl has written anew since: it is of an earlier training."""
    if not (actor / META).is_file() or not newer_shards(actor, weights_path(adapter)):
        return []
    text = (
        f"{adapter}: older than the FSDP shards in {actor}, so that it may be of an earlier training in this folder; "
        f"run: {_write_out(actor.parent.parent)}"
    )
    return [Problem(adapter, text, step)]


def _write_out(run: Path) -> str:
    return shlex.join(["python", "-m", "nextrl.checkpoints.verl_adapter", str(run)])


def tracked(run: Path) -> int | None:
    """The step of the last checkpoint that verl wrote into `run` whole; None without its tracker file.

    Raises:
        InputError: the file is there and names no step.
    """
    path = run / TRACKER
    try:
        text = read_text(path).strip()
    except NoSuchFile:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS and int(text) <= MAX_STEP):
        raise InputError(
            f"{path}: holds {shown(text)} and no step, so which checkpoints the run has left behind is unknown; write "
            "the last whole checkpoint's number into it, or remove it if the run was never resumed at an older step"
        )
    return int(text)


def _abandoned(run: Path, located: Sequence[Located]) -> list[Problem]:
    """Checkpoints of a branch that the run has left: who resumes at an older step leaves those of later ones behind.

    The tracker names the last step that was saved. A later one that was written after it is on its way: verl writes the
    tracker last.
    """
    try:
        last = tracked(run) if located else None
    except InputError as error:
        return [Problem(run / TRACKER, str(error))]
    if last is None:
        return []
    return [
        Problem(
            run / f"global_step_{where.step}",
            f"{run / f'global_step_{where.step}'}: {TRACKER} names step {last} as the last one saved, and this was "
            "written before that: the run was resumed at an older step and has left it behind; move it away "
            "(--skip-bad-checkpoints leaves it out)",
            where.step,
        )
        for where in located
        if where.step > last and not _written_after(run, where)
    ]


def _written_after(run: Path, where: Located) -> bool:
    """Whether verl wrote a checkpoint after its tracker; what a merger has put into it since says nothing of that."""
    folder = run / f"global_step_{where.step}"
    own = [*folder.glob("data.pt"), *folder.glob("actor/*.pt")] or list(where.folder.glob("adapter_*"))
    try:
        return max(path.stat().st_mtime_ns for path in own) > (run / TRACKER).stat().st_mtime_ns
    except (OSError, ValueError):  # it goes away while it is looked at, or holds nothing
        return True


def step_folder(adapter: Path) -> Path | None:
    """The `global_step_N` that an adapter lies in; None where it lies in none."""
    return next((place for place in list(adapter.parents)[:2] if FOLDER.fullmatch(place.name)), None)


def _adapter(folder: Path) -> Path | None:
    """actor/lora_adapter first, then wherever beside it the merger was told to write; a critic is no policy."""
    usual = [folder / "actor" / ADAPTER, folder / ADAPTER]
    merged = sorted(path for path in folder.glob(f"*/{ADAPTER}") if not path.parent.name.startswith("critic"))
    return next((path for path in [*usual, *merged] if path.is_dir()), None)


def _overrides(folder: Path, adapter: Path) -> dict[str, Any]:
    """lora_alpha from `lora_train_meta.json`, only where the adapter's own is missing or 0."""
    config = _json(adapter / CONFIG)
    if config.get("lora_alpha"):
        return {}
    for place in (folder / "actor", folder, adapter.parent):
        alpha = _json(place / META).get("lora_alpha")
        if is_number(alpha) and alpha > 0:
            return {"lora_alpha": alpha}
    return {}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path, MAX_CONFIG)
    except InputError:
        return {}  # whoever needs the file opens it again and reports it
    return value if isinstance(value, dict) else {}


def _why_not(step: int, folder: Path) -> Problem:
    """What a checkpoint without an adapter holds, and what makes one of it."""
    actor = folder / "actor" if (folder / "actor").is_dir() else folder
    places = shlex.join(["--local_dir", str(actor), "--target_dir", str(folder / "merged")])
    shards = any(actor.glob("model_world_size_*_rank_*.pt"))
    if shards and (actor / META).is_file():
        text = f"{actor}: FSDP shards of an adapter, which is not written out yet; run: {_write_out(folder.parent)}"
    elif why := no_adapter(folder):
        text = why
    elif shards:
        text = (
            f"{actor}: FSDP shards without {META}, so that verl trained all weights or is an old one; run: "
            f"{_MERGER} --backend fsdp {places}"
        )
    elif (actor / "dist_ckpt").is_dir():
        text = (
            f"{actor}: Megatron shards without a merged adapter; run: {_MERGER} --backend megatron {places}"
        )
    else:
        return Problem(
            folder,
            f"{folder}: holds neither lora_adapter nor a whole model nor FSDP shards; remove or restore it",
            step,
        )
    return Problem(actor, text, step)
