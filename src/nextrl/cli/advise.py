"""`nextrl advise`: what to do with this run now."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nextrl.cli import values
from nextrl.cli.checkpoints import (
    AllowPickle,
    Layout,
    RunFolder,
    SkipBadCheckpoints,
    Start,
    UpdatesPerStep,
    load_run,
)
from nextrl.cli.console import AsJson, console, emit_json
from nextrl.cli.next_step import averaged, next_step, task_of
from nextrl.judge.advise import advise as ask
from nextrl.judge.regime import MEANING
from nextrl.leaps.leap import leap


def advise(
    run: RunFolder,
    at: Annotated[
        int | None, typer.Option(help="As if the run had ended at this checkpoint.", callback=values.step)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the advice is to average: write that adapter here.", callback=values.path),
    ] = None,
    updates_per_step: UpdatesPerStep = None,
    skip_bad_checkpoints: SkipBadCheckpoints = False,
    allow_pickle: AllowPickle = False,
    layout: Layout = None,
    start: Start = None,
    as_json: AsJson = False,
) -> None:
    """Say what to do with a run now: leap, raise or lower the learning rate, average, or go on.

    Example: nextrl advise runs/grpo
    """
    traj = load_run(run, layout, skip_bad_checkpoints, allow_pickle, at, start)
    advice = ask(traj, updates_per_step=updates_per_step)
    written = None
    if out is not None and advice.advice == "average":
        leap(traj, "lawa", horizon=averaged(traj)).save_adapter(out, task=task_of(run))
        written = str(out)
    step = next_step(advice, run, traj, at)
    if as_json:
        emit_json(advice.as_dict() | {"next": step.as_dict(), "out": written, "skipped": list(traj.skipped)})
        return
    console.print(advice.answer)
    judged = advice.judged
    regime = "unknown" if judged is None else f"{judged} ({MEANING[judged]})"
    console.print(f"Regime: {regime}; confidence: {advice.confidence}. {advice.reasons[0]}")
    if written is not None:
        console.print(f"The averaged adapter is in {written}.")
    elif out is not None:
        console.print(f"Nothing was written to {out}: the advice is not to average.")
    if written is not None:
        return
    if step.command:
        # On a line of its own, whole however narrow the terminal, so that it can be copied.
        console.print(f"Next:\n  {step.command}", soft_wrap=True)
        console.print(f"It {step.what}")
    else:
        console.print(f"Next: {step.what}")
