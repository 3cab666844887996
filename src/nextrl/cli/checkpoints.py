"""The options by which a verb is told which checkpoints to read, and the loading, once for all verbs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nextrl.checkpoints import READERS, detect
from nextrl.checkpoints.run import no_checkpoint
from nextrl.cli import values
from nextrl.cli.console import err_console
from nextrl.errors import one_line
from nextrl.registry import either
from nextrl.scalars import MAX_SEED
from nextrl.trajectory.trajectory import Trajectory
from nextrl.trajectory.unsure_start import doubt_of

RunFolder = Annotated[
    Path, typer.Argument(help="The run's directory, or a JSON file {step: folder}.", callback=values.path)
]
Layout = Annotated[str | None, typer.Option(help=f"{either(READERS)}, where the automatic choice is wrong.")]
SkipBadCheckpoints = Annotated[
    bool, typer.Option("--skip-bad-checkpoints", help="Leave broken checkpoints out.")
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read adapter_model.bin too (weights_only).")
]
UpdatesPerStep = Annotated[
    int | None,
    typer.Option(
        help="Optimizer updates in one step, for persistence; as the run's files say by default.",
        callback=values.updates,
    ),
]
Start = Annotated[
    int | None,
    typer.Option(
        help="Step at which this stretch began, 0 the base model; as the run's files say by default.",
        callback=values.start,
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of methods that draw random numbers.")]


def load_run(
    run: Path,
    layout: str | None,
    skip_bad_checkpoints: bool,
    allow_pickle: bool,
    upto: int | None = None,
    start: int | None = None,
) -> Trajectory:
    """The run's trajectory; what was left out, and what is odd about its start, is said on stderr, a line each.

    Args:
        run, layout, skip_bad_checkpoints, allow_pickle, start: as `Trajectory.load` takes them.
        upto: read nothing later than this checkpoint, so that nothing later can be wrong.

    Raises:
        InputError: as `Trajectory.load`, or there is no checkpoint of step `upto`, or none that can be read.
    """
    traj = Trajectory.load(
        run,
        layout=layout,
        steps=None if upto is None else _steps_upto(run, layout, upto),
        skip_bad_checkpoints=skip_bad_checkpoints,
        allow_pickle=allow_pickle,
        start=start,
    )
    for line in traj.skipped:
        say_left_out(line)
    if doubt := doubt_of(traj):
        err_console.print(one_line(doubt), soft_wrap=True)
    if upto is not None and upto not in traj.steps:  # it was broken, and left out
        raise no_checkpoint(upto, traj.steps, run)
    return traj


def _steps_upto(run: Path, layout: str | None, last: int) -> list[int]:
    steps = [where.step for where in detect(run, layout).located]
    if last not in steps:
        raise no_checkpoint(last, steps, run)
    return [step for step in steps if step <= last]


def say_left_out(reason: str) -> None:
    """One line on stderr, whole on any terminal."""
    err_console.print(f"left out: {one_line(reason)}", soft_wrap=True)
