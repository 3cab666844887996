"""nextrl: sets the learning rate of an RLVR run, leaps along its path where that pays, and says where it does not.

What is public is listed here and imported when it is first asked for (PEP 562): `import nextrl` loads neither torch nor
a trainer. Nothing inside `nextrl` imports a name from this module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nextrl.errors import needs
from nextrl.version import VERSION as __version__

if TYPE_CHECKING:  # for mypy and editors; a test holds these lines against the table
    from nextrl.engines.trl.callback import LeapCallback as LeapCallback
    from nextrl.engines.trl.callback import attach as attach
    from nextrl.errors import InputError as InputError
    from nextrl.judge.advise import advise as advise
    from nextrl.judge.backtest import backtest as backtest
    from nextrl.judge.controller_config import ControllerConfig as ControllerConfig
    from nextrl.leaps.leap import Leap as Leap
    from nextrl.leaps.leap import leap as leap
    from nextrl.trajectory.trajectory import Trajectory as Trajectory

_HOMES = {
    "ControllerConfig": "nextrl.judge.controller_config",
    "InputError": "nextrl.errors",
    "Leap": "nextrl.leaps.leap",
    "LeapCallback": "nextrl.engines.trl.callback",
    "Trajectory": "nextrl.trajectory.trajectory",
    "advise": "nextrl.judge.advise",
    "attach": "nextrl.engines.trl.callback",
    "backtest": "nextrl.judge.backtest",
    "leap": "nextrl.leaps.leap",
}

_ROOMS = ("extrapolators", "tasks", "testing")
"""Packages and modules that are public as such: `nextrl.extrapolators.names()` works after `import nextrl`."""

__all__ = ["__version__", *_HOMES, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"nextrl.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'nextrl' has no attribute '{name}'")
    with needs("trl", f"nextrl.{name}"):
        value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # so that the next time Python finds it without asking here
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
