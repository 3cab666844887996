"""`nextrl backtest`: which extrapolator, and which horizon, would have worked on this run so far."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from nextrl.cli import values
from nextrl.cli.checkpoints import (
    AllowPickle,
    Layout,
    RunFolder,
    Seed,
    SkipBadCheckpoints,
    Start,
    UpdatesPerStep,
    load_run,
)
from nextrl.cli.console import AsJson, console, emit_json, err_console
from nextrl.cli.method_params import Params, methods_with
from nextrl.errors import InputError, require
from nextrl.extrapolators.base import METHODS, tags_of
from nextrl.judge.advice import Advice
from nextrl.judge.advise import advise
from nextrl.judge.backtest import Backtest
from nextrl.judge.backtest import backtest as run_backtest
from nextrl.judge.backtest_scores import FIGURES, NONE
from nextrl.trajectory.trajectory import Trajectory

# Of this package's own methods: a plugin's tags would have to be loaded for a line of help.
_SLOW = [name for name in METHODS if tags_of(METHODS.get(name)).slow]
_DEFAULT = f"all but {', '.join(_SLOW)}" if _SLOW else "all"
HEADS = ("cosine", "norm\nratio", "relative\nerror", "skill", "best\nalpha")


def backtest(
    run: RunFolder,
    horizon: Annotated[
        list[int] | None,
        typer.Option(
            help="Steps ahead; repeat for several. Default: 1, 2 and 5 spacings.", callback=values.every_step
        ),
    ] = None,
    methods: Annotated[str | None, typer.Option(help=f"Comma-separated; default: {_DEFAULT}.")] = None,
    param: Params = None,
    origins: Annotated[int, typer.Option(help="Use at most so many of the latest origins.")] = 8,
    by_type: Annotated[bool, typer.Option("--by-type", help="Also per layer type.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture here (png, svg or pdf).", callback=values.path)
    ] = None,
    updates_per_step: UpdatesPerStep = None,
    skip_bad_checkpoints: SkipBadCheckpoints = False,
    allow_pickle: AllowPickle = False,
    layout: Layout = None,
    start: Start = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Score every extrapolator on the run's own later checkpoints and recommend one, or none.

    The recommendation is the one of `nextrl advise`. Methods that train a network are scored, and recommended only
    where you name them: three origins are too few to set them above the others.

    Example: nextrl backtest runs/grpo --horizon 50 --methods factors,secant,next
    """
    if origins < 1:
        raise InputError(f"--origins must be at least 1, not {origins}")
    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {plot}: the name must end in .png, .svg or .pdf")
    if plot is not None:
        require("matplotlib", "plots", "--plot")
    chosen = methods_with(methods, param)
    traj = load_run(run, layout, skip_bad_checkpoints, allow_pickle, start=start)
    horizon = _on_grid(traj, horizon)
    result = run_backtest(
        traj, horizon, chosen, max_origins=origins, seed=seed, updates_per_step=updates_per_step
    )
    if plot is not None:
        result.plot(plot)
    advice = _advice(traj, result, updates_per_step)
    recommended = NONE if isinstance(advice, InputError) else advice.recommended
    answer = f"No leap: {advice}" if isinstance(advice, InputError) else advice.answer
    if as_json:
        facts = result.as_dict() | {"recommended": recommended, "reason": answer}
        emit_json(facts | ({"by_type": _by_type(result)} if by_type else {}))
        return
    console.print(_table(result, recommended))
    for name, why in result.horizons[result.horizon].skipped.items():
        console.print(f"{name} is not scored: {why}", style="yellow")
    if by_type:
        console.print(_type_table(result))
    among = "" if methods is None else ", among the methods named"
    console.print(f"recommended: {recommended}{among}. {answer}")


def _advice(traj: Trajectory, tested: Backtest, updates_per_step: int | None) -> Advice | InputError:
    """What the one recommender makes of these scores, or why it has nothing to say of the run."""
    try:
        return advise(traj, tested, updates_per_step=updates_per_step)
    except InputError as error:
        return error


def _on_grid(traj: Trajectory, horizon: list[int] | None) -> list[int] | None:
    """The horizons that are measured, which are whole numbers of spacings; what is rounded is said.

    Raises:
        InputError: one is less than half of the way between two checkpoints.
    """
    near = []
    for h in horizon or []:
        # A half goes down, as the backtest takes the earlier checkpoint.
        spacings = math.ceil(h / traj.spacing - 0.5)
        if 2 * h < traj.spacing:
            raise InputError(
                f"--horizon {h}: checkpoints are {traj.spacing} steps apart; give a multiple of {traj.spacing}"
            )
        near.append(max(1, spacings) * traj.spacing)
        if near[-1] != h:
            err_console.print(
                f"--horizon {h}: checkpoints are {traj.spacing} steps apart, so {near[-1]} steps are measured",
                soft_wrap=True,
            )
    return None if horizon is None else list(dict.fromkeys(near))


def _by_type(result: Backtest) -> dict[str, dict[str, float]]:
    return {n: {kind: o.skill for kind, o in s.by_type.items()} for n, s in result.methods.items()}


def _table(result: Backtest, recommended: str) -> Table:
    """Means and spreads, one line a method; the name is never cut, since it is what one types."""
    origins = ", ".join(map(str, result.origins))
    single = len(result.origins) == 1
    over = "one origin, so that there is no spread" if single else "mean ± spread over them"
    title = f"{result.horizon} steps ahead, from {origins}; {over}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for head in HEADS:
        table.add_column(head, justify="right", no_wrap=True)
    for name, score in sorted(result.methods.items(), key=lambda item: -item[1].mean("skill")):
        figures = (score.shown(f) for f in FIGURES)
        style = "bold" if name == recommended else None
        table.add_row(name, *figures, f"{score.best_alpha:.2f}", style=style)
    return table


def _type_table(result: Backtest) -> Table:
    table = Table(title="skill by layer type", title_justify="left", box=None, pad_edge=False)
    kinds = sorted(next(iter(result.methods.values())).by_type)
    table.add_column("method", no_wrap=True)
    for kind in kinds:
        table.add_column(kind, justify="right", overflow="fold")
    for name, score in result.methods.items():
        table.add_row(name, *(f"{score.by_type[kind].skill:.2f}" for kind in kinds))
    return table
