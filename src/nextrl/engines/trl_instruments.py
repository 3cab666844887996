"""What `LeapCallback` measures a trainer with: one set a kind of trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trl import SFTTrainer

from nextrl.engines.trl_divergence import LastStepDivergence, RolloutDivergence
from nextrl.engines.trl_likelihood import HeldOutLikelihood, TextDivergence
from nextrl.engines.trl_rollouts import RewardMeter, Row, TrainerRollouts

_SEQUENCES, _FEWER = 32, 24  # texts that a divergence is measured on, and estimated on


@dataclass(frozen=True)
class Instruments:
    """What is measured with.

    Attributes:
        rollouts: scores held-out rows.
        rewards: reads the training reward of each step.
        distance: how far other weights move the policy.
        last_step: the same, cheaper and rougher, from what the last training step computed.
    """

    rollouts: TrainerRollouts | HeldOutLikelihood
    rewards: RewardMeter
    distance: RolloutDivergence
    last_step: LastStepDivergence


def instruments(trainer: Any, rows: Sequence[Row]) -> Instruments:
    """The instruments for a trainer: likelihood for SFT, rollouts for the rest.

    Args:
        trainer: TRL's GRPOTrainer, RLOOTrainer or SFTTrainer.
        rows: held-out rows.

    Raises:
        InputError: it is another trainer, or its rollouts need an environment.
    """
    last_step = LastStepDivergence(trainer, _FEWER)
    if isinstance(trainer, SFTTrainer):
        texts = TextDivergence(trainer, [rows[i] for i in range(min(len(rows), _SEQUENCES))])
        return Instruments(
            HeldOutLikelihood(trainer), RewardMeter(trainer, "mean_token_accuracy"), texts, last_step
        )
    rollouts, distance = TrainerRollouts(trainer), RolloutDivergence(trainer, _SEQUENCES)
    return Instruments(rollouts, RewardMeter(trainer), distance, last_step)
