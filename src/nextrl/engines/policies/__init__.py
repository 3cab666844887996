"""What `LeapCallback` asks at the end of a window: `Auto`, or a named method (`AtSteps`).

A policy decides and moves nothing. It says when a window ends, is shown what the window shows (`View`), and answers
with a decision and the candidate that the decision's alpha belongs to. A new way to decide is one more file with a
class that has the methods of `Policy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nextrl.engines.policies.at_steps import SEARCHED, AtSteps
from nextrl.engines.policies.auto import Auto
from nextrl.engines.policies.base import Policy, View
from nextrl.errors import InputError
from nextrl.judge.acceptance import Acceptance, stages_up_to
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.regime import DEFAULT_WINDOW

__all__ = ["AtSteps", "Auto", "Policy", "View", "policy_of"]


def policy_of(
    method: str,
    every: int | None,
    config: ControllerConfig | None,
    prompts: int | None,
    *,
    at: Sequence[int] | None,
    horizon: int,
    alpha: float | None,
    alphas: Sequence[float] | None,
) -> Auto | AtSteps:
    """The policy that the arguments of `LeapCallback` describe.

    Raises:
        InputError: they contradict each other, or one is out of range.
    """
    if prompts is not None and prompts < 2:
        raise InputError(f"prompts must be at least 2 to compare candidates, not {prompts}")
    if method == "auto":
        if at is not None or alpha is not None:
            raise InputError("at= and alpha= belong to a named method: auto decides by itself")
        if prompts is not None:
            raise InputError("prompts= belongs to a named method: auto asks no held-out prompts")
        config = config or ControllerConfig()
        return Auto(config if every is None else replace(config, every=every))
    if config is not None:
        raise InputError(f"config= holds the dials of auto, which method '{method}' does not have")
    return AtSteps(
        method,
        horizon,
        alpha=alpha,
        alphas=alphas,
        at=at,
        every=DEFAULT_WINDOW if every is None else every,
        acceptance=Acceptance() if prompts is None else Acceptance(stages_up_to(prompts)),
        share=SEARCHED if prompts is None else None,
    )
