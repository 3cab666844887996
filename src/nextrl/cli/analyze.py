"""`nextrl analyze RUN`: dominance, directions, linearity and persistence, as tables and plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from nextrl.checkpoints.atomic import replacing, write_json
from nextrl.cli import values
from nextrl.cli.checkpoints import AllowPickle, Layout, RunFolder, SkipBadCheckpoints, load_run
from nextrl.cli.console import AsJson, console, emit_json
from nextrl.errors import InputError, require
from nextrl.judge.analysis import Analysis
from nextrl.judge.analysis import analyze as analyse
from nextrl.judge.analysis_figures import analysis_figures
from nextrl.judge.regime import MEANING, even_gram, mean_excess, recent_windows, regime_of
from nextrl.leaps.merged_model import find_base
from nextrl.trajectory.trajectory import Trajectory

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
    plots: Annotated[
        str, typer.Option(help="png, svg, pdf or png,svg; none for analysis.json alone.")
    ] = "png",
    layout: Layout = None,
    base: Annotated[
        Path | None,
        typer.Option(help="Base model's folder, for full-weight checkpoints.", callback=values.path),
    ] = None,
    rank: Annotated[int, typer.Option(help="Rank kept of full-weight deltas.", callback=values.rank)] = 16,
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
    traj = (
        Trajectory.from_full_weights(run, find_base(base), rank=rank)
        if base is not None
        else load_run(run, layout, skip_bad_checkpoints, allow_pickle)
    )
    result = analyse(traj, horizon=horizon, windows=lengths, beta1=beta1)
    said = (
        [] if as_json else [*conclusion(traj, result.beta1), *sentences(result)]
    )  # may refuse: nothing is written yet
    if out is not None:
        save(result, out, formats)
    if as_json:
        emit_json(result.to_json())
        return
    for sentence in said:
        console.print(sentence, highlight=False)
    shown = spread_out(result.steps, ROWS)
    for grid in tables(result, shown):
        console.print()
        console.print(grid)
    if len(shown) < len(result.steps):
        console.print(
            f"{len(shown)} of {len(result.steps)} checkpoints; all of them: --json, or analysis.json of --out DIR",
            highlight=False,
        )
    if out is not None:
        console.print(f"written to {out}", highlight=False, soft_wrap=True)


def save(result: Analysis, out: Path, formats: list[str]) -> None:
    """Write `analysis.json` and one file per figure and format into `out`, each whole or not at all."""
    write_json(out / "analysis.json", result.to_json())
    if not formats:
        return
    for name, figure in analysis_figures(result).items():
        for kind in formats:
            with replacing(out / f"{name}.{kind}") as temporary:
                figure.savefig(temporary, format=kind, dpi=130)


def tables(result: Analysis, steps: Sequence[int]) -> list[Table]:
    """One row for each of these checkpoints: energy shares, then directions; two, so that each fits 80 columns."""
    shares: dict[str, Mapping[int, float]] = {
        f"{kind}\nrank {k}": result.energy_share[kind][k]
        for kind in ("global", "local", "target")
        for k in (1, 4)
    }
    directions: dict[str, Mapping[int, float]] = {
        "u1\nprev.": result.mean_cosine("global", 0),
        "v1\nprev.": result.mean_cosine("global", 1),
        **{f"pers.\n{window}": row for window, row in result.persistence.items()},
        "pre-\ndict.": result.predictability,
    }
    return [
        _grid("Share of energy in the leading directions of each delta", shares, steps),
        _grid("Directions: cosines with the checkpoint, or window, before", directions, steps),
    ]


def _grid(title: str, columns: dict[str, Mapping[int, float]], steps: Sequence[int]) -> Table:
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in ("step", *columns):
        grid.add_column(name, justify="right")
    for step in steps:
        grid.add_row(str(step), *[_cell(row.get(step)) for row in columns.values()])
    return grid


def sentences(result: Analysis) -> list[str]:
    """The scalars, each in a sentence."""
    lines = [
        f"A line explains R² = {result.line.r2:.3f} of the coefficient along the first direction, "
        f"which holds {result.line.share:.0%} of the path's energy."
    ]
    if result.drift is not None:
        d = result.drift
        lines.append(f"Of a window of h steps, drift is {d.mu2:.3g} h² and noise {d.s2:.3g} h: {d.in_words}.")
    for window, row in result.excess.items():
        if row:
            last = max(row)
            lines.append(
                f"Windows of {window} steps at {last}: persistence {result.persistence[window][last]:.2f}, "
                f"excess over Adam's memory {row[last]:.2f}."
            )
    if result.noisy:
        worst = max(result.noisy, key=lambda name: result.noisy[name])
        lines.append(
            f"Warning: storage rounding reaches {result.noisy[worst]:.0%} of sigma_1 in {worst} and is "
            f"above 10% in {len(result.noisy)} modules; save checkpoints in float32, "
            "or compare checkpoints further apart."
        )
    return lines


def conclusion(traj: Trajectory, used_beta1: float) -> list[str]:
    """The regime at the run's end, measured as `nextrl advise` does; nothing where the run is too short to show it."""
    windows = recent_windows(even_gram(traj), traj.spacing, used_beta1)
    if not windows:
        return []
    mean = mean_excess(windows)
    regime = regime_of(mean)
    return [
        f"{regime.capitalize()}: {MEANING[regime]} (mean excess {mean:.2f} at the end). `nextrl advise` says what to "
        "do about it."
    ]


def spread_out(steps: Sequence[int], count: int) -> list[int]:
    """At most so many of the steps, evenly spread, the first and the last among them."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def _cell(x: float | None) -> str:
    return "" if x is None or math.isnan(x) else f"{x:.2f}"


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
