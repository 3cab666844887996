"""nextrl: leap ahead along an RLVR run's LoRA trajectory where it pays, and say so where it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nextrl.errors import InputError
from nextrl.judge.advice import advise
from nextrl.judge.backtest import backtest
from nextrl.leaps.leap import Leap, leap
from nextrl.trajectory.trajectory import Trajectory
from nextrl.version import VERSION as __version__

if TYPE_CHECKING:
    from nextrl.engines.trl.callback import LeapCallback

__all__ = ["InputError", "Leap", "LeapCallback", "Trajectory", "__version__", "advise", "backtest", "leap"]


def __getattr__(name: str) -> Any:
    # The callback needs transformers, which takes seconds to import and which reading a trajectory does not need.
    if name == "LeapCallback":
        from nextrl.engines.trl.callback import LeapCallback

        return LeapCallback
    raise AttributeError(f"module 'nextrl' has no attribute '{name}'")
