"""Ctrl-C, or a notebook's stop button, in the middle of what must not be left half done: it waits until it is done."""

from __future__ import annotations

from collections.abc import Callable


def to_the_end(act: Callable[[], object], alone: bool = True) -> None:
    """Do it; after an interrupt in the middle of it do all of it again, and let the interrupt through then.

    Args:
        act: what may be done twice, such as writing a copy's values.
        alone: whether each process does it by itself. A process that repeated what all do together would wait for ever.
    """
    try:
        act()
    except KeyboardInterrupt:
        if alone:
            act()
        raise
