"""What `LeapCallback` measures a trainer with: one set for each kind of trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nextrl.engines.candidate_scores import Row
from nextrl.engines.trl.divergence import RolloutDivergence
from nextrl.engines.trl.likelihood import HeldOutLikelihood, TextDivergence
from nextrl.engines.trl.optimizers import check_optimizer
from nextrl.engines.trl.rollouts import RewardMeter, TrainerRollouts
from nextrl.engines.trl.seam import Seam

_COMPLETIONS, _TEXTS = 24, 32  # that a divergence is measured on


@dataclass(frozen=True)
class Instruments:
    """What is measured with.

    Attributes:
        rollouts: scores held-out rows.
        rewards: reads the training reward of each step.
        distance: how far other weights move the policy.
    """

    rollouts: TrainerRollouts | HeldOutLikelihood
    rewards: RewardMeter
    distance: RolloutDivergence


def instruments(trainer: Any, rows: Sequence[Row]) -> Instruments:
    """The instruments for a trainer: likelihood for SFT, rollouts for the rest.

    Args:
        trainer: TRL's GRPOTrainer, RLOOTrainer or SFTTrainer.
        rows: held-out rows.

    Raises:
        InputError: it is another trainer, not as TRL's was read (`seam.check`), or its optimizer keeps weights of its
            own (`check_optimizer`).
    """
    check_optimizer(trainer.optimizer)
    if not Seam(trainer).generates:
        texts = TextDivergence(trainer, [rows[i] for i in range(min(len(rows), _TEXTS))])
        return Instruments(HeldOutLikelihood(trainer), RewardMeter(trainer, "mean_token_accuracy"), texts)
    return Instruments(
        TrainerRollouts(trainer), RewardMeter(trainer), RolloutDivergence(trainer, _COMPLETIONS)
    )
