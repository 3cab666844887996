"""The one door for what a run tells its user while it trains: every line begins with `nextrl`, and with its step."""

from __future__ import annotations

import logging


def say(log: logging.Logger, message: str, *values: object, step: int | None = None) -> None:
    """Log one line for people.

    It is a warning, since INFO is not shown by default, and what is said here changes a run that somebody pays for.

    Args:
        log: the logger of the module that speaks, by whose name a user can silence it.
        message: a format string of `logging`.
        values: what is put into it.
        step: the optimizer steps taken so far, where the line is about one of them.
    """
    where = "nextrl" if step is None else f"nextrl, step {step}"
    log.warning(f"{where}: {message}", *values, stacklevel=2)
