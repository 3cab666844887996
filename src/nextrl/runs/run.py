"""`nextrl run` as a function: one config -> one folder, which can be killed at any moment and taken up again.

    out/config.yaml     the config with every key; the folder is this run's from then on
    out/trajectory/     checkpoint-N as TRL writes them: the trajectory, and what a resume needs
    out/leaps/          the adapters that leaps by a named method left
    out/stopped/        a checkpoint between two saves, of a run that was told to stop
    out/final/          the adapter at the end
    out/result.json, out/report.html    written last: a folder with both is finished

Each file is written whole or not at all. A lock keeps a second process out of the folder (`engines.folder_lock`).
Under a launcher (`accelerate launch`) every process trains, and the first one alone reads and writes the folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nextrl.checkpoints.atomic import write_bytes, writing
from nextrl.engines import algorithms, named_optimizers
from nextrl.engines.adapter_fits import adapter_without_weights
from nextrl.engines.folder_lock import claimed, locked
from nextrl.engines.ranks import Ranks, launched
from nextrl.errors import InputError
from nextrl.files import regular_file, visible
from nextrl.judge.decision_file import DECISIONS
from nextrl.runs import inputs
from nextrl.runs.arm import ArmRecord
from nextrl.runs.config import RunConfig
from nextrl.runs.config_file import load
from nextrl.runs.layout import CONFIG, FINAL, INPUTS, LEAPS, REPORT, RESULT, STOPPED, TRAJECTORY
from nextrl.runs.loop import RunFolder, train
from nextrl.runs.report import write_report
from nextrl.runs.result import Result, read_result, write_result
from nextrl.runs.resume import Checkpoint, last_checkpoint
from nextrl.runs.summary import summarise_run
from nextrl.tasks import base, bases
from nextrl.tasks.base import Split
from nextrl.tasks.evaluate import check_context
from nextrl.trajectory.trajectory import Trajectory


@dataclass(frozen=True)
class Outcome:
    """How a call of `run` ended.

    Attributes:
        step: where the run stands.
        result: what `result.json` holds, None for a run that was stopped before its end.
        trained: False where the folder was finished before the call.
    """

    step: int
    result: Result | None
    trained: bool = True


def _quiet(line: str) -> None:
    del line


def run(
    config: RunConfig,
    *,
    stop_asked: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = _quiet,
    progress: Callable[[str, int], None] | None = None,
) -> Outcome:
    """Train what the config says in its `output_dir`, or go on with what is there.

    Args:
        stop_asked: asked after every step; True saves a checkpoint and stops.
        say: told one line about whatever was found in the folder.
        progress: called with the arm's name and its step after every step.

    Raises:
        InputError: the model, the task or the folder cannot be used, the folder holds a run of another config, or
            another process is using it. Nothing was written then.
    """
    ranks = launched()
    if not ranks.leader:
        return _follow(config, ranks, stop_asked)
    out = config.output_dir
    with contextlib.ExitStack() as stack:
        begun = _check_folder(out, config)
        if begun:
            stack.enter_context(locked(out))
            result = _finished(out, config)
            if result is not None:
                ranks.tell(None)
                return Outcome(config.train.steps, result, trained=False)
        _check_surroundings(config)
        loaded = bases.load(config.model, config.task)
        if config.lora is not None:
            adapter_without_weights(loaded[0], config.lora, config.model)
        _check_context(config, loaded)
        made_of = inputs.digests(base.get(config.task), config.task, config.model)
        if begun:
            inputs.check(out, made_of)
        else:
            inputs.check_repeatable(config.task, made_of)
            stack.enter_context(_claimed(out, config, made_of))
        found = _checkpoint(config, say)
        if stop_asked():
            ranks.tell(None)
            return Outcome(found.step if found else 0, None)
        ranks.tell((found, made_of))
        asked: list[bool] = []

        def stop() -> bool:
            asked.append(ranks.any(stop_asked()))
            return asked[-1]

        record, step = _train(config, found, loaded, stop, progress)
        if step < config.train.steps:
            if not any(asked):
                raise InputError(
                    f"the trainer ended by itself after step {step} of {config.train.steps}: see its log"
                )
            return Outcome(step, None)
        return Outcome(step, _finish(config, record))


def _follow(config: RunConfig, ranks: Ranks, stop_asked: Callable[[], bool]) -> Outcome:
    """What a process beside the first does: train along, and leave the folder alone."""
    told = ranks.tell(None)
    if told is None:
        return Outcome(0, None, trained=False)
    if inputs.digests(base.get(config.task), config.task, config.model) != told[1]:
        raise InputError(
            f"task {config.task}: its examples are others in this process than in the first: {inputs.HOW_TO_REPEAT}"
        )
    loaded = bases.load(config.model, config.task)
    _, step = _train(config, told[0], loaded, lambda: ranks.any(stop_asked()), None)
    return Outcome(step, None)


def _check_folder(out: Path, config: RunConfig) -> bool:
    """Whether the folder holds this run already.

    Raises:
        InputError: it holds something else.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: choose another output_dir")
    try:
        inside = visible(out) if out.is_dir() else set()
    except OSError as error:
        raise InputError(f"{out} cannot be read ({error.strerror}): choose another output_dir") from error
    if CONFIG not in inside:
        begun = {INPUTS} if inputs.kept(out) else set()  # and cut off before its config was written
        if inside - begun:
            raise InputError(f"{out} is not empty and holds no run: choose another output_dir")
        return False
    keys = config.differences(load(out / CONFIG))
    if keys:
        raise InputError(
            f"{out} holds a run of another config, different in {', '.join(keys)}: choose another output_dir, or use "
            f"{out / CONFIG}"
        )
    # Written at the end: what is in their way is said before anything is trained.
    for name in (RESULT, REPORT):
        if (out / name).exists():
            regular_file(out / name)
    for name in (TRAJECTORY, FINAL, LEAPS, STOPPED):
        if (out / name).exists() and not (out / name).is_dir():
            raise InputError(f"{out / name}: is not the folder that a run has there; remove it")
    return True


def _check_unchanged(config: RunConfig, trained: Mapping[str, Any], what: Path) -> None:
    """See that what a run left was trained by this config: the one in its folder may have been edited since.

    Args:
        trained: the config as that file holds it; nothing of one of an earlier version.

    Raises:
        InputError: it was trained by another one.
    """
    try:
        theirs = RunConfig.model_validate(
            {key: trained[key] for key in RunConfig.model_fields if key in trained}
        )
    except ValidationError:
        return  # of a version with other keys, whose config.yaml this one has read all the same
    keys = config.differences(theirs) if trained else []
    if keys:
        raise InputError(
            f"{config.output_dir / CONFIG}: was changed since {what} was written, in {', '.join(keys)}: change that "
            "back, or choose another output_dir"
        )


def _finished(out: Path, config: RunConfig) -> Result | None:
    """The result of a finished run; its page is written anew where only that is missing."""
    if not (out / RESULT).is_file():
        return None
    result = read_result(out / RESULT)
    if "run" not in result.arms:
        raise InputError(
            f"{out / RESULT}: holds no arm named run; remove it, and the run's end is evaluated again"
        )
    _check_unchanged(config, result.config, out / RESULT)
    if not (out / REPORT).is_file():
        write_report(result, out)
    return result


def _check_surroundings(config: RunConfig) -> None:
    """What depends on this machine and the data, before anything is written."""
    for name in config.report_to:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"report_to: {name} is not installed; pip install {name}, or leave it out")
    task = base.get(config.task)
    rows = {split: len(task.examples(split)) for split in ("train", "validation", "test")}
    batch = config.train.prompts_per_step * algorithms.get(config.algorithm).steps_per_generation
    if rows["train"] < batch:
        raise InputError(
            f"task {config.task} has {rows['train']} training prompts, and {config.algorithm} samples for {batch} at a "
            f"time: lower train.prompts_per_step ({config.train.prompts_per_step})"
        )
    needed = {"test": "to measure accuracy on"}
    if config.arm().leap and config.alpha() is None:
        needed["validation"] = "to test leaps on"
    for split, purpose in needed.items():
        if rows[split] < 2:
            raise InputError(f"task {config.task} has {rows[split]} {split} prompts, 2 are needed {purpose}")


def _check_context(config: RunConfig, loaded: tuple[Any, Any]) -> None:
    """Whether the longest prompt and its completion fit into the model, before anything is written.

    Raises:
        InputError: they do not.
    """
    task = base.get(config.task)
    sampled: list[Split] = ["train", "validation"] if config.arm().leap else ["train"]
    examples = [example for split in sampled for example in task.examples(split)]
    prompts = [example.prompt for example in (*examples, *task.examples("test")[: config.eval.prompts])]
    check_context(*loaded, prompts, config.train.max_completion_length or task.max_completion_length)


@contextlib.contextmanager
def _claimed(out: Path, config: RunConfig, made_of: dict[str, str]) -> Iterator[None]:
    """Make the folder this run's, under its lock: the config comes last, so that no run is without its digests."""
    with claimed(out):
        if _check_folder(out, config):  # another process may have claimed it meanwhile
            inputs.check(out, made_of)
        else:
            inputs.keep(out, made_of)
            write_bytes(out / CONFIG, config.as_yaml().encode())
        yield


def _checkpoint(config: RunConfig, say: Callable[[str], None]) -> Checkpoint | None:
    out, k, last = config.output_dir, config.train.save_every, config.train.steps
    for name in (CONFIG, INPUTS, RESULT, REPORT, f"{TRAJECTORY}/{DECISIONS}"):
        half = out / name
        for temporary in half.parent.glob(
            f".{half.name}.*"
        ):  # of a killed process: `atomic` writes there first
            temporary.unlink()

    def check(whole: Checkpoint) -> None:
        _check_unchanged(config, whole.config, whole.folder)

    found = last_checkpoint(out / TRAJECTORY, out / STOPPED, lambda s: s % k == 0 or s == last, say, check)
    optimizer = named_optimizers.get(config.train.optimizer)
    if found and found.step < last and optimizer.cannot_resume:
        raise InputError(
            f"{out}: a run with train.optimizer: {optimizer.name} cannot be gone on with ({optimizer.cannot_resume}): "
            "choose another output_dir"
        )
    if found:
        say(f"going on from step {found.step} of {last}")
    elif (out / TRAJECTORY).is_dir():
        say("no whole checkpoint was left: starting again from step 0")
    return found


def _train(
    config: RunConfig,
    found: Checkpoint | None,
    loaded: tuple[Any, Any],
    stop_asked: Callable[[], bool],
    progress: Callable[[str, int], None] | None,
) -> tuple[ArmRecord, int]:
    out = config.output_dir
    if found and found.step == config.train.steps:
        # Killed between its last checkpoint, before which final/ was written, and its result.
        return found.record, found.step
    with writing(out, "free some space, and the same command goes on from the last whole checkpoint"):
        folder = RunFolder(out, found, stop_asked, config.report_to, config.as_dict())
        return train(config.arm(), folder, loaded, progress)


def _finish(config: RunConfig, record: ArmRecord) -> Result:
    out = config.output_dir
    traj = None if config.lora is None else Trajectory.load(out / TRAJECTORY)
    result = summarise_run(record, config.arm(), config.as_dict(), traj)
    write_result(out / RESULT, result)
    write_report(result, out)
    return result
