"""What `LeapCallback` asks at the end of a window: `Auto`, or a named method (`AtSteps`).

A policy decides and moves nothing. It says when a window ends, is shown what the window shows (`View`), and answers
with a decision. One that judges (`JudgingPolicy`) sets the rate and takes back; one that leaps (`LeapingPolicy`) hands
over the candidate that the decision's alpha belongs to. A new way to decide is one more file with a class that has the
methods of the one or the other.
"""

from __future__ import annotations

from dataclasses import replace

from nextrl.engines.policies.arguments import Arguments
from nextrl.engines.policies.at_steps import SEARCHED, AtSteps
from nextrl.engines.policies.auto import Auto
from nextrl.engines.policies.base import JudgingPolicy, JudgingView, LeapingPolicy, LeapingView, Policy
from nextrl.judge.acceptance import Acceptance, stages_up_to
from nextrl.judge.controller_config import ControllerConfig
from nextrl.judge.regime import DEFAULT_WINDOW
from nextrl.leaps.leap import DEFAULT_HORIZON

__all__ = [
    "Arguments",
    "AtSteps",
    "Auto",
    "JudgingPolicy",
    "JudgingView",
    "LeapingPolicy",
    "LeapingView",
    "Policy",
    "policy_of",
]


def policy_of(given: Arguments) -> JudgingPolicy | LeapingPolicy:
    """The policy that the arguments of `LeapCallback` describe.

    Raises:
        InputError: no method has that name, or not these parameters, or an alpha is out of range.
    """
    if given.policy is not None:
        return given.policy
    if given.method == "auto":
        config = given.config or ControllerConfig()
        return Auto(config if given.every is None else replace(config, every=given.every))
    return AtSteps(
        given.method,
        DEFAULT_HORIZON if given.horizon is None else given.horizon,
        alpha=given.alpha,
        alphas=given.alphas,
        at=given.at,
        every=DEFAULT_WINDOW if given.every is None else given.every,
        acceptance=Acceptance() if given.prompts is None else Acceptance(stages_up_to(given.prompts)),
        params=given.params,
        share=SEARCHED if given.prompts is None else None,
    )
