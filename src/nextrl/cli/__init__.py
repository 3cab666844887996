"""The command line: one file a verb, registered here."""

from __future__ import annotations

import importlib
import os
import sys

import typer

from nextrl.errors import InputError

# Verb -> one line; the module of the same name in this package holds the function. Imported only when called, so
# that `nextrl --help` answers at once.
VERBS = (
    "demo",
    "inspect",
    "analyze",
    "backtest",
    "advise",
    "leap",
    "eval",
    "report",
)

_ABOUT = """Your RLVR run's LoRA checkpoints say where it is going.

nextrl tests, on the run's own past and on held-out prompts, whether leaping ahead pays; leaps if it does, says so if
it does not; and feeds what it learned back into the learning rate, in one run, without a sweep.
"""


def build() -> typer.Typer:
    """The app with every verb."""
    app = typer.Typer(
        help=_ABOUT, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False
    )

    @app.callback()
    def version_option(
        version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
    ) -> None:
        if version:
            import nextrl

            typer.echo(nextrl.__version__)
            raise typer.Exit

    for verb in VERBS:
        module = importlib.import_module(f"nextrl.cli.{verb}")
        app.command(name=verb)(getattr(module, "evaluate_command" if verb == "eval" else verb))
    return app


def main() -> None:
    """Entry point: InputError is one line on stderr and exit code 2; other exceptions keep their traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        build()()
    except InputError as error:
        sys.stderr.write(f"nextrl: {error}\n")
        raise SystemExit(2) from None
