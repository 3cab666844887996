"""The command line: one file per verb, listed here; bad input becomes one line on stderr and exit code 2."""

from __future__ import annotations

import importlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

import typer

from nextrl.cli.completion import placeholder
from nextrl.engines import named_optimizers
from nextrl.errors import EXTRAS, InputError, one_line
from nextrl.version import VERSION

# Verb -> one line for `nextrl --help`. The module of the same name in this package holds the function. It is imported
# only when its verb is called, so that the overview need not wait for torch.
VERBS = {
    "demo": "Train a tiny model with GRPO under auto, compare with every control and with leaps, and judge.",
    "run": "Train as CONFIG.yaml says, under auto or with leaps; the same command goes on where a run was stopped.",
    "inspect": "List the layout, steps, modules, ranks, dtype and size of a run, and each problem with what to do.",
    "analyze": "Rank-1 and rank-k dominance, turning of directions, straightness, persistence, drift against noise.",
    "backtest": "Score every extrapolator on the run's own later checkpoints and recommend one, or none.",
    "advise": "Say what to do with a run now: leap, raise or lower the learning rate, average, or go on.",
    "leap": "Write the extrapolated adapter (it loads in PEFT as it is) or the merged model.",
    "eval": "Sampled and greedy accuracy with its standard error.",
    "report": "Write DIR/report.html anew from DIR/result.json; nothing is trained and nothing is fetched.",
}

_ABOUT = """Learning rates under reinforcement learning (GRPO and the like), and leaps of LoRA adapters.

`demo` shows it on a tiny model, `run` trains from one file. Of a run that you have, `inspect` says whether it can be
read and `advise` what to do with it. In your own TRL script it is one line: nextrl.attach(trainer, every=10).
"""

# Some versions of typer carry their own click: what typer exports leads to the class of usage errors in either.
_UsageError: Any = typer.BadParameter.__bases__[0]


# What a verb can do with less of, where memory ran out.
_LESS = {
    "run": "give a smaller train.prompts_per_step or train.max_completion_length",
    "leap": "give fewer steps or modules, a smaller --prompts, or --device cpu",
    "eval": "give a smaller --batch-size, or --device cpu",
}

_COMPLETING = "_NEXTRL_COMPLETE"
"""Set by the shell where it asks what could follow; the name is typer's."""

_NO_BARS = (
    "TQDM_DISABLE",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "HF_DATASETS_DISABLE_PROGRESS_BARS",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS",
)
_LIBRARIES = {"torch", *EXTRAS["trl"], *named_optimizers.modules()}


def build(verbs: Collection[str] = tuple(VERBS), *, completing: bool = False) -> typer.Typer:
    """The app with every verb; only the functions of `verbs` are imported, the others have a name and a summary.

    Args:
        verbs: those that are to be called.
        completing: give the others the names of their options too, for a shell that asks.
    """
    app = typer.Typer(
        help=_ABOUT, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
    )

    @app.callback()
    def options(
        version: bool = typer.Option(
            False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ) -> None:
        del version  # eager: its callback has printed and left before a verb is asked for

    for verb, summary in VERBS.items():
        app.command(name=verb, short_help=summary)(
            _function(verb) if verb in verbs else placeholder(verb) if completing else _placeholder
        )
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(VERSION)
        raise typer.Exit


def _function(verb: str) -> Callable[..., None]:
    module = importlib.import_module(f"nextrl.cli.{verb}")
    function: Callable[..., None] = getattr(module, "evaluate_command" if verb == "eval" else verb)
    return function


def _placeholder() -> None:
    raise AssertionError("main() builds the verb that is called")


def main() -> None:
    """Bad input is one line on stderr and exit code 2; other exceptions keep their traceback."""
    _open_streams()
    _quiet()
    if _COMPLETING in os.environ:
        # Answered at every press of a key: by the names alone, without what the verbs import.
        build((), completing=True)(prog_name="nextrl")
    arguments = sys.argv[1:] or ["--help"]
    if not any(a == "--push-to-hub" or a.startswith("--push-to-hub=") for a in arguments):
        # Read once, when the libraries are imported: nothing has imported them yet. Nothing is ever fetched, and
        # nothing sent unless that is what was asked for.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    called = next((a for a in arguments if a and not a.startswith("-")), "")
    try:
        _check_arguments(arguments)
        # Without click's standalone mode its usage errors come here too, instead of a box of several lines.
        code = build([called])(arguments, standalone_mode=False, prog_name="nextrl")
        sys.stdout.flush()
    except InputError as error:
        _refuse(str(error))
    except _UsageError as error:
        _refuse(f"{error.format_message()} (see nextrl {called + ' ' if called in VERBS else ''}--help)")
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("\n")
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`). Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        _refuse(f"{error.filename or 'a file'}: cannot be used ({error.strerror or error})")
    except (MemoryError, RuntimeError) as error:
        # torch's own, on a CPU and on a GPU, is a RuntimeError.
        if isinstance(error, RuntimeError) and not re.search(
            r"can't allocate memory|out of memory", str(error)
        ):
            raise
        _refuse(
            f"out of memory: the input needs more than there is; {_LESS.get(called, 'give fewer steps or modules')}"
        )
    raise SystemExit(code if isinstance(code, int) else 0)


def _check_arguments(arguments: Sequence[str]) -> None:
    """Refuse an argument of nothing, which a shell's variable that is not set leaves: as a path it would be the
    working folder. Refuse NUL here too, since earlier versions of typer ask the file system about any path.

    Raises:
        InputError: there is one of either.
    """
    for before, argument in zip(("", *arguments), arguments, strict=False):
        option = argument[:-1] if re.fullmatch(r"--[\w-]+=", argument) else ""
        if not argument or option:
            where = option or (before if before.startswith("--") else "an argument")
            raise InputError(f"{where} is empty: give it a value, or leave it out")
        if "\0" in argument:
            raise InputError(f"{argument!r}: an argument cannot hold NUL")


def _open_streams() -> None:
    """Streams that take every text: one that the caller closed leads nowhere, and what an encoding lacks is escaped.

    Nobody loses a measurement because its last line has a sign that the terminal cannot show.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # Otherwise the next file that is opened takes this number, and what libraries print goes into it.
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _quiet() -> None:
    """Other libraries' bars, notices and warnings stay off our terminal; what they raise does not."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    for name in _NO_BARS:
        os.environ.setdefault(name, "1")
    if not os.environ.get("SOURCE_DATE_EPOCH", "0").isdecimal():
        del os.environ["SOURCE_DATE_EPOCH"]  # matplotlib would end with a traceback
    # Libraries announce to each other what they will rename; a user can do nothing about it.
    theirs = rf"({'|'.join(sorted(_LIBRARIES))})(\.|$)"
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=theirs)


def _refuse(message: str) -> NoReturn:
    sys.stderr.write(f"nextrl: {one_line(message)}\n")
    raise SystemExit(2) from None
