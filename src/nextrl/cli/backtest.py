"""`nextrl backtest`: which extrapolator, and which horizon, would have worked on this run so far."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from nextrl.cli.console import console, emit_json, err_console
from nextrl.errors import InputError
from nextrl.judge.backtest import Backtest
from nextrl.judge.backtest import backtest as run_backtest
from nextrl.trajectory.trajectory import Trajectory

FIGURES = ("cosine", "norm_ratio", "relative_error", "skill")


def backtest(
    run: Annotated[Path, typer.Argument(help="Directory of checkpoints.")],
    horizon: Annotated[
        list[int] | None, typer.Option(help="Steps ahead; repeat for several. Default: 1, 2 and 5 spacings.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Comma-separated; default: all but next-paper.")] = None,
    origins: Annotated[int, typer.Option(help="Use at most so many of the latest origins.")] = 8,
    by_type: Annotated[bool, typer.Option("--by-type", help="Also per layer type.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a picture here (png, svg or pdf).")] = None,
    skip_bad_checkpoints: Annotated[bool, typer.Option(help="Leave broken checkpoints out.")] = False,
    allow_pickle: Annotated[bool, typer.Option(help="Read adapter_model.bin too (weights_only).")] = False,
    layout: Annotated[str | None, typer.Option(help="Reader, where the automatic choice is wrong.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of methods that draw random numbers.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Score every extrapolator on the run's own later checkpoints and recommend one, or none.

    Example: nextrl backtest runs/grpo --horizon 50 --methods factors,secant,next
    """
    if origins < 1:
        raise InputError(f"--origins must be at least 1, not {origins}")
    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {plot}: the name must end in .png, .svg or .pdf")
    traj = Trajectory.load(
        run, layout=layout, skip_bad_checkpoints=skip_bad_checkpoints, allow_pickle=allow_pickle
    )
    for line in traj.skipped:
        err_console.print(f"left out: {line}", markup=False, highlight=False, soft_wrap=True)
    result = run_backtest(traj, horizon, methods, max_origins=origins, seed=seed)
    if plot is not None:
        result.plot(plot)
    if json:
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
