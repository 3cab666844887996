"""matplotlib as nextrl draws with it: its own defaults, whatever a user's settings are, which are as before after it.

A setting for a paper (`text.usetex`) needs LaTeX, and a backend for a notebook or a display may not be there: neither
is a reason not to write a file. `MPLBACKEND` is read at the import, which fails where its name is not known.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator

from nextrl.errors import needs

_BACKEND = "MPLBACKEND"


@contextlib.contextmanager
def plain_settings(feature: str = "a plot") -> Iterator[None]:
    """Draw and save inside.

    Args:
        feature: what needs matplotlib, as the beginning of a sentence.

    Raises:
        MissingExtra: it is not installed.
    """
    _import(feature)
    with needs("plots", feature):
        import matplotlib
    with matplotlib.rc_context():
        plain = {key: value for key, value in matplotlib.rcParamsDefault.items() if "backend" not in key}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of settings that matplotlib itself is about to drop
            matplotlib.rcParams.update(plain)
        yield


def _import(feature: str) -> None:
    """Import matplotlib without the user's backend, and give it that one afterwards where it is known."""
    if "matplotlib" in sys.modules:
        return
    wanted = os.environ.pop(_BACKEND, None)
    try:
        with needs("plots", feature):
            import matplotlib
        if wanted:
            with contextlib.suppress(ValueError):
                matplotlib.rcParams["backend"] = wanted
    finally:
        if wanted is not None:
            os.environ[_BACKEND] = wanted
