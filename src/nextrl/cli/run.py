"""`nextrl run`: train -> leap -> train as a config says, and go on where it was stopped."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from nextrl.cli import values
from nextrl.cli.console import AsJson, TrainingProgress, console, emit_json, err_console
from nextrl.engines import named_optimizers
from nextrl.engines.verl import job as verl_job
from nextrl.errors import needs
from nextrl.runs import config_file
from nextrl.runs.config import RunConfig
from nextrl.runs.engines import verl_settings
from nextrl.runs.report.arms import read_arms
from nextrl.runs.report.rows import fixed, integer, rate, with_error
from nextrl.runs.result import Result
from nextrl.runs.stop import StopSignal

if TYPE_CHECKING:
    from nextrl.runs.run import Outcome


EVALUATIONS = 20
"""Rows of the table on the terminal at most."""


def run(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG.yaml", help="What to train; docs/run.md has every key.", callback=values.path
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value ...]", help="Over the file, as train.steps=100.")
    ] = None,
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="Print every key and what follows from them; train nothing."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train as CONFIG.yaml says, under auto or with leaps; the same command goes on where a run was stopped.

    Example: nextrl run examples/tiny.yaml train.learning_rate=1e-4
    """
    settings = config_file.load(config, overrides or ())
    if print_config:
        _print(settings, as_json)
        return
    _RUN[settings.engine](settings, as_json)


def _run_trl(settings: RunConfig, as_json: bool) -> None:
    """Train through TRL, with a bar; the run's folder has its result and its page."""
    with needs("trl", "nextrl run"):
        from transformers.utils.logging import disable_progress_bar

        from nextrl.engines.ranks import launched
        from nextrl.runs import run as job
    named_optimizers.get(settings.train.optimizer).check_installed()
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    leader = launched().leader
    with StopSignal() as stop:
        outcome = _watched(settings, stop, job.run, shown=leader, bar=not as_json)
    if not leader:
        return
    if outcome.result is None:
        _stopped(settings, outcome, stop, as_json)
    elif as_json:
        emit_json(outcome.result.as_dict())
    else:
        _show(settings, outcome)


def _print(settings: RunConfig, as_json: bool) -> None:
    derived = settings.derived()  # may refuse: nothing is printed yet
    if as_json:
        emit_json({"config": settings.as_dict(), "derived": derived})
        return
    console.print(settings.as_yaml(), soft_wrap=True, end="")
    console.print("# what follows from it")
    for key, value in derived.items():
        console.print(f"#   {key}: {value}", soft_wrap=True)


def _run_verl(settings: RunConfig, as_json: bool) -> None:
    """Train through verl. The accuracy over steps is in verl's own logs, so there is no result page."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that verl is stopped with us
    try:
        outcome = verl_job.run(verl_settings(settings), settings.output_dir)
    except KeyboardInterrupt:
        err_console.print("stopped; the same command goes on from verl's last checkpoint", style="yellow")
        raise typer.Exit(130) from None
    rate = outcome.decisions[-1].learning_rate if outcome.decisions else settings.train.learning_rate
    if as_json:
        decisions = [decision.model_dump(mode="json") for decision in outcome.decisions]
        facts = {"engine": "verl", "step": outcome.step, "adapter": str(outcome.adapter)}
        emit_json({**facts, "learning_rate": rate, "decisions": decisions})
        return
    asked = sum(1 for decision in outcome.decisions if decision.asked)
    console.print(
        f"{outcome.step} steps through verl, {asked} changes, learning rate {rate:.2g} after the last\n"
        f"The adapter: {outcome.adapter}",
        soft_wrap=True,
    )


# Engine -> what runs it and says what it did; `nextrl.runs.engines` registers the same names.
_RUN: dict[str, Callable[[RunConfig, bool], None]] = {"trl": _run_trl, "verl": _run_verl}


def _watched(
    settings: RunConfig, stop: StopSignal, train: Callable[..., Outcome], *, shown: bool, bar: bool
) -> Outcome:
    with TrainingProgress(settings.train.steps, shown=shown, bar=bar) as progress:

        def watch(name: str, step: int) -> None:
            del name
            progress.update(step)

        def say(line: str) -> None:
            err_console.print(line, style="yellow")

        return train(settings, stop_asked=stop.asked, say=say, progress=watch)


def _stopped(settings: RunConfig, outcome: Outcome, stop: StopSignal, as_json: bool) -> None:
    """Say where the run was stopped; the exit code is 0 after SIGTERM, and 130 after Ctrl-C, as shells expect it."""
    if as_json:
        emit_json({"stopped_at": outcome.step, "output_dir": str(settings.output_dir)})
    else:
        err_console.print(
            f"stopped at step {outcome.step} of {settings.train.steps}; the same command goes on from there",
            style="yellow",
        )
    if stop.received == signal.SIGINT:
        raise typer.Exit(130)


def _show(settings: RunConfig, outcome: Outcome) -> None:
    assert outcome.result is not None
    out = settings.output_dir
    if not outcome.trained:
        console.print(f"{out} is finished; nothing was trained.", soft_wrap=True)
    console.print(table(outcome.result))
    console.print()
    console.print(outcome.result.verdict)
    console.print(
        f"\nThe {'model' if settings.lora is None else 'adapter'}: {out / 'final'}\nThe page: {out / 'report.html'}",
        soft_wrap=True,
    )


def table(result: Result) -> Table:
    """The run's evaluations; of many, the first, the last and some between, and then it says so."""
    arm = next(arm for arm in read_arms(result) if arm.name == "run")
    view = Table(title=f"{arm.label} on {result.task} (seed {result.seed})", box=None, pad_edge=False)
    for name in ("step", "accuracy", "greedy", "completions", "seconds", "learning rate"):
        view.add_column(name, justify="right")
    count = len(arm.steps)
    if count > EVALUATIONS:
        view.caption = f"{EVALUATIONS} of {count} evaluations; all of them are on the page and in result.json"
    evenly = {round(j * (count - 1) / (EVALUATIONS - 1)) for j in range(EVALUATIONS)} if count else set()
    for i in sorted(evenly):
        view.add_row(
            integer(arm.steps[i]),
            with_error(arm.accuracy[i], arm.se[i]),
            fixed(arm.greedy[i]),
            integer(arm.completions[i]),
            integer(arm.seconds[i]),
            rate(arm.learning_rate[i]),
        )
    return view
