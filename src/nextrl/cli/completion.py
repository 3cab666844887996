"""What a shell can complete after each verb, as a table, so that a press of a key need not wait for torch.

A test compares the table with the verbs themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import typer

FLAGS = {
    "demo": "--quick --json",
    "run": "--print-config --json",
    "inspect": "--skip-bad-checkpoints --allow-pickle --json --values --no-values",
    "analyze": "--skip-bad-checkpoints --allow-pickle --json",
    "backtest": "--skip-bad-checkpoints --allow-pickle --json --by-type",
    "advise": "--skip-bad-checkpoints --allow-pickle --json",
    "leap": "--skip-bad-checkpoints --allow-pickle --json --private",
    "eval": "--allow-pickle --json",
    "report": "--json",
}
"""Verb -> its switches."""

OPTIONS = {
    "demo": "--out --seed",
    "run": "",
    "inspect": "--layout",
    "analyze": "--out --horizon --windows --beta1 --start --updates-per-step --plots --layout --base --rank",
    "backtest": "--horizon --methods --param --origins --plot --start --updates-per-step --layout --seed",
    "advise": "--at --out --start --updates-per-step --layout",
    "leap": (
        "--out --method --param --horizon --device --start --updates-per-step --alpha --at --as --rank --base "
        "--task --prompts --level --push-to-hub --layout --seed"
    ),
    "eval": "--adapter --task --prompts --temperature --seed --device --batch-size",
    "report": "",
}
"""Verb -> its options with a value."""


def placeholder(verb: str) -> Callable[..., None]:
    """A function that typer takes for the verb's, with its options and nothing behind them."""

    def nothing(**given: object) -> None:
        raise AssertionError("only a shell asks this app, for names")

    parameters = [_parameter("anything", str, typer.Argument(None))]
    parameters += [_parameter(_name(flag), bool, typer.Option(False, flag)) for flag in FLAGS[verb].split()]
    parameters += [
        _parameter(_name(option), str, typer.Option(None, option)) for option in OPTIONS[verb].split()
    ]
    nothing.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    nothing.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return nothing


def _name(option: str) -> str:
    return option.strip("-").replace("-", "_") + "_"


def _parameter(name: str, kind: type, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
