"""`nextrl demo`: the main job on the embedded default, end to end."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from nextrl.cli import values
from nextrl.cli.console import AsJson, TrainingProgress, console, emit_json, err_console
from nextrl.engines import named_optimizers
from nextrl.errors import needs
from nextrl.runs.report import write_report
from nextrl.runs.result import AccuracyAfter, Result, Saved
from nextrl.scalars import MAX_SEED

if TYPE_CHECKING:
    from nextrl.runs.demo import Plan


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for everything the demo writes.", callback=values.path)
    ] = Path("demo-out"),
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seeds weights, prompts and rollouts.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer and shorter arms, in about two minutes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a tiny model with GRPO under auto, compare with every control and with leaps, and judge.

    Example: nextrl demo --out demo-out --seed 0
    """
    with needs("trl", "nextrl demo"):
        from nextrl.runs import demo as job
    what = job.plan(seed, quick)
    for arm in what.arms:
        named_optimizers.get(arm.train.optimizer).check_installed()
    job.claim(out, what)
    # A job started in the background inherits an ignored SIGINT; Ctrl-C must stop this one all the same.
    # SIGTERM stops it the same way, or its workers would outlive it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = _watched(out, what, job.run, bar=not as_json)
    except KeyboardInterrupt:
        done = len(list(out.glob("arms/*/record.json")))
        err_console.print(
            f"stopped with {done} of {len(what.arms)} arms done; the same command goes on from there",
            style="yellow",
            highlight=True,
        )
        raise typer.Exit(130) from None
    page = write_report(result, out)
    if as_json:
        emit_json(result.as_dict())
        return
    console.print(table(result))
    console.print()
    console.print(result.verdict)
    console.print(f"\nThe page: {page}", highlight=True)


def _watched(out: Path, what: Plan, train: Callable[..., Result], *, bar: bool) -> Result:
    total = sum(_steps(arm) for arm in what.arms)
    started = {arm.name: 0 if arm.merge else arm.start for arm in what.arms}
    at = dict(started)
    with TrainingProgress(total, bar=bar) as progress:

        def watch(name: str, step: int) -> None:
            at[name] = step
            progress.update(sum(at[n] - started[n] for n in at), f"{name:<20}")

        return train(out, what, watch)


def _steps(arm: Any) -> int:
    return int(arm.train.steps - arm.start) if arm.name != "temperature" else 0


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _share(value: float | None) -> str:
    """An accuracy without the leading zero, `.883`; eleven columns have to fit."""
    return _number(value, ".3f").removeprefix("0")


def table(result: Result) -> Table:
    """The demo's table, one row per arm; it fits a terminal of 80 columns."""
    title = f"Target: the plain run's final accuracy, {result.target:.3f} (seed {result.seed})"
    view = Table(title=title, box=None, padding=(0, 0, 0, 1), pad_edge=False)
    view.add_column("arm", no_wrap=True)
    for name in ("leap", "+50", "+100", "final", "greedy", "steps", "compl.", "s", "saved"):
        view.add_column(name, justify="right", no_wrap=True)
    for name, arm in result.arms.items():
        after, reach = result.after.get(name, AccuracyAfter()), (result.reach or {}).get(name)
        view.add_row(
            name,
            *(_share(accuracy) for accuracy in (after.leap, after.plus50, after.plus100)),
            f"{_share(arm.accuracy[-1])}±{_share(arm.se[-1])}",
            _share(arm.greedy[-1]),
            *((str(reach.steps), str(reach.completions), f"{reach.seconds:.0f}") if reach else ("-",) * 3),
            _number(result.saved.get(name, Saved()).completions, ".0%"),
            style="bold" if arm.kind == "auto" else None,
        )
    view.caption = (
        "leap, +50, +100: accuracy at the single leaps' step and after; steps, compl., s: spent to reach the target, "
        "search and fit included; saved: completions, net"
    )
    return view
