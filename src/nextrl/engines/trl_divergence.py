"""How far other weights would move a policy, measured on rollouts that the trainer holds anyway.

The latest training batch was sampled a step ago, so its tokens are samples of the current policy; two forward passes
over a few of its completions give the divergence of any candidate weights from the current ones. No completion is
generated for it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nextrl.evaluate import inference


class RolloutDivergence:
    """Kullback-Leibler divergence a token, current policy from candidate, on the trainer's latest rollouts.

    Args:
        trainer: TRL's GRPOTrainer or RLOOTrainer.
        sequences: completions looked at, at most.
    """

    def __init__(self, trainer: Any, sequences: int = 32) -> None:
        self._trainer, self._sequences = trainer, sequences
        self._batch: tuple[Tensor, Tensor, Tensor] | None = None
        self._current: Tensor | None = None

    def anchor(self) -> bool:
        """Take the present weights as the current policy; False where the trainer holds no rollouts."""
        self._batch = self._latest()
        self._current = None if self._batch is None else self._log_probabilities()
        return self._current is not None

    def now(self) -> float:
        """Divergence of the weights the model now has from the anchored ones, in nats a token; NaN before `anchor`.

        Mean over tokens of `log(p_candidate / p_current)^2 / 2`, an estimate of KL(current || candidate) that is
        exact to second order (Schulman, "Approximating KL Divergence", 2020, estimator k2). The unbiased k3 of the
        same note has tails that one rare token in a few hundred fills: a window once read 59 nats where it had
        hardly moved.
        """
        if self._batch is None or self._current is None:
            return math.nan
        mask = self._batch[2]
        tokens = (self._log_probabilities() - self._current).square() / 2 * mask
        mean = tokens.sum() / mask.sum().clamp_min(1.0)
        return float(self._trainer.accelerator.gather(mean).mean())

    def _latest(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """(ids (n, prompt + completion), attention mask alike, completion mask (n, completion)) of some rollouts."""
        buffered = getattr(self._trainer, "_buffered_inputs", None)
        if not buffered:
            return None
        prompt, completion, prompt_mask, mask = (
            torch.cat([batch[part] for batch in buffered])[: self._sequences]
            for part in ("prompt_ids", "completion_ids", "prompt_mask", "completion_mask")
        )
        return torch.cat([prompt, completion], 1), torch.cat([prompt_mask, mask], 1), mask

    def _log_probabilities(self) -> Tensor:
        """(n, completion) float32: log-probability of each completion token under the present weights."""
        assert self._batch is not None
        ids, attention, mask = self._batch
        trainer = self._trainer
        with inference(trainer.model):
            found = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, attention, mask.size(1), trainer.args.per_device_train_batch_size
            )
        log_probabilities: Tensor = found[0]
        return log_probabilities.float()
