"""`nextrl analyze RUN`: dominance, directions, linearity and persistence, as sentences, tables and plots."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from nextrl.checkpoints.atomic import json_text, replacing_all, writing
from nextrl.cli import values
from nextrl.cli.analysis_text import conclusion, sentences, spread_out, tables
from nextrl.cli.checkpoints import (
    AllowPickle,
    Layout,
    RunFolder,
    SkipBadCheckpoints,
    Start,
    UpdatesPerStep,
    load_run,
    say_left_out,
)
from nextrl.cli.console import AsJson, console, emit_json
from nextrl.errors import InputError, require
from nextrl.judge.analysis import Analysis
from nextrl.judge.analysis import analyze as analyse
from nextrl.judge.analysis_figures import analysis_figures
from nextrl.judge.drawing import plain_settings
from nextrl.leaps.merged_model import find_base
from nextrl.trajectory.trajectory import Trajectory

FULL_RANK = 16
ROWS = 10
"""Checkpoints in a table on the terminal."""


def analyze(
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option(help="Folder for analysis.json and the plots.", callback=values.path)
    ] = None,
    horizon: Annotated[
        int | None, typer.Option(help="h of the target deltas, in steps.", callback=values.steps)
    ] = None,
    windows: Annotated[
        str | None, typer.Option(help="Window lengths in steps, comma-separated.", callback=values.lengths)
    ] = None,
    beta1: Annotated[
        float | None,
        typer.Option(
            help="Adam's beta1, for persistence; the run's own by default, else .9.", callback=values.beta1
        ),
    ] = None,
    updates_per_step: UpdatesPerStep = None,
    plots: Annotated[
        str, typer.Option(help="png, svg, pdf or png,svg; none for analysis.json alone.")
    ] = "png",
    layout: Layout = None,
    start: Start = None,
    base: Annotated[
        Path | None,
        typer.Option(help="Base model's folder, for full-weight checkpoints.", callback=values.path),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(help=f"Rank kept of full-weight deltas; {FULL_RANK} by default.", callback=values.rank),
    ] = None,
    skip_bad_checkpoints: SkipBadCheckpoints = False,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Rank-1 and rank-k dominance, turning of directions, straightness, persistence, drift against noise.

    Example: nextrl analyze runs/grpo --out runs/grpo/analysis
    """
    lengths, formats = _lengths(windows), _formats(plots)
    if out is not None and formats:
        require("matplotlib", "plots", f"--plots {plots} (none writes analysis.json alone)")
    of_adapters = {"layout": layout, "allow-pickle": allow_pickle, "start": start}
    if base is None:
        values.refuse_given("of full-weight checkpoints (--base)", {"rank": rank})
        traj = load_run(run, layout, skip_bad_checkpoints, allow_pickle, start=start)
    else:
        values.refuse_given("of a LoRA run, and --base of full-weight checkpoints", of_adapters)
        rank = FULL_RANK if rank is None else rank
        traj = Trajectory.from_full_weights(
            run, find_base(base), rank=rank, skip_bad_checkpoints=skip_bad_checkpoints
        )
        for line in traj.skipped:
            say_left_out(line)
    result = analyse(traj, horizon=horizon, windows=lengths, beta1=beta1, updates_per_step=updates_per_step)
    said = (
        [] if as_json else [*conclusion(traj, result.beta1, result.updates), *sentences(result)]
    )  # may refuse: nothing is written yet
    if out is not None:
        save(result, out, formats)
    if as_json:
        emit_json(result.to_json())
    else:
        _say(result, said, out)


def _say(result: Analysis, said: list[str], out: Path | None) -> None:
    """The sentences and the tables, for a reader; `out` is None where nothing was written."""
    for sentence in said:
        console.print(sentence)
    shown = spread_out(result.steps, ROWS)
    for grid in tables(result, shown):
        console.print()
        console.print(grid)
    if len(shown) < len(result.steps):
        console.print(
            f"{len(shown)} of {len(result.steps)} checkpoints; all of them: --json, or analysis.json of --out DIR"
        )
    if out is not None:
        console.print(f"written to {out}", soft_wrap=True)


def save(result: Analysis, out: Path, formats: list[str]) -> None:
    """Write `analysis.json` and one file per figure and format into `out`: all of them, or none."""
    with plain_settings() if formats else nullcontext():
        figures = analysis_figures(result) if formats else {}
        drawn = [(f"{name}.{kind}", figure, kind) for name, figure in figures.items() for kind in formats]
        with replacing_all([out / "analysis.json", *(out / name for name, _, _ in drawn)]) as (facts, *plots):
            for place, (name, figure, kind) in zip(plots, drawn, strict=True):
                with writing(out / name):
                    figure.savefig(place, format=kind, dpi=130)
            with writing(out / "analysis.json"):
                facts.write_text(json_text(result.to_json()), encoding="utf-8")


def _lengths(text: str | None) -> list[int] | None:
    if text is None:
        return None
    values.lengths(text)
    return [int(part) for part in text.split(",")]


def _formats(text: str) -> list[str]:
    if text.strip() == "none":
        return []
    kinds = [part.strip() for part in text.split(",")]
    if not set(kinds) <= {"png", "svg", "pdf"}:
        raise InputError(f"--plots {text}: choose from png, svg, pdf, or none")
    return kinds
