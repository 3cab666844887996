"""How far other weights would move a policy, measured on rollouts that the trainer holds anyway.

The latest training batch was sampled one step ago, so its tokens are samples of the current policy. Two forward passes
over a few of its completions give the divergence of candidate weights from the current ones, and no completion is
generated for it. Where a rough figure is enough, one pass does: the last training step has computed log-probabilities
of the same completions, and they take the place of the current policy's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nextrl.engines.trl.seam import Seam
from nextrl.tasks.evaluate import inference


class RolloutDivergence:
    """Kullback-Leibler divergence per token, current policy from candidate, on the trainer's latest rollouts.

    The current policy is given by the present weights (`anchor`) or by those of the last training step (`recall`),
    which are one step older: close enough to see whether a window of many steps went far. For `recall`, the results of
    the trainer's own forward passes between `listen` and `stop` are kept; the trainer sees no difference. There are
    none to keep where the trainer does not compute log-probabilities by itself (a fused loss, SFT), where it computes
    them from more than tokens (images), and where dropout makes them random.

    Args:
        trainer: TRL's GRPOTrainer or RLOOTrainer.
        sequences: completions looked at, at most.

    Attributes:
        rollouts: what `read` reads: ids (n, prompt + completion), attention mask alike, completion mask (n,
            completion); None before the first `recall` or `anchor`.
    """

    def __init__(self, trainer: Any, sequences: int) -> None:
        self._trainer, self._seam, self._sequences = trainer, Seam(trainer), sequences
        self.rollouts: tuple[Tensor, Tensor, Tensor] | None = None
        self._current: Tensor | None = None
        # (ids, attention mask, completion mask, log-probabilities) of each forward pass of the step listened to.
        self._passes: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._recalled = False
        self._stop: Callable[[], None] | None = None

    def listen(self) -> None:
        """Keep what the coming step's forward passes find."""
        self._passes, self._recalled = [], False
        random = any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in self._trainer.model.modules())
        if self._seam.generates and not random:
            self._stop = self._seam.listen_to_logps(self._keep)

    def stop(self) -> None:
        """The step is over: the trainer's method is its own again."""
        if self._stop is not None:
            self._stop()
            self._stop = None

    def recall(self) -> bool:
        """Take the policy of the last training step as the current one; False where its figures were not kept."""
        passes, self._passes = self._passes, []
        # Micro-batches may be padded each to a length of its own.
        if len({(ids.shape[1], mask.shape[1]) for ids, _, mask, _ in passes}) != 1:
            return False
        ids, attention, mask, found = (
            torch.cat(part)[: self._sequences] for part in zip(*passes, strict=True)
        )
        self.rollouts, self._current, self._recalled = (ids, attention, mask), found.float(), True
        return True

    def anchor(self) -> bool:
        """Take the present weights as the current policy; False where the trainer holds no rollouts.

        Recalled rollouts stay, unless the trainer holds more than the last step was trained on.
        """
        latest, recalled = self._latest(), self._recalled
        self._recalled = False
        if not recalled or (latest is not None and len(latest[0]) > len(self._rows()[0])):
            self.rollouts = latest
        self._current = None if self.rollouts is None else self.read()
        return self._current is not None

    def read(self) -> Tensor:
        """(n, completion) float32: log-probability of each completion token under the weights the model now has."""
        ids, attention, mask = self._rows()
        with inference(self._trainer.model):
            return self._seam.per_token_logps(ids, attention, mask.size(1))

    def divergence(self, candidate: Tensor) -> float:
        """Divergence of a candidate, by what `read` found under its weights, in nats per token; NaN without an anchor.

        Mean over tokens of `log(p_candidate / p_current)^2 / 2`, an estimate of KL(current || candidate) that is
        exact to second order (Schulman, "Approximating KL Divergence", 2020, estimator k2). The unbiased estimator k3
        of the same note has heavy tails: one rare token in a few hundred once made it 59 nats for a window that had
        hardly moved the policy.
        """
        if self._current is None:
            return math.nan
        mask = self._rows()[2]
        mean = ((candidate - self._current).square() / 2 * mask).sum() / mask.sum().clamp_min(1.0)
        return float(self._trainer.accelerator.gather(mean).mean())

    def _latest(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """(ids (n, prompt + completion), attention mask alike, completion mask (n, completion)) of some rollouts."""
        buffered = self._seam.buffered_rollouts()
        if not buffered:
            return None
        prompt, completion, prompt_mask, mask = (
            torch.cat([batch[part] for batch in buffered])[: self._sequences]
            for part in ("prompt_ids", "completion_ids", "prompt_mask", "completion_mask")
        )
        return torch.cat([prompt, completion], 1), torch.cat([prompt_mask, mask], 1), mask

    def _rows(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self.rollouts is not None
        return self.rollouts

    def _keep(self, log_probabilities: Tensor, ids: Tensor, attention: Tensor, length: int) -> None:
        if sum(len(kept) for kept, *_ in self._passes) < self._sequences:
            self._passes.append((ids, attention, attention[:, -length:], log_probabilities))
