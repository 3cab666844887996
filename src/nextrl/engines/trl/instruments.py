"""What `LeapCallback` measures a trainer with: one set for each kind of trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nextrl.engines.candidate_scores import Row
from nextrl.engines.live_weights import LiveWeights
from nextrl.engines.optimizers import check_optimizer
from nextrl.engines.precision import of_model
from nextrl.engines.ranks import Ranks
from nextrl.engines.trl.fresh_rollouts import FreshRollouts
from nextrl.engines.trl.likelihood import FreshTexts, HeldOutLikelihood
from nextrl.engines.trl.rollouts import RewardMeter, TrainerRollouts
from nextrl.engines.trl.seam import Seam

_TEXTS = 32
"""Texts that a window is judged on, whatever the batch size: its evidence is a t-test over them, and too few texts
would take windows back, and raise rates, by chance. Of a single step fewer are read (`FreshTexts`)."""


@dataclass(frozen=True)
class Instruments:
    """What is measured with.

    Attributes:
        rollouts: scores held-out rows.
        rewards: reads the training reward of each step.
        fresh: judges other weights on what the latest step was trained on.
    """

    rollouts: TrainerRollouts | HeldOutLikelihood
    rewards: RewardMeter
    fresh: FreshRollouts | FreshTexts


def instruments(trainer: Any, rows: Sequence[Row], adapter: LiveWeights, ranks: Ranks) -> Instruments:
    """The instruments for a trainer: likelihood for SFT, rollouts for the rest.

    Args:
        trainer: TRL's GRPOTrainer, RLOOTrainer or SFTTrainer.
        rows: held-out rows.
        adapter: what candidates are written into.
        ranks: the run's processes.

    Raises:
        InputError: it is another trainer, not as TRL's was read (`seam.check`), or its optimizer keeps weights of its
            own (`check_optimizer`).
    """
    check_optimizer(trainer.optimizer)
    if not Seam(trainer).generates:
        texts = FreshTexts(trainer, adapter, [rows[i] for i in range(min(len(rows), _TEXTS))])
        accuracy = RewardMeter(trainer, "mean_token_accuracy", ranks.leader)
        return Instruments(HeldOutLikelihood(trainer), accuracy, texts)
    hidden = of_model(trainer.model, trainer.accelerator.mixed_precision)
    fresh = FreshRollouts(trainer, adapter, ranks, hidden)
    return Instruments(TrainerRollouts(trainer), RewardMeter(trainer, leader=ranks.leader), fresh)
