"""`nextrl backtest`: which extrapolator, and which horizon, would have worked on this run so far."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from nextrl.cli import values
from nextrl.cli.checkpoints import AllowPickle, Layout, RunFolder, Seed, SkipBadCheckpoints, load_run
from nextrl.cli.console import AsJson, console, emit_json
from nextrl.errors import InputError, require
from nextrl.judge.backtest import Backtest
from nextrl.judge.backtest import backtest as run_backtest

FIGURES = ("cosine", "norm_ratio", "relative_error", "skill")


def backtest(
    run: RunFolder,
    horizon: Annotated[
        list[int] | None,
        typer.Option(
            help="Steps ahead; repeat for several. Default: 1, 2 and 5 spacings.", callback=values.every_step
        ),
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Comma-separated; default: all but next-paper.")] = None,
    origins: Annotated[int, typer.Option(help="Use at most so many of the latest origins.")] = 8,
    by_type: Annotated[bool, typer.Option("--by-type", help="Also per layer type.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture here (png, svg or pdf).", callback=values.path)
    ] = None,
    skip_bad_checkpoints: SkipBadCheckpoints = False,
    allow_pickle: AllowPickle = False,
    layout: Layout = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Score every extrapolator on the run's own later checkpoints and recommend one, or none.

    Example: nextrl backtest runs/grpo --horizon 50 --methods factors,secant,next
    """
    if origins < 1:
        raise InputError(f"--origins must be at least 1, not {origins}")
    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {plot}: the name must end in .png, .svg or .pdf")
    if plot is not None:
        require("matplotlib", "plots", "--plot")
    traj = load_run(run, layout, skip_bad_checkpoints, allow_pickle)
    result = run_backtest(traj, horizon, methods, max_origins=origins, seed=seed)
    if plot is not None:
        result.plot(plot)
    if as_json:
        emit_json(result.as_dict() | ({"by_type": _by_type(result)} if by_type else {}))
        return
    console.print(_table(result))
    if by_type:
        console.print(_type_table(result))
    console.print(f"recommended: {result.recommended}. {result.reason}")


def _by_type(result: Backtest) -> dict[str, dict[str, float]]:
    return {n: {kind: o.skill for kind, o in s.by_type.items()} for n, s in result.methods.items()}


def _table(result: Backtest) -> Table:
    origins = ", ".join(map(str, result.origins))
    table = Table(title=f"{result.horizon} steps ahead, from {origins}")
    for column in ("method", "cosine", "norm ratio", "relative error", "skill", "best alpha"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, score in sorted(result.methods.items(), key=lambda item: -item[1].mean("skill")):
        figures = (f"{score.mean(f):.2f} ± {score.spread(f):.2f}" for f in FIGURES)
        style = "bold" if name == result.recommended else None
        table.add_row(name, *figures, f"{score.best_alpha:.2f}", style=style)
    return table


def _type_table(result: Backtest) -> Table:
    table = Table(title="skill by layer type")
    kinds = sorted(next(iter(result.methods.values())).by_type)
    for column in ("method", *kinds):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, score in result.methods.items():
        table.add_row(name, *(f"{score.by_type[kind].skill:.2f}" for kind in kinds))
    return table
